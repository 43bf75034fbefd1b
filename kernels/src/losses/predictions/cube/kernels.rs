//! The kernels and their launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, mean, with_rows};
use crate::cube::reduce::Fold;
use crate::cube::{address_type, empty, vector_size};
use crate::losses::predictions::DistillationWeights;

/// Units of a cube at most: so many that few rows are under way at once, which a cache then holds.
const UNITS: usize = 1024;
/// Units that fold the numbers of all.
const FOLDERS: usize = 32;

/// A number of each of the two rows.
#[derive(CubeType, Clone, Copy)]
struct Pair {
    student: f32,
    teacher: f32,
}

#[cube]
fn fold_of(a: f32, b: f32, #[comptime] fold: Fold) -> f32 {
    let mut folded = a + b;
    if comptime!(fold == Fold::Largest) {
        folded = max(a, b);
    }
    folded
}

/// The folds of a pair of every unit, the same for all of them; `shared` has two numbers a unit. In two
/// steps, which wait for each other less often than halving would.
#[cube]
fn pair_of_cube(
    pair: Pair,
    shared: &mut SharedMemory<f32>,
    #[comptime] fold: Fold,
    #[comptime] units: usize,
) -> Pair {
    let unit = UNIT_POS as usize;
    shared[unit] = pair.student;
    shared[units + unit] = pair.teacher;
    sync_cube();
    if unit < comptime!(2 * FOLDERS) {
        let first = unit / FOLDERS * units + unit % FOLDERS;
        let mut folded = shared[first];
        #[unroll]
        for i in 1..comptime!(units / FOLDERS) {
            folded = fold_of(folded, shared[first + i * FOLDERS], fold);
        }
        shared[first] = folded;
    }
    sync_cube();
    let mut folded = Pair {
        student: shared[0],
        teacher: shared[units],
    };
    #[unroll]
    for i in 1..FOLDERS {
        folded.student = fold_of(folded.student, shared[i], fold);
        folded.teacher = fold_of(folded.teacher, shared[units + i], fold);
    }
    sync_cube();
    folded
}

/// The sum over some of a row's logits of their exponentials relative to the largest of them.
#[derive(CubeType, Clone, Copy)]
struct Total {
    largest: f32,
    sum: f32,
}

/// Adds more logits.
#[cube]
fn add<F: Float, N: Size>(total: &mut Total, logits: Vector<F, N>, scale: f32) {
    let logits = Vector::<f32, N>::cast_from(logits);
    let mut largest = logits[0];
    #[unroll]
    for lane in 1..N::value() {
        largest = max(largest, logits[lane]);
    }
    if largest > total.largest {
        total.sum *= ((total.largest - largest) * scale).exp();
        total.largest = largest;
    }
    let below = (logits - Vector::<f32, N>::new(total.largest)) * Vector::<f32, N>::new(scale);
    total.sum += sum(Vector::exp(below));
}

#[cube]
fn sum<N: Size>(of: Vector<f32, N>) -> f32 {
    let mut sum = of[0];
    #[unroll]
    for lane in 1..N::value() {
        sum += of[lane];
    }
    sum
}

/// The losses of tokens, and their gradients to the student's logits times `factor`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn tokens_kernel<S: Float, T: Float, N: Size>(
    student_tv: &Tensor<Vector<S, N>>,
    teacher_tv: &ComptimeOption<Tensor<Vector<T, N>>>,
    labels_t: &ComptimeOption<Array<i32>>,
    losses_t: &mut Array<f32>,
    gradient_tv: &mut ComptimeOption<Tensor<Vector<S, N>>>,
    scale: f32,
    hard: f32,
    factor: f32,
    #[comptime] units: usize,
    #[comptime] _given: [bool; 3],
    #[define(S)] _student_dtype: StorageType,
    #[define(T)] _teacher_dtype: StorageType,
) {
    let token = CUBE_POS;
    if token >= student_tv.shape(0) {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(2 * units));
    let unit = UNIT_POS as usize;
    let vectors = student_tv.shape(1) / N::value();
    let turns = (vectors + comptime!(units - 1) - unit) / units;
    let student = token * student_tv.stride(0) / N::value() + unit;

    let mut of_student = Total {
        largest: f32::MIN.runtime(),
        sum: 0.0f32,
    };
    let mut of_teacher = Total {
        largest: f32::MIN.runtime(),
        sum: 0.0f32,
    };
    for turn in 0..turns {
        let logits = student_tv[student + turn * units];
        #[comptime]
        match teacher_tv {
            ComptimeOption::Some(teacher_tv) => {
                let first = token * teacher_tv.stride(0) / N::value() + unit;
                let teacher = teacher_tv[first + turn * units];
                add::<T, N>(&mut of_teacher, teacher, 1.0f32);
            }
            ComptimeOption::None => {}
        }
        add::<S, N>(&mut of_student, logits, scale);
    }
    let own = Pair {
        student: of_student.largest,
        teacher: of_teacher.largest,
    };
    let largest = pair_of_cube(own, &mut shared, Fold::Largest, units);
    let own = Pair {
        student: of_student.sum * ((of_student.largest - largest.student) * scale).exp(),
        teacher: of_teacher.sum * (of_teacher.largest - largest.teacher).exp(),
    };
    let total = pair_of_cube(own, &mut shared, Fold::Sum, units);

    let soft = 1.0f32 - hard;
    let teacher_share = soft / total.teacher;
    let student_factor = Vector::<f32, N>::new(factor * scale / total.student);
    let teacher_factor = Vector::<f32, N>::new(factor * scale * teacher_share);
    let mut soft_loss = 0.0f32;
    let mut hard_loss = 0.0f32;
    for turn in 0..turns {
        let at = (turns - 1 - turn) * units;
        let logits = Vector::<f32, N>::cast_from(student_tv[student + at]);
        let below =
            (logits - Vector::<f32, N>::new(largest.student)) * Vector::<f32, N>::new(scale);
        let mut gradient = Vector::<f32, N>::new(0.0f32);
        if comptime!(gradient_tv.is_some()) {
            gradient = student_factor * Vector::exp(below);
        }
        #[comptime]
        match teacher_tv {
            ComptimeOption::Some(teacher_tv) => {
                let first = token * teacher_tv.stride(0) / N::value() + unit;
                let logits = Vector::<f32, N>::cast_from(teacher_tv[first + at]);
                let weights = Vector::exp(logits - Vector::<f32, N>::new(largest.teacher));
                soft_loss -= sum(weights * below);
                gradient -= teacher_factor * weights;
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match labels_t {
            ComptimeOption::Some(labels_t) => {
                let label = labels_t[token] as usize;
                if label / N::value() == at + unit {
                    #[unroll]
                    for lane in 0..N::value() {
                        if label % N::value() == lane {
                            hard_loss -= below[lane];
                            gradient[lane] -= factor * scale * hard;
                        }
                    }
                }
            }
            ComptimeOption::None => {}
        }
        #[comptime]
        match gradient_tv {
            ComptimeOption::Some(gradient_tv) => {
                let first = token * gradient_tv.stride(0) / N::value() + unit;
                gradient_tv[first + at] = Vector::cast_from(gradient);
            }
            ComptimeOption::None => {}
        }
    }
    #[comptime]
    match labels_t {
        ComptimeOption::Some(labels_t) => {
            // As a negative one is too, read without its sign.
            let label = labels_t[token] as u32;
            if label as usize >= student_tv.shape(1) {
                // NaN, whatever the lower bits; CUDA's compiler does not know CubeCL's name for it.
                hard_loss = f32::reinterpret(label | 0x7fc0_0000u32);
            }
        }
        ComptimeOption::None => {}
    }
    let mut loss = hard_loss * hard;
    if comptime!(teacher_tv.is_some()) {
        loss += soft_loss * teacher_share;
    }
    let own = Pair {
        student: loss,
        teacher: 0.0f32,
    };
    let loss = pair_of_cube(own, &mut shared, Fold::Sum, units);
    if UNIT_POS == 0 {
        losses_t[token] = loss.student + total.student.ln();
    }
}

/// The op's inputs on the device.
pub(super) struct Operands<R: CubeRuntime> {
    pub student: CubeTensor<R>,
    pub teacher: CubeTensor<R>,
    pub labels: Option<CubeTensor<R>>,
    pub weights: DistillationWeights,
}

/// The losses of the tokens added up, over `tokens`, `[1]` in f32; and, if it is `wanted`, the gradient of
/// that in the student's dtype.
pub(super) fn block<R: CubeRuntime>(
    inputs: Operands<R>,
    tokens: usize,
    wanted: bool,
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    let weights = inputs.weights;
    let [t, v]: [usize; 2] = inputs.student.meta.shape().dims();
    let labels = inputs.labels.filter(|_| weights.hard > 0.0);
    let hard = match labels {
        Some(_) => weights.hard,
        None => 0.0,
    };
    let student = with_rows(inputs.student);
    // Not read where it has no weight.
    let teacher = (hard < 1.0).then(|| with_rows(inputs.teacher));
    let losses = empty(&student, [t], DType::F32);
    let gradient = wanted.then(|| empty(&student, [t, v], student.dtype));

    let mut tensors = vec![&student];
    tensors.extend(&teacher);
    tensors.extend(&gradient);
    let lanes = vector_size(&tensors);
    let width = address_type(&tensors);
    let client = student.client.clone();
    let most = client.properties().hardware.max_units_per_cube as usize;
    let units = most.min(UNITS) / FOLDERS * FOLDERS;
    assert!(units >= 2 * FOLDERS, "two numbers of every unit are folded");
    let given = [teacher.is_some(), labels.is_some(), wanted];
    let (student_dtype, dtype) = (student.dtype, teacher.as_ref().map(|teacher| teacher.dtype));
    let [across, down] = cubes(t);
    // SAFETY: a cube reads and writes its token's rows, which have the shapes that `distillation_loss` has
    // checked, and a unit's places in them are below their length.
    unsafe {
        tokens_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(units as u32),
            width,
            lanes,
            student.into_tensor_arg(),
            teacher.map(CubeTensor::into_tensor_arg).into(),
            labels
                .map(|labels| into_contiguous(labels).into_array_arg())
                .into(),
            losses.clone().into_array_arg(),
            gradient.clone().map(CubeTensor::into_tensor_arg).into(),
            1.0 / weights.temperature as f32,
            hard as f32,
            1.0 / tokens as f32,
            units,
            given,
            student_dtype.into(),
            dtype.unwrap_or(student_dtype).into(),
        );
    }
    (mean(losses, tokens), gradient)
}
