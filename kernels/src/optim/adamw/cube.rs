//! As CubeCL kernels: a step is one launch in place for several parameters; norms are one launch for several tensors,
//! which leaves the sums of its cubes in a part of one buffer, and one that adds these up in their order. All in f32.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::{AdamW, AdamWStep, Update, Updated, reference, within};
use crate::cube::each_row::cubes as cubes_of;
use crate::cube::reduce::{Fold, of_cube};
use crate::cube::{
    address_type, computes_in_f32, empty, flat_vector_size, inner, own, tensor, together,
};

const UNITS: usize = 256;
/// Vectors that a unit reads before it adds any of them up, so that several reads are under way.
const AHEAD: usize = 4;
/// Elements of a cube of [`norm_kernel`], at least, and cubes of a tensor, at most.
const SHARE: usize = 1 << 14;
const CUBES: usize = 1024;

/// A vector a unit. A tensor's cubes are those before its place in `ends` and from that of the tensor before it on. What is
/// updated of a parameter begins at its vector of that number in `starts`.
/// `scale` is followed by the numbers of the step in the order of [`AdamWStep`].
#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<G: Float, N: Size>(
    parameters: &mut Sequence<Array<Vector<f32, N>>>,
    ms: &mut Sequence<Array<Vector<f32, N>>>,
    vs: &mut Sequence<Array<Vector<f32, N>>>,
    gradients: &Sequence<Array<Vector<G, N>>>,
    ends: &Sequence<u32>,
    vectors: &Sequence<u32>,
    starts: &Sequence<u32>,
    scale: &Array<f32>,
    keep: f32,
    rate: f32,
    beta1: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    epsilon: f32,
    #[comptime] count: usize,
    #[define(G)] _gradient_dtype: StorageType,
) {
    let cube = CUBE_POS as u32;
    let scale = scale[0];
    // By its bits, as no comparison can be trusted to find NaN and infinities.
    let finite = (u32::reinterpret(scale) & 0x7f80_0000u32) != 0x7f80_0000u32;
    let mut first = 0u32;
    #[unroll]
    for i in 0..count {
        let end = *ends.index(i);
        let at = (cube - first) as usize * UNITS + UNIT_POS as usize;
        if finite && cube >= first && cube < end && at < *vectors.index(i) as usize {
            let parameter = parameters.index_mut(i);
            let m = ms.index_mut(i);
            let v = vs.index_mut(i);
            let gradient = gradients.index(i);
            let g = Vector::<f32, N>::cast_from(gradient[at]) * Vector::new(scale);
            let new_m = m[at] * Vector::new(beta1) + g * Vector::new(new1);
            let new_v = v[at] * Vector::new(beta2) + g * g * Vector::new(new2);
            let root = Vector::sqrt(new_v * Vector::new(root)) + Vector::new(epsilon);
            m[at] = new_m;
            v[at] = new_v;
            let within = *starts.index(i) as usize + at;
            parameter[within] =
                parameter[within] * Vector::new(keep) - new_m * Vector::new(rate) / root;
        }
        first = end;
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
        moments: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        let shape = parameter.dims();
        let flat = |x: Tensor<Self, D>| x.reshape([shape.iter().product::<usize>()]);
        let update = Update {
            parameter: flat(parameter),
            start: 0,
            gradient: flat(gradient),
            moments: moments.map(flat),
            step,
        };
        let mut done = Self::adamw_steps(vec![update], scale);
        let (parameter, moments) = done.swap_remove(0);
        let whole = |x: Tensor<Self, 1>| x.reshape(shape);
        (whole(parameter), moments.map(whole))
    }

    fn adamw_steps(updates: Vec<Update<Self>>, scale: Tensor<Self, 1>) -> Vec<Updated<Self>> {
        let has_kernel = |update: &Update<Self>| {
            let of_f32 = [&update.parameter, &update.moments[0], &update.moments[1]];
            of_f32.into_iter().all(|x| x.dtype() == DType::F32)
                && computes_in_f32(update.gradient.dtype())
                && scale.dtype() == DType::F32
                && update.gradient.shape().num_elements() > 0
        };
        let mut updated: Vec<Option<Updated<Self>>> = vec![];
        let mut operands = vec![];
        for (at, update) in updates.into_iter().enumerate() {
            if has_kernel(&update) {
                updated.push(None);
                operands.push((at, Operands::new(update)));
            } else {
                let step = |parameter, gradient, moments, numbers| {
                    reference::step(parameter, gradient, moments, scale.clone(), numbers)
                };
                updated.push(Some(within(update, step)));
            }
        }
        let scale = into_contiguous(inner(scale));
        // Four arrays each, and the scale.
        let most = together::most(&scale, 4, 1);
        for group in together::groups(operands, most, |(_, operands)| operands.key()) {
            launch_step(group.iter().map(|(_, operands)| operands), &scale);
            for (
                at,
                Operands {
                    parameter, m, v, ..
                },
            ) in group
            {
                updated[at] = Some((tensor(parameter), [tensor(m), tensor(v)]));
            }
        }
        updated.into_iter().flatten().collect()
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

/// [`Update`] on the device, in memory of its own: parameter and moments of f32.
struct Operands<R: CubeRuntime> {
    parameter: CubeTensor<R>,
    start: usize,
    m: CubeTensor<R>,
    v: CubeTensor<R>,
    gradient: CubeTensor<R>,
    step: AdamWStep,
}

impl<R: CubeRuntime> Operands<R> {
    fn new<B: Backend<FloatTensorPrimitive = CubeTensor<R>>>(update: Update<B>) -> Self {
        let [m, v] = update.moments.map(|moment| own(inner(moment)));
        Self {
            parameter: own(inner(update.parameter)),
            start: update.start,
            m,
            v,
            gradient: into_contiguous(inner(update.gradient)),
            step: update.step,
        }
    }

    /// Elements that are read together.
    fn vector(&self) -> usize {
        let n = flat_vector_size(&[&self.parameter, &self.m, &self.gradient]);
        if self.start.is_multiple_of(n) { n } else { 1 }
    }

    /// Vectors that are updated.
    fn vectors(&self) -> usize {
        self.gradient.meta.num_elements() / self.vector()
    }

    /// What is one for all parameters of a launch.
    fn key(&self) -> (DType, usize, AdamWStep) {
        (self.gradient.dtype, self.vector(), self.step)
    }
}

/// The step of parameters with one [key](Operands::key).
fn launch_step<'a, R: CubeRuntime>(
    group: impl Iterator<Item = &'a Operands<R>>,
    scale: &CubeTensor<R>,
) {
    let group: Vec<_> = group.collect();
    let Some(first) = group.first() else {
        return;
    };
    let (n, step, dtype) = (first.vector(), first.step, first.gradient.dtype);
    let [correction1, correction2] = step.bias_corrections();
    let client = first.parameter.client.clone();
    let cubes = group
        .iter()
        .map(|operands| operands.vectors().div_ceil(UNITS));
    let ends = together::ends(cubes);
    let [across, down] = cubes_of(ends.last().copied().unwrap_or(0) as usize);
    let widths = group
        .iter()
        .map(|operands| address_type(&[&operands.parameter]));
    let width = widths.max().unwrap_or_default();
    let arrays = |of: fn(&Operands<R>) -> &CubeTensor<R>| {
        let arrays = group
            .iter()
            .map(|operands| of(operands).clone().into_array_arg());
        arrays.collect::<Vec<_>>().into_iter()
    };
    // SAFETY: units beyond the vectors of a tensor do nothing in it; moments and gradient of each have as many, and the
    // parameter has as many from its start on; a unit writes its own vector in memory that nothing else holds.
    unsafe {
        step_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            width,
            n,
            arrays(|operands| &operands.parameter).collect(),
            arrays(|operands| &operands.m).collect(),
            arrays(|operands| &operands.v).collect(),
            arrays(|operands| &operands.gradient).collect(),
            ends.into_iter().collect(),
            group
                .iter()
                .map(|operands| operands.vectors() as u32)
                .collect(),
            group
                .iter()
                .map(|operands| (operands.start / n) as u32)
                .collect(),
            scale.clone().into_array_arg(),
            (1.0 - step.lr * step.weight_decay) as f32,
            (step.lr / correction1) as f32,
            step.beta1 as f32,
            (1.0 - step.beta1) as f32,
            step.beta2 as f32,
            (1.0 - step.beta2) as f32,
            (1.0 / correction2) as f32,
            step.epsilon as f32,
            group.len(),
            dtype.into(),
        );
    }
}

/// The sum of the squares of what a cube reads, to `partials[base + CUBE_POS]`. A tensor's cubes are as in
/// [`step_kernel`].
#[cube(launch_unchecked, address_type = "dynamic")]
fn norm_kernel<F: Float, N: Size>(
    xs: &Sequence<Array<Vector<F, N>>>,
    ends: &Sequence<u32>,
    vectors: &Sequence<u32>,
    partials: &mut Array<f32>,
    base: u32,
    #[comptime] count: usize,
    #[comptime] n: usize,
    #[define(F)] _dtype: StorageType,
) {
    let cube = CUBE_POS_X;
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut first = 0u32;
    #[unroll]
    for k in 0..count {
        let end = *ends.index(k);
        if cube >= first && cube < end {
            let x = xs.index(k);
            let vectors = *vectors.index(k) as usize;
            let stride = (end - first) as usize * UNITS;
            let own = (cube - first) as usize * UNITS + UNIT_POS as usize;
            for start in range_stepped(own, vectors, stride * AHEAD) {
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
        }
        first = end;
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..n {
        sum += sums[i];
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let sum = of_cube(sum, &mut shared, Fold::Sum, UNITS);
    if UNIT_POS == 0 {
        partials[base as usize + cube as usize] = sum;
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
    let xs = xs.into_iter().filter(|x| cubes(x) > 0).map(into_contiguous);
    let key = |x: &CubeTensor<R>| (x.dtype, flat_vector_size(&[x]));
    let mut base = 0;
    for group in together::groups(xs, together::most(&total, 1, 1), key) {
        let (dtype, n) = key(&group[0]);
        let ends = together::ends(group.iter().map(cubes));
        let count = ends.last().copied().unwrap_or(0);
        let widths = group.iter().map(|x| address_type(&[x]));
        let width = widths.max().unwrap_or_default();
        let vectors = group.iter().map(|x| (x.meta.num_elements() / n) as u32);
        let (vectors, tensors) = (vectors.collect(), group.len());
        // SAFETY: units read below the vectors of each tensor, and each cube writes one partial sum, below `count`
        // of all.
        unsafe {
            norm_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                n,
                group.into_iter().map(CubeTensor::into_array_arg).collect(),
                ends.into_iter().collect(),
                vectors,
                partials.clone().into_array_arg(),
                base,
                tensors,
                n,
                dtype.into(),
            );
        }
        base += count;
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
