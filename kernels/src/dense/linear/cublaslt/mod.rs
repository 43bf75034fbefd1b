//! A linear layer and its gradients as products of cuBLASLt.

mod plan;
mod queue;

use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;

use self::queue::Product;
use super::column_major::{Epilogue, Matrix, Problem};
use super::cube::Layer;
use crate::cube::{computes_in_f32, empty, is_cuda};

/// Bytes of which the address of every reservation is a multiple; CubeCL's are of 512.
const ALIGNMENT: u64 = 256;

/// A matrix in memory that a product reads.
struct Operand<R: CubeRuntime> {
    tensor: CubeTensor<R>,
    matrix: Matrix,
}

impl<R: CubeRuntime> Operand<R> {
    /// `x` as it lies, or a copy in rows where the library could not read that.
    fn new(x: &CubeTensor<R>) -> Self {
        let as_it_lies = matrix(x).map(|matrix| (x.clone(), matrix));
        let (tensor, matrix) = as_it_lies.unwrap_or_else(|| in_rows(x));
        Self { tensor, matrix }
    }

    /// [`Operand::new`], and not transposed.
    fn not_transposed(x: &CubeTensor<R>) -> Self {
        let as_it_lies = matrix(x).filter(|matrix| !matrix.transposed);
        let as_it_lies = as_it_lies.map(|matrix| (x.clone(), matrix));
        let (tensor, matrix) = as_it_lies.unwrap_or_else(|| in_rows(x));
        Self { tensor, matrix }
    }

    fn alignment(&self) -> u32 {
        alignment(&self.tensor.handle)
    }

    fn handle(&self) -> Handle {
        self.tensor.handle.clone()
    }
}

fn matrix<R: CubeRuntime>(x: &CubeTensor<R>) -> Option<Matrix> {
    let strides = x.meta.strides();
    Matrix::of(x.meta.shape().dims(), [strides[0], strides[1]])
}

/// A copy in rows without padding.
fn in_rows<R: CubeRuntime>(x: &CubeTensor<R>) -> (CubeTensor<R>, Matrix) {
    let shape = x.meta.shape().dims();
    (into_contiguous(x.clone()), rows(shape))
}

/// How `[rows, columns]` lie in rows without padding.
fn rows([rows, columns]: [usize; 2]) -> Matrix {
    Matrix {
        rows,
        columns,
        distance: columns,
        transposed: false,
    }
}

/// Bytes of which the buffer's address is a multiple, as far as that matters.
fn alignment(buffer: &Handle) -> u32 {
    let offset = buffer.offset_start.unwrap_or(0);
    // The lowest bit that is set.
    1 << (ALIGNMENT | offset).trailing_zeros()
}

/// Whether these are tensors of one dtype that the library knows, on CUDA, and none is empty.
fn fit<'a, R: CubeRuntime>(tensors: impl IntoIterator<Item = &'a CubeTensor<R>>) -> bool {
    let mut tensors = tensors.into_iter().peekable();
    let dtype = tensors.peek().map(|x| x.dtype);
    is_cuda::<R>()
        && dtype.is_some_and(computes_in_f32)
        && tensors.all(|x| Some(x.dtype) == dtype && x.meta.shape().num_elements() > 0)
}

/// The layer's output; `None` if the library is not installed or does not support the operands. A GELU in f32 is not
/// passed to the library, because the precision of its tanh is not documented.
pub(super) fn forward<R: CubeRuntime>(layer: &Layer<R>) -> Option<CubeTensor<R>> {
    let others = layer.bias.iter().chain(&layer.onto);
    let fits = fit([&layer.x, &layer.weight].into_iter().chain(others));
    if !fits || (layer.gelu && layer.x.dtype == DType::F32) {
        return None;
    }
    let [t, _] = layer.x.meta.shape().dims::<2>();
    let [o, _] = layer.weight.meta.shape().dims::<2>();
    let (x, weight) = (Operand::new(&layer.x), Operand::new(&layer.weight));
    let bias = layer
        .bias
        .as_ref()
        .map(|bias| match bias.meta.strides()[0] {
            1 => bias.clone(),
            _ => into_contiguous(bias.clone()),
        });
    // Before anything else holds it.
    let in_place = layer
        .onto
        .as_ref()
        .is_some_and(|onto| onto.can_mut() && onto.is_contiguous());
    let onto = layer.onto.as_ref().map(Operand::not_transposed);
    let epilogue = match (&bias, layer.gelu) {
        (None, false) => Epilogue::None,
        (Some(_), false) => Epilogue::Bias,
        (None, true) => Epilogue::Gelu,
        (Some(_), true) => Epilogue::BiasGelu,
    };
    let (dtype, device) = (layer.x.dtype, layer.x.device.id());
    let mut problem = Problem::new(
        dtype,
        x.matrix,
        weight.matrix.transpose(),
        onto.as_ref().map(|onto| onto.matrix),
        rows([t, o]),
        epilogue,
    );
    let onto_alignment = onto.as_ref().map(Operand::alignment);
    problem.alignments = [
        weight.alignment(),
        x.alignment(),
        onto_alignment.unwrap_or(ALIGNMENT as u32),
        onto_alignment
            .filter(|_| in_place)
            .unwrap_or(ALIGNMENT as u32),
        bias.as_ref()
            .map_or(ALIGNMENT as u32, |bias| alignment(&bias.handle)),
    ];
    if !queue::takes(device, &problem) {
        return None;
    }
    let out = match &onto {
        Some(onto) if in_place => onto.tensor.clone(),
        _ => empty(&layer.x, [t, o], dtype),
    };
    let product = Product {
        problem,
        a: weight.handle(),
        b: x.handle(),
        c: onto.as_ref().map(Operand::handle),
        d: out.handle.clone(),
        vector: bias.map(|bias| bias.handle),
    };
    queue::queue(device, vec![product]);
    Some(out)
}

/// Those gradients of a layer to `x`, `weight` and `bias` that are wanted and that the library gives.
pub(super) fn backward<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    dy: &CubeTensor<R>,
    wanted: [bool; 3],
) -> [Option<CubeTensor<R>>; 3] {
    if !fit([x, weight, dy]) || !(wanted[0] || wanted[1]) {
        return [None, None, None];
    }
    let (dtype, device) = (x.dtype, x.device.id());
    let gradient = Operand::new(dy);
    let mut products = Vec::with_capacity(2);

    let dx = wanted[0].then(|| {
        let weight = Operand::new(weight);
        let shape = x.meta.shape().dims();
        let mut problem = Problem::new(
            dtype,
            gradient.matrix,
            weight.matrix,
            None,
            rows(shape),
            Epilogue::None,
        );
        problem.alignments[0] = weight.alignment();
        problem.alignments[1] = gradient.alignment();
        queue::takes(device, &problem).then(|| {
            let dx = empty(x, shape, dtype);
            products.push(Product {
                problem,
                a: weight.handle(),
                b: gradient.handle(),
                c: None,
                d: dx.handle.clone(),
                vector: None,
            });
            dx
        })
    });

    let mut dbias = None;
    let dweight = wanted[1].then(|| {
        let x = Operand::new(x);
        let shape: [usize; 2] = weight.meta.shape().dims();
        let problem = |epilogue| {
            let mut problem = Problem::new(
                dtype,
                gradient.matrix.transpose(),
                x.matrix,
                None,
                rows(shape),
                epilogue,
            );
            problem.alignments[0] = x.alignment();
            problem.alignments[1] = gradient.alignment();
            queue::takes(device, &problem).then_some(problem)
        };
        let both = wanted[2].then(|| problem(Epilogue::SumLeft)).flatten();
        let problem = both.or_else(|| problem(Epilogue::None))?;
        let dweight = empty(weight, shape, dtype);
        dbias = both.map(|_| vector(weight, shape[0]));
        products.push(Product {
            problem,
            a: x.handle(),
            b: gradient.handle(),
            c: None,
            d: dweight.handle.clone(),
            vector: dbias.as_ref().map(|dbias| dbias.handle.clone()),
        });
        Some(dweight)
    });

    if !products.is_empty() {
        queue::queue(device, products);
    }
    [dx.flatten(), dweight.flatten(), dbias]
}

/// A vector to be written.
fn vector<R: CubeRuntime>(like: &CubeTensor<R>, size: usize) -> CubeTensor<R> {
    let vector = empty(like, [size, 1], like.dtype);
    let (client, device) = (vector.client.clone(), vector.device.clone());
    let shape = Shape::from([size]);
    CubeTensor::new_contiguous(client, device, shape, vector.handle, like.dtype)
}
