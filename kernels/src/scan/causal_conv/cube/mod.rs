//! As CubeCL kernels: one pass over memory forward, and one backward with a small sum after it.
//!
//! A unit computes a few neighbouring channels over [`STEPS`] time steps. It holds the last `w - 1` inputs in
//! registers, so that it reads each input once. All sums are f32.

mod backward;
mod forward;
mod shares;
mod window;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use self::backward::{backward_kernel, history_kernel};
use self::forward::forward_kernel;
use self::shares::sum_shares_kernel;
use super::{Activation, CausalConv, ConvGradients, ConvInputs, reference};
use crate::cube::documents::{read, starts};
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor, vector_size};

/// Units of a cube along the channels: neighbours in memory for neighbouring units.
const LANES: u32 = 32;
/// Units of a cube along time.
const ROWS: u32 = 8;
/// Time steps of a unit. Each run of them reads `w - 1` inputs that another run reads too.
const STEPS: usize = 32;
/// Time steps that a unit reads before it computes any of them, so that several reads are under way.
const AHEAD: usize = 4;
/// Channels of a unit at most: more leave fewer units room for their registers.
const CHANNELS: usize = 4;

impl<R, F, I, T> CausalConv for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn causal_conv_forward(inputs: ConvInputs<Self>) -> Tensor<Self, 3> {
        if fits(&inputs, None) && read(&inputs.documents) {
            tensor(forward(Operands::new(inputs)))
        } else {
            reference::forward(inputs)
        }
    }

    fn causal_conv_backward(
        inputs: ConvInputs<Self>,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        if !fits(&inputs, Some(&dy)) || !read(&inputs.documents) {
            return reference::backward(inputs, dy, wanted);
        }
        let gradients = backward(Operands::new(inputs), inner(dy), wanted);
        ConvGradients {
            x: gradients.x.map(tensor),
            weight: gradients.weight.map(tensor),
            bias: gradients.bias.map(tensor),
            history: gradients.history.map(tensor),
        }
    }
}

/// Whether the kernels support these inputs: x, the history and the gradient of one dtype, the taps and the
/// bias of one.
fn fits<B: Backend>(inputs: &ConvInputs<B>, dy: Option<&Tensor<B, 3>>) -> bool {
    let (x, weight) = (inputs.x.dtype(), inputs.weight.dtype());
    let mut like_x = inputs.history.iter().chain(dy);
    computes_in_f32(x)
        && computes_in_f32(weight)
        && like_x.all(|other| other.dtype() == x)
        && inputs.bias.iter().all(|bias| bias.dtype() == weight)
}

/// [`ConvInputs`] on the device.
#[derive(Clone)]
struct Operands<R: CubeRuntime> {
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    history: Option<CubeTensor<R>>,
    activation: Activation,
    /// The starts of documents, `[b, l]`.
    starts: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Operands<R> {
    fn new<B>(inputs: ConvInputs<B>) -> Self
    where
        B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    {
        Self {
            x: inner(inputs.x),
            weight: inner(inputs.weight),
            bias: inputs.bias.map(inner),
            history: inputs.history.map(inner),
            activation: inputs.activation,
            starts: starts(inputs.documents),
        }
    }

    /// Channels of a unit, where `others` are read or written besides.
    fn channels(&self, others: &[&CubeTensor<R>]) -> usize {
        let mut tensors = vec![&self.x];
        tensors.extend(&self.history);
        tensors.extend(others);
        vector_size(&tensors).min(CHANNELS)
    }

    /// Without the one that holds nothing, for a width of one.
    fn history(&self, w: usize) -> Option<CubeTensor<R>> {
        self.history.clone().filter(|_| w > 1)
    }
}

fn dims<R: CubeRuntime, const D: usize>(x: &CubeTensor<R>) -> [usize; D] {
    x.meta.shape().dims()
}

/// Cubes for `[b, l, c]` with `n` channels a unit.
fn cubes([b, l, c]: [usize; 3], n: usize) -> CubeCount {
    let along = |units: usize, cube: u32| units.div_ceil(cube as usize) as u32;
    CubeCount::Static(
        along(c / n, LANES),
        along(l.div_ceil(STEPS), ROWS),
        b as u32,
    )
}

fn forward<R: CubeRuntime>(inputs: Operands<R>) -> CubeTensor<R> {
    let silu = inputs.activation == Activation::Silu;
    let (shape, [_, w]) = (dims(&inputs.x), dims(&inputs.weight));
    let y = empty(&inputs.x, shape, inputs.x.dtype);
    let n = inputs.channels(&[&y]);
    let client = y.client.clone();
    let history = inputs.history(w);
    let Operands {
        x,
        weight,
        bias,
        starts,
        ..
    } = inputs;
    let given = [bias.is_some(), history.is_some(), starts.is_some()];
    // SAFETY: a unit reads and writes its own channels and time steps, which are inside `shape`, and
    // reads the `w - 1` steps before them, from the history where they precede the first.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            cubes(shape, n),
            CubeDim::new_2d(LANES, ROWS),
            address_type(&[&x, &y]),
            n,
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.map(CubeTensor::into_tensor_arg).into(),
            history.map(CubeTensor::into_tensor_arg).into(),
            starts.map(CubeTensor::into_array_arg).into(),
            y.clone().into_tensor_arg(),
            w,
            silu,
            given,
            x.dtype.into(),
            weight.dtype.into(),
        );
    }
    y
}

/// Gradients, as in [`ConvGradients`](super::ConvGradients).
struct Gradients<R: CubeRuntime> {
    x: Option<CubeTensor<R>>,
    weight: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
    history: Option<CubeTensor<R>>,
}

fn backward<R: CubeRuntime>(
    inputs: Operands<R>,
    dy: CubeTensor<R>,
    wanted: [bool; 4],
) -> Gradients<R> {
    let (shape, [c, w]) = (dims(&inputs.x), dims(&inputs.weight));
    let [b, l, _] = shape;
    let (dtype, weight_dtype) = (inputs.x.dtype, inputs.weight.dtype);
    let silu = inputs.activation == Activation::Silu;
    let shares = b * l.div_ceil(STEPS * ROWS as usize);
    let dx = empty(&inputs.x, shape, dtype);
    let sums = empty(&inputs.x, [shares, w + 1, c], DType::F32);
    let dweight = empty(&inputs.x, [c, w], weight_dtype);
    let dbias = empty(&inputs.x, [c], weight_dtype);
    let n = inputs.channels(&[&dy, &dx, &sums]);
    let client = dx.client.clone();
    let history = inputs.history(w);
    let dhistory = (wanted[3] && w > 1).then(|| empty(&inputs.x, [b, w - 1, c], dtype));
    let Operands {
        x,
        weight,
        bias,
        starts,
        ..
    } = inputs;
    let arg = |x: &CubeTensor<R>| x.clone().into_tensor_arg();
    let starts_arg = || starts.clone().map(CubeTensor::into_array_arg).into();
    let given = [bias.is_some(), history.is_some(), starts.is_some()];
    let width = address_type(&[&x, &dy, &dx, &sums]);
    // SAFETY: as forward; besides, a unit reads the `w - 1` gradients after its time steps where there
    // are so many, and writes its cube's own share of the sums.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            cubes(shape, n),
            CubeDim::new_2d(LANES, ROWS),
            width,
            n,
            arg(&x),
            arg(&weight),
            bias.as_ref().map(arg).into(),
            history.as_ref().map(arg).into(),
            starts_arg(),
            arg(&dy),
            arg(&dx),
            arg(&sums),
            w,
            silu,
            given,
            dtype.into(),
            weight_dtype.into(),
        );
    }
    let columns = ((w + 1) * c).div_ceil(256) as u32;
    // SAFETY: units beyond the columns of the sums leave at once.
    unsafe {
        sum_shares_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(columns, 1, 1),
            CubeDim::new_1d(256),
            width,
            arg(&sums),
            arg(&dweight),
            arg(&dbias),
            w,
            weight_dtype.into(),
        );
    }
    if let Some(dhistory) = &dhistory {
        // SAFETY: a unit reads and writes its own channels, and of x and dy only steps they have.
        unsafe {
            history_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static((c / n).div_ceil(LANES as usize) as u32, 1, b as u32),
                CubeDim::new_1d(LANES),
                width,
                n,
                arg(&x),
                arg(&weight),
                bias.as_ref().map(arg).into(),
                history.as_ref().map(arg).into(),
                starts_arg(),
                arg(&dy),
                arg(dhistory),
                w,
                silu,
                given,
                dtype.into(),
                weight_dtype.into(),
            );
        }
    }
    Gradients {
        x: wanted[0].then_some(dx),
        weight: wanted[1].then_some(dweight),
        bias: wanted[2].then_some(dbias),
        history: dhistory,
    }
}

#[cfg(all(test, feature = "reference"))]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;

    fn inputs<B: Backend>() -> ConvInputs<B> {
        let device = Default::default();
        ConvInputs {
            x: Tensor::zeros([1, 2, 3], &device),
            weight: Tensor::zeros([3, 2], &device),
            bias: None,
            history: None,
            activation: Activation::Identity,
            documents: None,
        }
    }

    #[test]
    fn only_what_is_computed_in_f32_fits() {
        assert!(fits(&inputs::<NdArray<f32>>(), None));
        assert!(!fits(&inputs::<NdArray<f64>>(), None));
    }
}
