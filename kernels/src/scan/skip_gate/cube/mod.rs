//! As CubeCL kernels: one pass over memory forward, and one backward with a small sum after it, summed in
//! f32. For scans that do not apply their epilogue themselves.

mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::{CubeCount, CubeDim};

use self::kernels::{backward_kernel, forward_kernel};
use super::{SkipGate, SkipGateGradients, SkipGateInputs, reference};
use crate::cube::{address_type, computes_in_f32, empty, inner, tensor, vector_size};

/// Units of a cube along the channels: neighbours in memory for neighbouring units.
const LANES: u32 = 32;
/// Units of a cube along time.
const ROWS: u32 = 8;
/// Tokens of a unit.
const STEPS: usize = 16;
/// Channels of a unit at most.
const CHANNELS: usize = 4;

/// Buffers of the backward kernel, and one of CubeCL's own.
const BINDINGS: u32 = 11;

impl<R, F, I, T> SkipGate for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn skip_gate_forward(inputs: SkipGateInputs<Self>) -> Tensor<Self, 3> {
        let operands = Operands::new(&inputs);
        if operands.fit(None) {
            tensor(forward(operands))
        } else {
            reference::forward(inputs)
        }
    }

    fn skip_gate_backward(
        inputs: SkipGateInputs<Self>,
        dout: Tensor<Self, 3>,
    ) -> SkipGateGradients<Self> {
        let (operands, gradient) = (Operands::new(&inputs), inner(dout.clone()));
        if !operands.fit(Some(&gradient)) {
            return reference::backward(inputs, dout);
        }
        let [_, _, h, p] = inputs.y.dims();
        let (d_dtype, bias_dtype) = (
            inputs.d.dtype(),
            inputs.z_bias.map_or(inputs.d.dtype(), |bias| bias.dtype()),
        );
        let [dy, dx, dz, shares] = backward(operands, gradient);
        let sums = tensor::<R, Self, 3>(shares).sum_dim(0);
        let of = |k: usize| sums.clone().narrow(1, k, 1);
        SkipGateGradients {
            y: tensor(dy),
            x: tensor(dx),
            d: of(1).reshape([h, p]).sum_dim(1).reshape([h]).cast(d_dtype),
            z: tensor(dz),
            z_bias: of(0).reshape([h * p]).cast(bias_dtype),
        }
    }
}

/// [`SkipGateInputs`] on the device.
struct Operands<R: CubeRuntime> {
    y: CubeTensor<R>,
    x: CubeTensor<R>,
    d: CubeTensor<R>,
    z: CubeTensor<R>,
    z_bias: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Operands<R> {
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor<R>>>(inputs: &SkipGateInputs<B>) -> Self {
        Self {
            y: inner(inputs.y.clone()),
            x: inner(inputs.x.clone()),
            d: inner(inputs.d.clone()),
            z: inner(inputs.z.clone()),
            z_bias: inputs.z_bias.clone().map(inner),
        }
    }

    /// Whether the kernels support these inputs, and the device can bind enough buffers.
    fn fit(&self, dout: Option<&CubeTensor<R>>) -> bool {
        let mut like_x = [&self.y, &self.z].into_iter().chain(dout);
        let mut like_d = self.z_bias.iter();
        like_x.all(|other| other.dtype == self.x.dtype)
            && like_d.all(|other| other.dtype == self.d.dtype)
            && computes_in_f32(self.x.dtype)
            && computes_in_f32(self.d.dtype)
            && self.x.client.properties().hardware.max_bindings >= BINDINGS
    }

    /// Channels of a unit, where `others` are read or written besides.
    fn channels(&self, others: &[&CubeTensor<R>]) -> usize {
        let mut tensors = vec![&self.y, &self.x, &self.z];
        tensors.extend(others);
        vector_size(&tensors).min(CHANNELS)
    }
}

/// Cubes for `[b, l, c]` with `n` channels a unit.
fn cubes([b, l, c]: [usize; 3], n: usize) -> [u32; 3] {
    let along = |units: usize, cube: u32| units.div_ceil(cube as usize) as u32;
    [
        along(c / n, LANES),
        along(l.div_ceil(STEPS), ROWS),
        b as u32,
    ]
}

/// See [`skip_gate`](super::skip_gate).
fn forward<R: CubeRuntime>(inputs: Operands<R>) -> CubeTensor<R> {
    let shape = inputs.z.meta.shape().dims();
    let out = empty(&inputs.x, shape, inputs.x.dtype);
    let n = inputs.channels(&[&out]);
    let [across, down, deep] = cubes(shape, n);
    let width = address_type(&[&inputs.y, &inputs.x, &inputs.z, &out]);
    let (dtype, parameters) = (inputs.x.dtype, inputs.d.dtype);
    // SAFETY: a unit reads and writes its own channels and tokens, which are inside the shapes that
    // `skip_gate` has checked.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &out.client,
            CubeCount::Static(across, down, deep),
            CubeDim::new_2d(LANES, ROWS),
            width,
            n,
            inputs.y.into_tensor_arg(),
            inputs.x.into_tensor_arg(),
            inputs.d.into_tensor_arg(),
            inputs.z.into_tensor_arg(),
            inputs.z_bias.map(CubeTensor::into_tensor_arg).into(),
            out.clone().into_tensor_arg(),
            dtype.into(),
            parameters.into(),
        );
    }
    out
}

/// The gradients of `sum(out * dout)` to y, x and z, and each cube's shares of those to the bias and the
/// skip, `[shares, 2, h * p]` in f32.
fn backward<R: CubeRuntime>(inputs: Operands<R>, gradient: CubeTensor<R>) -> [CubeTensor<R>; 4] {
    let [b, l, h, p] = inputs.y.meta.shape().dims();
    let shape = [b, l, h * p];
    let d_dtype = inputs.d.dtype;
    let dtype = inputs.x.dtype;
    let dy = empty(&inputs.x, [b, l, h, p], dtype);
    let dx = empty(&inputs.x, [b, l, h, p], dtype);
    let dz = empty(&inputs.x, shape, dtype);
    let n = inputs.channels(&[&gradient, &dz, &dy]);
    let [across, down, deep] = cubes(shape, n);
    let shares = empty(&inputs.x, [(down * deep) as usize, 2, h * p], DType::F32);
    let width = address_type(&[&inputs.y, &inputs.x, &inputs.z, &gradient, &dy, &shares]);
    let arg = |x: &CubeTensor<R>| x.clone().into_tensor_arg();
    // SAFETY: as forward; and no two cubes write the same share.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &dy.client,
            CubeCount::Static(across, down, deep),
            CubeDim::new_2d(LANES, ROWS),
            width,
            n,
            inputs.y.into_tensor_arg(),
            inputs.x.into_tensor_arg(),
            inputs.d.into_tensor_arg(),
            inputs.z.into_tensor_arg(),
            inputs.z_bias.map(CubeTensor::into_tensor_arg).into(),
            gradient.into_tensor_arg(),
            arg(&dy),
            arg(&dx),
            arg(&dz),
            arg(&shares),
            dtype.into(),
            d_dtype.into(),
        );
    }
    [dy, dx, dz, shares]
}
