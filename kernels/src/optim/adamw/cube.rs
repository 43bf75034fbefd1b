//! As CubeCL kernels: a step is one launch in place; norms are one launch a tensor, each leaving the sums of
//! its cubes in a part of one buffer, and one that adds these up in their order. All in f32.

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{AdamW, AdamWStep, reference};
use crate::cube::reduce::{Fold, of_cube};
use crate::cube::{address_type, computes_in_f32, empty, flat_vector_size, inner, own, tensor};

const UNITS: usize = 256;
/// Vectors that a unit reads before it adds any of them up, so that several reads are under way.
const AHEAD: usize = 4;
/// Elements of a cube of [`norm_kernel`], at least, and cubes of a tensor, at most.
const SHARE: usize = 1 << 14;
const CUBES: usize = 1024;

/// A vector a unit. `scale` first, then the numbers of the step in the order of [`AdamWStep`].
#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<G: Float, N: Size>(
    parameter: &mut Array<Vector<f32, N>>,
    m: &mut Array<Vector<f32, N>>,
    v: &mut Array<Vector<f32, N>>,
    gradient: &Array<Vector<G, N>>,
    scale: &Array<f32>,
    vectors: u32,
    keep: f32,
    rate: f32,
    beta1: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    epsilon: f32,
    #[define(G)] _gradient_dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    let scale = scale[0];
    // By its bits, as no comparison can be trusted to find NaN and infinities.
    let finite = (u32::reinterpret(scale) & 0x7f80_0000u32) != 0x7f80_0000u32;
    if at < vectors as usize && finite {
        let g = Vector::<f32, N>::cast_from(gradient[at]) * Vector::new(scale);
        let new_m = m[at] * Vector::new(beta1) + g * Vector::new(new1);
        let new_v = v[at] * Vector::new(beta2) + g * g * Vector::new(new2);
        let root = Vector::sqrt(new_v * Vector::new(root)) + Vector::new(epsilon);
        m[at] = new_m;
        v[at] = new_v;
        parameter[at] = parameter[at] * Vector::new(keep) - new_m * Vector::new(rate) / root;
    }
}

impl<R, F, I, T> AdamW for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        [m, v]: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        let single = |x: &Tensor<Self, D>| x.dtype() == DType::F32;
        let fits = [&parameter, &m, &v].into_iter().all(single)
            && computes_in_f32(gradient.dtype())
            && scale.dtype() == DType::F32;
        if !fits || parameter.shape().num_elements() == 0 {
            return reference::step(parameter, gradient, [m, v], scale, step);
        }
        let moments = [inner(m), inner(v)];
        let (parameter, moments) = update(
            inner(parameter),
            inner(gradient),
            moments,
            inner(scale),
            step,
        );
        (tensor(parameter), moments.map(tensor))
    }

    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        if computes_in_f32(x.dtype()) {
            tensor(squared_norms(vec![inner(x)]))
        } else {
            reference::squared_norm(x)
        }
    }

    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        if xs.iter().all(|x| computes_in_f32(x.dtype())) {
            tensor(squared_norms(xs.into_iter().map(inner).collect()))
        } else {
            reference::squared_norms(xs)
        }
    }
}

/// See [`adamw_step`](super::adamw_step): parameter and moments of f32, the scale too.
fn update<R: CubeRuntime>(
    parameter: CubeTensor<R>,
    gradient: CubeTensor<R>,
    [m, v]: [CubeTensor<R>; 2],
    scale: CubeTensor<R>,
    step: AdamWStep,
) -> (CubeTensor<R>, [CubeTensor<R>; 2]) {
    let (parameter, m, v) = (own(parameter), own(m), own(v));
    let gradient = into_contiguous(gradient);
    let n = flat_vector_size(&[&parameter, &gradient]);
    let vectors = parameter.meta.num_elements() / n;
    let [correction1, correction2] = step.bias_corrections();
    let (client, cube) = (parameter.client.clone(), CubeDim::new_1d(UNITS as u32));
    let dtype = gradient.dtype;
    // SAFETY: units beyond the vectors of the four tensors, which have one shape, do nothing, and a unit
    // writes its own vector in memory that nothing else holds.
    unsafe {
        step_kernel::launch_unchecked::<R>(
            &client,
            calculate_cube_count_elemwise(&client, vectors, cube),
            cube,
            address_type(&[&parameter]),
            n,
            parameter.clone().into_array_arg(),
            m.clone().into_array_arg(),
            v.clone().into_array_arg(),
            gradient.into_array_arg(),
            into_contiguous(scale).into_array_arg(),
            vectors as u32,
            (1.0 - step.lr * step.weight_decay) as f32,
            (step.lr / correction1) as f32,
            step.beta1 as f32,
            (1.0 - step.beta1) as f32,
            step.beta2 as f32,
            (1.0 - step.beta2) as f32,
            (1.0 / correction2) as f32,
            step.epsilon as f32,
            dtype.into(),
        );
    }
    (parameter, [m, v])
}

/// The sum of the squares of what a cube reads, to `partials[first + CUBE_POS]`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn norm_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    partials: &mut Array<f32>,
    vectors: u32,
    first: u32,
    #[comptime] n: usize,
    #[define(F)] _dtype: StorageType,
) {
    let vectors = vectors as usize;
    let stride = CUBE_COUNT_X as usize * UNITS;
    let mut sums = Vector::<f32, N>::new(0.0f32);
    for start in range_stepped(ABSOLUTE_POS_X as usize, vectors, stride * AHEAD) {
        let mut read = Array::<Vector<F, N>>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            read[i] = x[clamp_max(start + i * stride, vectors - 1)];
        }
        #[unroll]
        for i in 0..AHEAD {
            if start + i * stride < vectors {
                let value = Vector::<f32, N>::cast_from(read[i]);
                sums += value * value;
            }
        }
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..n {
        sum += sums[i];
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let sum = of_cube(sum, &mut shared, Fold::Sum, UNITS);
    if UNIT_POS == 0 {
        partials[first as usize + CUBE_POS_X as usize] = sum;
    }
}

/// Adds up the partial sums, by one cube.
#[cube(launch_unchecked)]
fn add_kernel(partials: &Array<f32>, total: &mut Array<f32>, count: u32, #[comptime] units: usize) {
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, count as usize, units) {
        sum += partials[i];
    }
    let mut shared = SharedMemory::<f32>::new(units);
    let sum = of_cube(sum, &mut shared, Fold::Sum, units);
    if UNIT_POS == 0 {
        total[0] = sum;
    }
}

/// See [`squared_norms`](super::squared_norms): tensors of f32 or half precision.
fn squared_norms<R: CubeRuntime>(xs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let cubes = |x: &CubeTensor<R>| x.meta.num_elements().div_ceil(SHARE).min(CUBES);
    let count: usize = xs.iter().map(cubes).sum();
    let client = xs[0].client.clone();
    // At least one element, as there are no buffers of none.
    let partials = empty(&xs[0], [count.max(1)], DType::F32);
    let total = empty(&xs[0], [1], DType::F32);
    let mut first = 0;
    for x in xs {
        let cubes = cubes(&x);
        if cubes == 0 {
            continue;
        }
        let x = into_contiguous(x);
        let n = flat_vector_size(&[&x]);
        let (vectors, dtype) = (x.meta.num_elements() / n, x.dtype);
        // SAFETY: units read below `vectors`, and each cube writes one partial sum, below `count`.
        unsafe {
            norm_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                address_type(&[&x]),
                n,
                x.into_array_arg(),
                partials.clone().into_array_arg(),
                vectors as u32,
                first as u32,
                n,
                dtype.into(),
            );
        }
        first += cubes;
    }
    // Of the units that a cube may have, as many as halve to one.
    let most = client.properties().hardware.max_units_per_cube.min(1024);
    let units = 1 << most.ilog2();
    // SAFETY: units read below `count`, and one writes the one element.
    unsafe {
        add_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(units),
            partials.into_array_arg(),
            total.clone().into_array_arg(),
            count as u32,
            units as usize,
        );
    }
    total
}
