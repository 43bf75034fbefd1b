//! As CubeCL kernels: one pass over memory each way, in f32, a vector a unit.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{SwiGlu, reference};
use crate::cube::sigmoid::sigmoid;
use crate::cube::{address_type, computes_in_f32, empty, flat_vector_size, inner, tensor};

const UNITS: u32 = 256;

impl<R, F, I, T> SwiGlu for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn swiglu_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if fits(&gate) {
            tensor(forward(inner(gate), inner(up)))
        } else {
            reference::forward(gate, up)
        }
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        if fits(&gate) && dy.dtype() == gate.dtype() {
            backward(inner(gate), inner(up), inner(dy)).map(tensor)
        } else {
            reference::backward(gate, up, dy)
        }
    }
}

/// Whether the kernels support these inputs; both factors have one shape and dtype.
fn fits<B: Backend>(gate: &Tensor<B, 2>) -> bool {
    computes_in_f32(gate.dtype()) && gate.shape().num_elements() > 0
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    gate: &Array<Vector<F, N>>,
    up: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let g = Vector::<f32, N>::cast_from(gate[at]);
        let u = Vector::<f32, N>::cast_from(up[at]);
        y[at] = Vector::cast_from(g * sigmoid::<F, N>(g) * u);
    }
}

/// With `s = sigmoid(gate)`: `dgate = dy * up * s (1 + gate (1 - s))`, `dup = dy * gate * s`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, N: Size>(
    gate: &Array<Vector<F, N>>,
    up: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    dgate: &mut Array<Vector<F, N>>,
    dup: &mut Array<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let one = Vector::<f32, N>::new(1.0f32);
        let g = Vector::<f32, N>::cast_from(gate[at]);
        let u = Vector::<f32, N>::cast_from(up[at]);
        let dy = Vector::<f32, N>::cast_from(dy[at]);
        let s = sigmoid::<F, N>(g);
        dgate[at] = Vector::cast_from(dy * u * s * (one + g * (one - s)));
        dup[at] = Vector::cast_from(dy * g * s);
    }
}

/// Like `x`, without gaps, to be written.
fn output<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let shape: [usize; 2] = x.meta.shape().dims();
    empty(x, shape, x.dtype)
}

/// See [`swiglu`](super::swiglu()): both `[t, d]`, not empty.
fn forward<R: CubeRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let y = output(&gate);
    let n = flat_vector_size(&[&gate]);
    let vectors = gate.meta.num_elements() / n;
    let (client, cube, dtype) = (gate.client.clone(), CubeDim::new_1d(UNITS), gate.dtype);
    // SAFETY: units beyond the vectors of the three do nothing.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, vectors, cube),
            cube,
            address_type(&[&gate]),
            n,
            gate.into_array_arg(),
            up.into_array_arg(),
            y.clone().into_array_arg(),
            vectors as u32,
            dtype.into(),
        );
    }
    y
}

/// The gradients to `gate` and `up`, from `dy` of their shape and dtype.
fn backward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    dy: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let [gate, up, dy] = [gate, up, dy].map(into_contiguous);
    let (dgate, dup) = (output(&gate), output(&gate));
    let n = flat_vector_size(&[&gate]);
    let vectors = gate.meta.num_elements() / n;
    let (client, cube, dtype) = (gate.client.clone(), CubeDim::new_1d(UNITS), gate.dtype);
    // SAFETY: units beyond the vectors of the five do nothing.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, vectors, cube),
            cube,
            address_type(&[&gate]),
            n,
            gate.into_array_arg(),
            up.into_array_arg(),
            dy.into_array_arg(),
            dgate.clone().into_array_arg(),
            dup.clone().into_array_arg(),
            vectors as u32,
            dtype.into(),
        );
    }
    [dgate, dup]
}
