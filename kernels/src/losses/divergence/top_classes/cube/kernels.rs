//! The kernels and their launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, mean, with_rows};
use crate::cube::reduce::{FOLDERS, Fold, in_two_steps};
use crate::cube::{address_type, empty, vector_size};
use crate::losses::divergence::Divergence;
use crate::losses::predictions::DistillationWeights;

/// Units of a cube at most: so many that few rows are under way at once, which a cache then holds.
const UNITS: usize = 1024;
/// Units of a cube that puts the gradients of a token's ids into their places.
const PUTTERS: usize = 64;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    units: usize,
    /// Ids of a token whose probabilities are known.
    k: usize,
    /// Words of the bitmap of the vocabulary.
    words: usize,
    /// Whether there are other ids.
    has_others: bool,
    is_reverse: bool,
}

fn units<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    let most = client.properties().hardware.max_units_per_cube as usize;
    most.min(UNITS) / FOLDERS * FOLDERS
}

/// Whether a cube has memory for a number of each unit, three of each of `k` ids, and a bit of each of `v`.
pub(super) fn fits_shared_memory<R: CubeRuntime>(
    client: &ComputeClient<R>,
    v: usize,
    k: usize,
) -> bool {
    let numbers = units(client) + 3 * k + v.div_ceil(32);
    numbers * size_of::<f32>() <= client.properties().hardware.max_shared_memory_size
}

/// The logit of `id` in the row that begins at `first`, in vectors.
#[cube]
fn logit_of<S: Float, N: Size>(student_tv: &Tensor<Vector<S, N>>, first: usize, id: usize) -> f32 {
    let logits = Vector::<f32, N>::cast_from(student_tv[first + id / N::value()]);
    let mut logit = logits[0];
    #[unroll]
    for lane in 1..N::value() {
        if id % N::value() == lane {
            logit = logits[lane];
        }
    }
    logit
}

/// What a class adds to the loss, by its probability, its logarithm and the teacher's.
#[cube]
fn term_of(p: f32, log_p: f32, log_q: f32, #[comptime] is_reverse: bool) -> f32 {
    let mut term = -log_q.exp() * log_p;
    if comptime!(is_reverse) {
        term = p * (log_p - log_q);
    }
    term
}

/// Its slope, as of `Divergence::terms`.
#[cube]
fn slope_of(p: f32, log_p: f32, log_q: f32, #[comptime] is_reverse: bool) -> f32 {
    let mut slope = -log_q.exp();
    if comptime!(is_reverse) {
        slope = p * (log_p - log_q);
    }
    slope
}

/// The losses of tokens, and their gradients to the student's logits times `factor`: `gradient_tv` of all ids as if none
/// were the teacher's, and `top_tk` of those that are.
#[cube(launch_unchecked, address_type = "dynamic")]
fn tokens_kernel<S: Float, N: Size>(
    student_tv: &Tensor<Vector<S, N>>,
    ids_tk: &Array<i32>,
    log_q_tk: &Array<f32>,
    log_rest_t: &Array<f32>,
    labels_t: &ComptimeOption<Array<i32>>,
    losses_t: &mut Array<f32>,
    gradient_tv: &mut Tensor<Vector<S, N>>,
    top_tk: &mut Array<f32>,
    scale: f32,
    hard: f32,
    factor: f32,
    #[comptime] plan: Plan,
    #[define(S)] _dtype: StorageType,
) {
    let token = CUBE_POS;
    if token >= student_tv.shape(0) {
        terminate!();
    }
    let (units, k) = comptime!((plan.units, plan.k));
    let unit = UNIT_POS as usize;
    let v = student_tv.shape(1);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut ids = SharedMemory::<u32>::new(k);
    // The logits of these ids below the largest, and the slopes of their classes.
    let mut below_k = SharedMemory::<f32>::new(k);
    let mut slopes_k = SharedMemory::<f32>::new(k);
    let mut marks = SharedMemory::<u32>::new(comptime!(plan.words));

    let mut word = unit;
    while word < comptime!(plan.words) {
        marks[word] = 0u32;
        word += units;
    }
    let mut i = unit;
    while i < k {
        // As a negative one is too, read without its sign: an id that there is no logit for.
        ids[i] = ids_tk[token * k + i] as u32;
        i += units;
    }
    sync_cube();
    let mut unknown = 0.0f32;
    let mut i = unit;
    while i < k {
        if (ids[i] as usize) < v {
            // Units whose ids share a word write the same one.
            let word = ids[i] / 32;
            let mut mask = 0u32;
            for j in 0..k {
                if ids[j] / 32 == word {
                    mask |= 1u32 << (ids[j] % 32);
                }
            }
            marks[word as usize] = mask;
        } else {
            unknown += 1.0f32;
        }
        i += units;
    }
    sync_cube();

    let vectors = v / N::value();
    let turns = (vectors + comptime!(units - 1) - unit) / units;
    let first = token * student_tv.stride(0) / N::value();
    let mut largest = f32::MIN.runtime();
    let mut others = 0.0f32;
    for turn in 0..turns {
        let at = turn * units + unit;
        let logits = Vector::<f32, N>::cast_from(student_tv[first + at]);
        let mut most = logits[0];
        #[unroll]
        for lane in 1..N::value() {
            most = max(most, logits[lane]);
        }
        if most > largest {
            others *= ((largest - most) * scale).exp();
            largest = most;
        }
        let below = (logits - Vector::<f32, N>::new(largest)) * Vector::<f32, N>::new(scale);
        let exponentials = Vector::exp(below);
        let id = at * N::value();
        let mut own = marks[id / 32] >> ((id % 32) as u32);
        #[unroll]
        for lane in 0..N::value() {
            if own & 1u32 == 0u32 {
                others += exponentials[lane];
            }
            own >>= 1u32;
        }
    }
    let own = largest;
    let largest = in_two_steps(own, &mut shared, Fold::Largest, units);
    let others = others * ((own - largest) * scale).exp();
    let mut others = in_two_steps(others, &mut shared, Fold::Sum, units);
    // Of a student that is sure of the top: the logarithm stays finite. NaN stays NaN.
    if others < f32::MIN_POSITIVE {
        others = f32::MIN_POSITIVE.runtime();
    }
    if comptime!(!plan.has_others) {
        others = 0.0f32;
    }

    let mut top = 0.0f32;
    let mut i = unit;
    while i < k {
        let id = min(ids[i] as usize, v - 1);
        let below = (logit_of::<S, N>(student_tv, first, id) - largest) * scale;
        below_k[i] = below;
        top += below.exp();
        i += units;
    }
    let total = others + in_two_steps(top, &mut shared, Fold::Sum, units);
    let log_total = total.ln();

    let mut loss = 0.0f32;
    let mut slopes = 0.0f32;
    let mut i = unit;
    while i < k {
        let p = below_k[i].exp() / total;
        let log_p = below_k[i] - log_total;
        let log_q = log_q_tk[token * k + i];
        let slope = slope_of(p, log_p, log_q, comptime!(plan.is_reverse));
        loss += term_of(p, log_p, log_q, comptime!(plan.is_reverse));
        slopes += slope;
        slopes_k[i] = slope;
        i += units;
    }
    let mut loss = in_two_steps(loss, &mut shared, Fold::Sum, units);
    let mut slopes = in_two_steps(slopes, &mut shared, Fold::Sum, units);
    let unknown = in_two_steps(unknown, &mut shared, Fold::Sum, units);

    // A logit raises its own log p by 1, and lowers each by the probability of its own id.
    let soft = 1.0f32 - hard;
    let step = factor * scale;
    let mut of_others = 0.0f32;
    if comptime!(plan.has_others) {
        let (p, log_p, log_q) = (others / total, others.ln() - log_total, log_rest_t[token]);
        let slope = slope_of(p, log_p, log_q, comptime!(plan.is_reverse));
        loss += term_of(p, log_p, log_q, comptime!(plan.is_reverse));
        slopes += slope;
        of_others = soft * slope / others;
    }
    let all = (hard - soft * slopes) / total;
    let other = Vector::<f32, N>::new(step * (all + of_others));
    // None is beyond all ids.
    let mut label = v;
    #[comptime]
    match labels_t {
        ComptimeOption::Some(labels_t) => {
            label = labels_t[token] as u32 as usize;
        }
        ComptimeOption::None => {}
    }

    let mut i = unit;
    while i < k {
        let mut gradient = step * (all * below_k[i].exp() + soft * slopes_k[i]);
        if ids[i] as usize == label {
            gradient -= step * hard;
        }
        top_tk[token * k + i] = gradient;
        i += units;
    }
    let out = token * gradient_tv.stride(0) / N::value();
    for turn in 0..turns {
        // Backwards: the end of the row is still in a cache.
        let at = (turns - 1 - turn) * units + unit;
        let logits = Vector::<f32, N>::cast_from(student_tv[first + at]);
        let below = (logits - Vector::<f32, N>::new(largest)) * Vector::<f32, N>::new(scale);
        let mut gradient = other * Vector::exp(below);
        if label / N::value() == at {
            #[unroll]
            for lane in 0..N::value() {
                if label % N::value() == lane {
                    gradient[lane] -= step * hard;
                }
            }
        }
        gradient_tv[out + at] = Vector::cast_from(gradient);
    }

    if UNIT_POS == 0 {
        let mut loss = soft * loss;
        if comptime!(labels_t.is_some()) {
            let logit = logit_of::<S, N>(student_tv, first, min(label, v - 1));
            loss -= hard * ((logit - largest) * scale - log_total);
            if label >= v {
                loss = not_a_number(label as u32);
            }
        }
        if unknown > 0.0f32 {
            loss = not_a_number(0u32);
        }
        losses_t[token] = loss;
    }
}

/// NaN, whatever the lower bits; CUDA's compiler does not know CubeCL's name for it.
#[cube]
fn not_a_number(bits: u32) -> f32 {
    f32::reinterpret(bits | 0x7fc0_0000u32)
}

/// Puts the numbers of each token's ids into its row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn put_kernel<S: Float>(
    ids_tk: &Array<i32>,
    top_tk: &Array<f32>,
    gradient_tv: &mut Tensor<S>,
    #[comptime] k: usize,
    #[define(S)] _dtype: StorageType,
) {
    let token = CUBE_POS;
    if token >= gradient_tv.shape(0) {
        terminate!();
    }
    let mut i = UNIT_POS as usize;
    while i < k {
        let id = ids_tk[token * k + i] as u32 as usize;
        if id < gradient_tv.shape(1) {
            let at = token * gradient_tv.stride(0) + id;
            gradient_tv[at] = S::cast_from(top_tk[token * k + i]);
        }
        i += PUTTERS;
    }
}

/// The op's inputs on the device.
pub(super) struct Operands<R: CubeRuntime> {
    pub student: CubeTensor<R>,
    pub ids: CubeTensor<R>,
    pub log_q: CubeTensor<R>,
    pub log_rest: CubeTensor<R>,
    pub labels: Option<CubeTensor<R>>,
    pub weights: DistillationWeights,
    pub divergence: Divergence,
}

/// The losses of the tokens added up, over `tokens`, `[1]` in f32, and the gradient of that in the student's dtype.
pub(super) fn block<R: CubeRuntime>(
    inputs: Operands<R>,
    tokens: usize,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let weights = inputs.weights;
    let [t, v]: [usize; 2] = inputs.student.meta.shape().dims();
    let [_, k]: [usize; 2] = inputs.ids.meta.shape().dims();
    let labels = inputs.labels.filter(|_| weights.hard > 0.0);
    let labels = labels.map(into_contiguous);
    let hard = if labels.is_some() { weights.hard } else { 0.0 };
    let student = with_rows(inputs.student);
    let ids = into_contiguous(inputs.ids);
    let losses = empty(&student, [t], DType::F32);
    let gradient = empty(&student, [t, v], student.dtype);
    let top = empty(&student, [t, k], DType::F32);

    let tensors = [&student, &gradient];
    let (lanes, width) = (vector_size(&tensors), address_type(&tensors));
    let (client, dtype) = (student.client.clone(), student.dtype);
    let plan = Plan {
        units: units(&client),
        k,
        words: v.div_ceil(32),
        has_others: k < v,
        is_reverse: inputs.divergence == Divergence::ReverseKl,
    };
    let [across, down] = cubes(t);
    let count = CubeCount::Static(across, down, 1);
    // SAFETY: a cube reads and writes its token's rows, which have the shapes that `top_classes_block` has checked; a
    // unit's places in them are below their length, also those of an id or a label that is not.
    unsafe {
        tokens_kernel::launch_unchecked::<R>(
            &client,
            count.clone(),
            CubeDim::new_1d(plan.units as u32),
            width,
            lanes,
            student.into_tensor_arg(),
            ids.clone().into_array_arg(),
            into_contiguous(inputs.log_q).into_array_arg(),
            into_contiguous(inputs.log_rest).into_array_arg(),
            labels.map(CubeTensor::into_array_arg).into(),
            losses.clone().into_array_arg(),
            gradient.clone().into_tensor_arg(),
            top.clone().into_array_arg(),
            1.0 / weights.temperature as f32,
            hard as f32,
            1.0 / tokens as f32,
            plan,
            dtype.into(),
        );
        put_kernel::launch_unchecked::<R>(
            &client,
            count,
            CubeDim::new_1d(PUTTERS as u32),
            width,
            ids.into_array_arg(),
            top.into_array_arg(),
            gradient.clone().into_tensor_arg(),
            k,
            dtype.into(),
        );
    }
    (mean(losses, tokens), gradient)
}
