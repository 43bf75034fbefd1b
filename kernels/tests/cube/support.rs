//! Random inputs, the same on both backends; poisoned memory; and the comparison.

use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, Tensor, TensorData};
use kernels::runtime::NdArray64;
use tests::Numbers;

pub use crate::device::{Cube, has_tensor_cores, with_device};

pub type Exact = NdArray64;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect(name))
}

/// A random generator for each random case.
pub fn random_cases() -> impl Iterator<Item = Random> {
    let first = setting("KERNELS_SEED", 1);
    (first..first + setting("KERNELS_CASES", 12)).map(Random::new)
}

/// f32, and the half precisions that the device computes in.
pub fn dtypes() -> Vec<DType> {
    let device = Default::default();
    let mut dtypes = vec![DType::F32, DType::F16, DType::BF16];
    dtypes.retain(|dtype| Cube::supports_dtype(&device, *dtype));
    dtypes
}

/// The error that rounding may cause, as a ratio of norms.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        _ => 1e-2,
    }
}

pub struct Random(Numbers);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Numbers::new(seed))
    }

    /// In `low..=high`.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        low + self.0.bits() as usize % (high - low + 1)
    }

    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.size(0, choices.len() - 1)].clone()
    }

    pub fn flag(&mut self) -> bool {
        self.size(0, 1) == 1
    }

    /// In `-scale..scale`, each number such that `dtype` holds it.
    pub fn values<const D: usize>(
        &mut self,
        shape: [usize; D],
        scale: f64,
        dtype: DType,
    ) -> Values<D> {
        let count = shape.iter().product();
        let values = (0..count).map(|_| scale * self.0.number()).collect();
        Values::new(values, shape, dtype)
    }
}

/// An input of an op, with the same values on both backends.
#[derive(Clone)]
pub struct Values<const D: usize> {
    data: TensorData,
    dtype: DType,
}

impl<const D: usize> Values<D> {
    pub fn new(values: Vec<f64>, shape: [usize; D], dtype: DType) -> Self {
        let data = TensorData::new(values, shape);
        let data = data.convert_dtype(dtype).convert_dtype(DType::F64);
        Self { data, dtype }
    }

    /// The same with `offset` added.
    #[allow(dead_code)]
    pub fn plus(&self, offset: f64) -> Self {
        let values: Vec<f64> = self.data.iter::<f64>().map(|x| x + offset).collect();
        let shape = self.exact().dims();
        Self::new(values, shape, self.dtype)
    }

    pub fn exact(&self) -> Tensor<Exact, D> {
        Tensor::from_data(self.data.clone(), &Default::default())
    }

    pub fn cube(&self) -> Tensor<Cube, D> {
        let data = self.data.clone().convert_dtype(self.dtype);
        Tensor::from_data(data, (&Default::default(), self.dtype))
    }

    /// As [`Values::cube`], as a slice of the last axis of something larger.
    pub fn sliced(&self) -> Tensor<Cube, D> {
        let whole = self.cube();
        let mut shape = whole.dims();
        let width = shape[D - 1];
        // A multiple of any device's alignment, so that the slice is a view.
        shape[D - 1] = 256;
        let around = Tensor::full(shape, f32::NAN, (&whole.device(), self.dtype));
        Tensor::cat(vec![around.clone(), whole, around], D - 1).narrow(D - 1, 256, width)
    }
}

/// Fills memory with NaN and frees it, so that the next allocations contain NaN.
pub fn poison() {
    let device = Default::default();
    for exponent in [8, 12, 16, 20, 22] {
        for _ in 0..3 {
            drop(Tensor::<Cube, 1>::full([1 << exponent], f32::NAN, &device));
        }
    }
    Cube::sync(&device).expect("the device works");
}

/// The outputs of an op with their names.
pub type Outputs = Vec<(&'static str, TensorData)>;

pub fn output<B: burn::tensor::backend::Backend, const D: usize>(
    name: &'static str,
    x: Tensor<B, D>,
) -> (&'static str, TensorData) {
    (name, x.into_data())
}

/// Runs the op twice on poisoned memory; compares the bits of both runs, and the first with `exact` by
/// the norm of the difference over the norm.
pub fn check(case: &str, tolerance: f64, exact: Outputs, run: impl Fn() -> Outputs) {
    poison();
    let first = run();
    poison();
    let second = run();
    assert_eq!(first.len(), exact.len(), "{case}: outputs");
    for (((name, exact), (_, first)), (_, second)) in exact.iter().zip(&first).zip(&second) {
        assert_eq!(first.shape, exact.shape, "{case}: {name}");
        assert!(
            first.as_bytes() == second.as_bytes(),
            "{case}: {name} differs from run to run"
        );
        let error = distance(exact, first);
        assert!(error <= tolerance, "{case}: {name} is off by {error:.2e}");
    }
}

/// `||a - b|| / ||a||`; NaN if there is one.
pub fn distance(a: &TensorData, b: &TensorData) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.iter::<f64>().zip(b.iter::<f64>()) {
        difference += (a - b).powi(2);
        norm += a * a;
    }
    if difference == 0.0 {
        0.0
    } else {
        (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
    }
}
