//! As CubeCL kernels: one pass over memory forward, and one backward with a small sum after it, summed in
//! f32. For scans that do not apply their epilogue themselves.

mod kernels;

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use self::kernels::{backward_kernel, forward_kernel};
use super::{GatedSkipGradients, reference};
use crate::KernelBackend;
use crate::cube::{address_type, empty, inner, is_taken, tensor, vector_size};

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

/// The op's inputs, shaped as in [`gated_skip`](super::gated_skip).
struct Inputs<R: CubeRuntime> {
    y: CubeTensor<R>,
    x: CubeTensor<R>,
    d: CubeTensor<R>,
    z: CubeTensor<R>,
    z_bias: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Inputs<R> {
    /// Whether the kernels read what is there, on a device that binds as much.
    fn fit(&self, dout: Option<&CubeTensor<R>>) -> bool {
        let mut like_x = [&self.y, &self.z].into_iter().chain(dout);
        let mut like_d = self.z_bias.iter();
        like_x.all(|other| other.dtype == self.x.dtype)
            && like_d.all(|other| other.dtype == self.d.dtype)
            && is_taken(self.x.dtype)
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

/// See [`gated_skip`](super::gated_skip).
pub(crate) fn forward<R, B>(
    y: Tensor<B, 4>,
    x: Tensor<B, 4>,
    d: Tensor<B, 1>,
    z: Tensor<B, 3>,
    z_bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 3>
where
    R: CubeRuntime,
    B: KernelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let shape = z.dims();
    let inputs = Inputs {
        y: inner(y.clone()),
        x: inner(x.clone()),
        d: inner(d.clone()),
        z: inner(z.clone()),
        z_bias: z_bias.clone().map(inner),
    };
    if !inputs.fit(None) {
        return reference::forward(y, x, d, z, z_bias);
    }
    let out = empty(&inputs.x, shape, inputs.x.dtype);
    let n = inputs.channels(&[&out]);
    let [across, down, deep] = cubes(shape, n);
    let width = address_type(&[&inputs.y, &inputs.x, &inputs.z, &out]);
    let (dtype, parameters) = (inputs.x.dtype, inputs.d.dtype);
    // SAFETY: a unit reads and writes its own channels and tokens, which are inside the shapes that
    // `gated_skip` has checked.
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
    tensor(out)
}

/// The gradients of `sum(out * dout)`.
pub(crate) fn backward<R, B>(
    y: Tensor<B, 4>,
    x: Tensor<B, 4>,
    d: Tensor<B, 1>,
    z: Tensor<B, 3>,
    z_bias: Option<Tensor<B, 1>>,
    dout: Tensor<B, 3>,
) -> GatedSkipGradients<B>
where
    R: CubeRuntime,
    B: KernelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [b, l, h, p] = y.dims();
    let shape = [b, l, h * p];
    let (d_dtype, bias_dtype) = (d.dtype(), z_bias.as_ref().map_or(d.dtype(), Tensor::dtype));
    let inputs = Inputs {
        y: inner(y.clone()),
        x: inner(x.clone()),
        d: inner(d.clone()),
        z: inner(z.clone()),
        z_bias: z_bias.clone().map(inner),
    };
    let gradient = inner(dout.clone());
    if !inputs.fit(Some(&gradient)) {
        return reference::backward(y, x, d, z, z_bias, dout);
    }
    let dtype = inputs.x.dtype;
    let dy = empty(&inputs.x, [b, l, h, p], dtype);
    let dx = empty(&inputs.x, [b, l, h, p], dtype);
    let dz = empty(&inputs.x, shape, dtype);
    let n = inputs.channels(&[&gradient, &dz, &dy]);
    let [across, down, deep] = cubes(shape, n);
    let shares = empty(&inputs.x, [(down * deep) as usize, 2, h * p], DType::F32);
    let width = address_type(&[&inputs.y, &inputs.x, &inputs.z, &gradient, &dy, &shares]);
    let arg = |x: &CubeTensor<R>| x.clone().into_tensor_arg();
    // SAFETY: as forward; and each cube writes a share of its own.
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
    let sums = tensor::<R, B, 3>(shares).sum_dim(0);
    let of = |k: usize| sums.clone().narrow(1, k, 1);
    GatedSkipGradients {
        y: tensor(dy),
        x: tensor(dx),
        d: of(1).reshape([h, p]).sum_dim(1).reshape([h]).cast(d_dtype),
        z: tensor(dz),
        z_bias: of(0).reshape([h * p]).cast(bias_dtype),
    }
}
