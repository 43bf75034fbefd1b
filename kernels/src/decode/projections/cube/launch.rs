//! The launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

use super::operands::{Input, Normalisation, Projection, Scales};
use super::plan::{BATCH, Part, Plan, alike};
use super::{group, kernels, normalise};
use crate::cube::address_type;
use crate::cube::launch_cache::{
    self, ARRAY, Described, Launcher, arrays, launch, optional, settings,
};
use crate::cube::output_pool::{Allocate, output};
use crate::cube::recording;
use crate::decode::projections::{Activation, Form};

/// What a kernel over projections is made with.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Made {
    width: AddressType,
    parts: Vec<Part>,
    plan: Plan,
    /// Of the weights.
    dtype: DType,
    /// Of every parameter that is no weight.
    small: DType,
}

thread_local! {
    static FAN_OUT: Described<Made> = Described::default();
    static FAN_IN: Described<Made> = Described::default();
    static ROWS: Described<(AddressType, DType)> = Described::default();
}

/// Why there is no launch.
pub(super) enum Refusal {
    /// These dtypes or shapes have no kernel.
    NoKernel,
    /// There are more vectors than the kernel or the device takes at once.
    TooMany { at_once: usize },
}

/// Whether a launch can read these as `P`, the dtype of all small parameters.
fn small_dtype<'a, R: CubeRuntime>(
    tensors: impl Iterator<Item = &'a CubeTensor<R>>,
) -> Option<DType> {
    let mut dtypes = tensors.map(|x| x.dtype);
    let first = dtypes.next().unwrap_or(DType::F32);
    dtypes.all(|dtype| dtype == first).then_some(first)
}

/// An array over `x` in rows without padding.
fn array<R: CubeRuntime>(x: CubeTensor<R>) -> ArrayArg<R> {
    launch_cache::array(&into_contiguous(x))
}

/// What a launch is to be, once it is known that there can be one.
pub(super) struct Ready {
    plan: Plan,
    /// Of every parameter that is no weight.
    small: DType,
}

/// Whether there can be a launch for [`into`].
pub(super) fn ready_out<R: CubeRuntime>(
    x: &CubeTensor<R>,
    norm: &Normalisation<R>,
    projections: &[(Projection<R>, Activation)],
) -> Result<Ready, Refusal> {
    let [b, d]: [usize; 2] = x.meta.shape().dims();
    let biases = projections
        .iter()
        .filter_map(|(projection, _)| projection.bias.as_ref());
    let norms = [&norm.gamma].into_iter().chain(&norm.beta);
    let small = small_dtype(norms.chain(biases));
    // A row lies in one weight, however many there are.
    let alike = alike(projections.iter().map(|(projection, _)| &projection.weight));
    let rows = projections
        .iter()
        .map(|(projection, _)| projection.weight.values.meta.shape()[0]);
    let weights = projections[..1]
        .iter()
        .map(|(projection, _)| &projection.weight);
    let plan = Plan::new(b, rows.sum(), weights, true).map(|plan| Plan {
        centred: norm.beta.is_some(),
        ..plan
    });
    let (Some(plan), Some(small), DType::F32, true) = (plan, small, x.dtype, alike) else {
        return Err(Refusal::NoKernel);
    };
    fitting(plan, small, x, d)
}

/// A launch for the vectors `x`, of which kernels keep `d` numbers each, if it is not for too many.
fn fitting<R: CubeRuntime>(
    plan: Plan,
    small: DType,
    x: &CubeTensor<R>,
    d: usize,
) -> Result<Ready, Refusal> {
    if plan.batch > BATCH {
        return Err(Refusal::TooMany { at_once: BATCH });
    }
    if plan.shared(d) <= x.client.properties().hardware.max_shared_memory_size {
        return Ok(Ready { plan, small });
    }
    match plan.batch {
        1 => Err(Refusal::NoKernel),
        batch => Err(Refusal::TooMany { at_once: batch / 2 }),
    }
}

/// See [`into`](crate::decode::projections::into), with outputs by `allocate`.
pub(super) fn into<R: CubeRuntime>(
    Ready { plan, small }: Ready,
    x: CubeTensor<R>,
    norm: Normalisation<R>,
    projections: Vec<(Projection<R>, Activation)>,
    allocate: Allocate<R>,
) -> Vec<CubeTensor<R>> {
    let [b, d]: [usize; 2] = x.meta.shape().dims();
    let client = x.client.clone();
    let epsilon = norm.epsilon as f32;
    let (gamma, beta) = (into_contiguous(norm.gamma), norm.beta.map(into_contiguous));
    let x = if plan.normalises {
        x
    } else {
        normalised(plan, small, x, &gamma, &beta, epsilon)
    };
    let rows = |projection: &Projection<R>| projection.weight.values.meta.shape()[0];
    let d_outs: Vec<_> = projections
        .iter()
        .map(|(projection, _)| rows(projection))
        .collect();
    let mut first_cube = 0;
    let mut args = Args::new(projections.len());
    let mut outputs = Vec::with_capacity(projections.len());
    for ((projection, activation), cubes) in projections.into_iter().zip(plan.cubes(&d_outs)) {
        outputs.push(allocate(&x, [b, rows(&projection)], DType::F32));
        args.add(projection, d, first_cube, cubes, activation);
        first_cube += cubes;
    }
    let settings = settings(plan.units(), args.width);
    let mut launcher = Launcher::<R>::new(settings.clone());
    let (wide, narrow) = (DType::F32.into(), small.into());
    let (input, param) = (Type::new(wide), Type::new(narrow));
    launcher.array(array(x), input.with_vector_size(plan.input));
    for x in [Some(gamma), beta].into_iter().flatten() {
        launcher.array(array(x), param.with_vector_size(plan.input));
    }
    launcher.scalar(epsilon);
    let made = args.register(plan, small, &mut launcher);
    for output in &outputs {
        launcher.array(launch_cache::array(output), Type::new(wide));
    }
    let n = outputs.len();
    let describe = |made: Made| {
        let scales = if plan.form == Form::Float { 0 } else { n };
        let biases = made.parts.iter().filter(|part| part.bias.is_some()).count();
        kernels::project_into::ProjectInto::<R>::new(
            settings,
            client.clone(),
            ARRAY,
            ARRAY,
            optional(plan.centred),
            (),
            arrays(n),
            arrays(scales),
            arrays(biases),
            arrays(n),
            plan.elements(),
            plan.input,
            made.parts,
            plan,
            made.dtype.into(),
            narrow,
        )
    };
    let kernel = FAN_OUT.with(|known| known.get(&outputs[0], made, describe));
    let count = CubeCount::Static(first_cube as u32, 1, 1);
    // SAFETY: every unit reads and writes within the lengths that `parts` and `plan` give, which are those
    // of the tensors, and each output is written by one unit.
    unsafe { launch(launcher, count, kernel, &outputs[0]) };
    outputs
}

/// The vectors of `x`, each normalised by a cube of its own.
fn normalised<R: CubeRuntime>(
    plan: Plan,
    small: DType,
    x: CubeTensor<R>,
    gamma: &CubeTensor<R>,
    beta: &Option<CubeTensor<R>>,
    epsilon: f32,
) -> CubeTensor<R> {
    let [b, d]: [usize; 2] = x.meta.shape().dims();
    let normed = output(&x, [b, d], DType::F32);
    recording::launches();
    // SAFETY: every unit reads and writes within its cube's vector, of which there are `b` of length `d`.
    unsafe {
        normalise::normalise_each::launch_unchecked::<R>(
            &normed.client,
            CubeCount::Static(b as u32, 1, 1),
            CubeDim::new_1d(plan.units() as u32),
            AddressType::default(),
            plan.input,
            array(x),
            array(gamma.clone()),
            beta.clone().map(array).into(),
            epsilon,
            launch_cache::array(&normed),
            d,
            plan,
            small.into(),
        );
    }
    normed
}

/// Whether there can be a launch for [`out_of`], whose inputs all have a gate or all have none.
pub(super) fn ready_in<R: CubeRuntime>(
    x: &CubeTensor<R>,
    inputs: &[(Input<R>, Projection<R>)],
) -> Result<Ready, Refusal> {
    let [b, d]: [usize; 2] = x.meta.shape().dims();
    let small = small_dtype(
        inputs
            .iter()
            .filter_map(|(_, projection)| projection.bias.as_ref()),
    );
    let wide = |x: &CubeTensor<R>| x.dtype == DType::F32;
    let all_wide = inputs
        .iter()
        .all(|(input, _)| wide(&input.u) && input.gate.as_ref().is_none_or(wide));
    let plan = Plan::new(
        b,
        d,
        inputs.iter().map(|(_, projection)| &projection.weight),
        false,
    )
    .map(|plan| Plan {
        gated: inputs[0].0.gate.is_some(),
        ..plan
    });
    let (Some(plan), Some(small), DType::F32, true) = (plan, small, x.dtype, all_wide) else {
        return Err(Refusal::NoKernel);
    };
    fitting(plan, small, x, 0)
}

/// See [`out_of`](crate::decode::projections::out_of).
pub(super) fn out_of<R: CubeRuntime>(
    Ready { plan, small }: Ready,
    x: CubeTensor<R>,
    inputs: Vec<(Input<R>, Projection<R>)>,
) -> CubeTensor<R> {
    let [b, d]: [usize; 2] = x.meta.shape().dims();
    let client = x.client.clone();
    let output = output(&x, [b, d], DType::F32);
    let mut args = Args::new(inputs.len());
    let mut read = Vec::with_capacity(inputs.len());
    let mut gates = Vec::new();
    let groups = d.div_ceil(plan.cube_rows());
    let cubes = groups * plan.cubes_of_group;
    for (Input { u, gate }, projection) in inputs {
        let d_in = u.meta.shape()[1];
        read.push(array(u));
        gates.extend(gate.map(array));
        args.add(projection, d_in, 0, cubes, Activation::Identity);
    }
    let n = read.len();
    let settings = settings(plan.units(), args.width);
    let mut launcher = Launcher::<R>::new(settings.clone());
    let wide = Type::new(DType::F32.into());
    launcher.array(array(x), wide);
    for u in read.into_iter().chain(gates) {
        launcher.array(u, wide.with_vector_size(plan.input));
    }
    let made = args.register(plan, small, &mut launcher);
    if plan.cubes_of_group > 1 {
        let word = StorageType::Atomic(ElemType::UInt(UIntKind::U32));
        let exchange = group::exchange(&output, plan, groups);
        launcher.array(launch_cache::array(&exchange), Type::new(word));
    }
    launcher.array(launch_cache::array(&output), wide);
    let describe = |made: Made| {
        let exchanges = usize::from(plan.cubes_of_group > 1);
        let scales = if plan.form == Form::Float { 0 } else { n };
        let gates = if plan.gated { n } else { 0 };
        let biases = made.parts.iter().filter(|part| part.bias.is_some()).count();
        kernels::project_out_of::ProjectOutOf::<R>::new(
            settings,
            client.clone(),
            ARRAY,
            arrays(n),
            arrays(gates),
            arrays(n),
            arrays(scales),
            arrays(biases),
            arrays(exchanges),
            ARRAY,
            plan.elements(),
            plan.input,
            made.parts,
            plan,
            made.dtype.into(),
            small.into(),
        )
    };
    let kernel = FAN_IN.with(|known| known.get(&output, made, describe));
    let count = CubeCount::Static(cubes as u32, 1, 1);
    // SAFETY: as in `into`; and what cubes exchange has a word for each of their outputs and each group, which no other
    // launch uses at the same time, since those of a thread come one after another.
    unsafe { launch(launcher, count, kernel, &output) };
    output
}

/// The projections' part of a launch.
struct Args<R: CubeRuntime> {
    weights: Vec<ArrayArg<R>>,
    scales: Vec<ArrayArg<R>>,
    biases: Vec<ArrayArg<R>>,
    parts: Vec<Part>,
    width: AddressType,
    /// Of the weights.
    dtype: DType,
}

impl<R: CubeRuntime> Args<R> {
    fn new(parts: usize) -> Self {
        Self {
            weights: Vec::with_capacity(parts),
            scales: Vec::new(),
            biases: Vec::with_capacity(parts),
            parts: Vec::with_capacity(parts),
            width: AddressType::default(),
            dtype: DType::F32,
        }
    }

    fn add(
        &mut self,
        projection: Projection<R>,
        d_in: usize,
        first_cube: usize,
        cubes: usize,
        activation: Activation,
    ) {
        let values = projection.weight.values;
        self.width = self.width.max(address_type(&[&values]));
        self.dtype = values.dtype;
        self.parts.push(Part {
            d_out: values.meta.shape()[0],
            d_in,
            first_cube,
            cubes,
            bias: projection.bias.is_some().then_some(self.biases.len()),
            activation,
        });
        self.weights.push(array(values));
        match projection.weight.scales {
            Scales::None => {}
            Scales::OfRows(scales) | Scales::OfGroups(scales) => self.scales.push(array(scales)),
        }
        self.biases.extend(projection.bias.map(array));
    }

    /// Hands over the buffers of weights, scales and biases, in this order, and says what the kernel is made
    /// with.
    fn register(self, plan: Plan, small: DType, launcher: &mut Launcher<R>) -> Made {
        let weight = Type::new(self.dtype.into()).with_vector_size(plan.elements());
        for values in self.weights {
            launcher.array(values, weight);
        }
        for scales in self.scales {
            launcher.array(scales, Type::new(DType::U32.into()));
        }
        for bias in self.biases {
            launcher.array(bias, Type::new(small.into()));
        }
        Made {
            width: self.width,
            parts: self.parts,
            plan,
            dtype: self.dtype,
            small,
        }
    }
}

/// Units of a cube that reads rows of a table.
const ROW_UNITS: usize = 256;

/// See [`rows`](crate::decode::projections::rows).
pub(crate) fn rows<R: CubeRuntime>(table: CubeTensor<R>, ids: CubeTensor<R>) -> CubeTensor<R> {
    let ([_, d], [b]) = (table.meta.shape().dims(), ids.meta.shape().dims());
    let output = output(&table, [b, d], DType::F32);
    let (client, width, dtype) = (table.client.clone(), address_type(&[&table]), table.dtype);
    let settings = settings(ROW_UNITS, width);
    let mut launcher = Launcher::<R>::new(settings.clone());
    let wide = Type::new(DType::F32.into());
    launcher.array(array(table), Type::new(dtype.into()));
    launcher.array(array(ids), Type::new(DType::I32.into()));
    launcher.array(launch_cache::array(&output), wide);
    launcher.size(d);
    let kernel = ROWS.with(|known| {
        known.get(&output, (width, dtype), |_| {
            let client = client.clone();
            kernels::rows::Rows::<R>::new(settings, client, ARRAY, ARRAY, ARRAY, (), dtype.into())
        })
    });
    let count = CubeCount::Static(d.div_ceil(ROW_UNITS) as u32, b as u32, 1);
    // SAFETY: ids are below the table's length, as the caller promises, those below 0 count as 0, and a unit writes its own
    // number.
    unsafe { launch(launcher, count, kernel, &output) };
    output
}
