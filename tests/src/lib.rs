//! What the workspace's tests share: a reader for recorded vectors and a comparison that says what
//! is wrong.
//!
//! The vectors were computed in 64-bit arithmetic by the published PyTorch modules and stored in
//! 32 bits; `goldens/README.md` explains every key. The environment variable `GOLDENS_DIR` points
//! the same tests at another folder with files of the same names. Values cross this part of the crate as
//! [`Values`], so that it depends on no tensor library and on no crate under test; [`networks`], behind the
//! feature of that name, runs the networks on them. [`mutations`] damages files for tests of loaders, and [`hub`] answers for a hub.

#![deny(missing_docs)]

mod device;
pub mod gguf;
pub mod hub;
pub mod mutations;
#[cfg(feature = "networks")]
pub mod networks;
mod numbers;

use std::path::{Path, PathBuf};

pub use device::{report_skipped, with_device};
pub use numbers::{Numbers, random};
use safetensors::{Dtype, SafeTensors};

/// The project's root: `PROJECT_DIR` where test programs were carried to another machine, and otherwise where
/// they were built.
pub fn project_dir() -> PathBuf {
    match std::env::var_os("PROJECT_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
    }
}

/// The folder that holds the recorded vectors.
pub fn goldens_dir() -> PathBuf {
    match std::env::var_os("GOLDENS_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => project_dir().join("tests/goldens"),
    }
}

/// The sub-folders of the goldens whose names start with `prefix`, sorted.
///
/// # Panics
/// If there is none: a test over no cases would pass without testing anything.
pub fn cases(prefix: &str) -> Vec<PathBuf> {
    entries(&goldens_dir(), |path| {
        path.is_dir() && name_of(path).starts_with(prefix)
    })
}

/// What the folders of teachers start with, family by family.
const TEACHERS: [&str; 3] = ["teacher-", "llama-", "qwen2-"];

/// The folders of teachers of all families.
///
/// # Panics
/// If a family has none.
pub fn teachers() -> Vec<PathBuf> {
    TEACHERS.iter().flat_map(|prefix| cases(prefix)).collect()
}

/// The safetensors files in the goldens' sub-folder `folder`, sorted.
///
/// # Panics
/// If there is none.
pub fn files(folder: &str) -> Vec<PathBuf> {
    entries(&goldens_dir().join(folder), |path| {
        path.extension()
            .is_some_and(|extension| extension == "safetensors")
    })
}

/// The last part of a path without its extension, for messages.
pub fn name_of(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn entries(dir: &Path, keep: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("cannot list the goldens in {}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = listing
        .map(|entry| entry.expect("a readable directory entry").path())
        .filter(|path| keep(path))
        .collect();
    assert!(!paths.is_empty(), "no goldens found in {}", dir.display());
    paths.sort();
    paths
}

/// A tensor's shape and its elements, row-major.
pub type Values = (Vec<usize>, Vec<f64>);

/// One file of recorded tensors.
pub struct Goldens {
    path: PathBuf,
    bytes: Vec<u8>,
    /// What the keys of a variant begin with.
    variant: &'static str,
}

impl Goldens {
    /// Opens `name` (such as `student-tiny/expected` or `ssd/basic`) under [`goldens_dir`].
    ///
    /// # Panics
    /// If the file cannot be read.
    pub fn open(name: &str) -> Self {
        Self::open_path(&goldens_dir().join(format!("{name}.safetensors")))
    }

    /// Opens the file at `path`.
    ///
    /// # Panics
    /// If the file cannot be read.
    pub fn open_path(path: &Path) -> Self {
        let bytes = std::fs::read(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let path = path.to_path_buf();
        let variant = "";
        Self {
            path,
            bytes,
            variant,
        }
    }

    /// The same for a variant of what was recorded: a key that begins with `variant` stands for the same key
    /// without it, and every other key is both's.
    #[must_use]
    pub fn of_variant(mut self, variant: &'static str) -> Self {
        self.variant = variant;
        self
    }

    /// Whether it is for a variant.
    pub fn is_variant(&self) -> bool {
        !self.variant.is_empty()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// The names of all tensors, sorted.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.tensors().names().into_iter().map(Into::into).collect();
        keys.sort();
        keys
    }

    /// Whether the file has a tensor of this name.
    pub fn has(&self, key: &str) -> bool {
        let tensors = self.tensors();
        let variant = format!("{}{key}", self.variant);
        tensors.tensor(&variant).is_ok() || tensors.tensor(key).is_ok()
    }

    /// The shape and values of a tensor stored in f32 or f64.
    ///
    /// # Panics
    /// If it is absent or of another dtype.
    pub fn f64(&self, key: &str) -> Values {
        let (shape, dtype, data) = self.raw(key);
        let values = match dtype {
            Dtype::F32 => data
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes).into())
                .collect(),
            Dtype::F64 => data
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f64::from_le_bytes(*bytes))
                .collect(),
            other => panic!("{}: {key} is {other:?}, not floats", self.path.display()),
        };
        (shape, values)
    }

    /// The shape and values of a tensor of ids, stored in i64.
    ///
    /// # Panics
    /// If it is absent or of another dtype.
    pub fn i64(&self, key: &str) -> (Vec<usize>, Vec<i64>) {
        let (shape, dtype, data) = self.raw(key);
        assert_eq!(
            dtype,
            Dtype::I64,
            "{}: the dtype of {key}",
            self.path.display()
        );
        let values = data.as_chunks().0.iter();
        (
            shape,
            values.map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        )
    }

    fn raw(&self, key: &str) -> (Vec<usize>, Dtype, Vec<u8>) {
        let tensors = self.tensors();
        let view = tensors
            .tensor(&format!("{}{key}", self.variant))
            .or_else(|_| tensors.tensor(key))
            .unwrap_or_else(|error| panic!("{}: {key}: {error}", self.path.display()));
        (view.shape().to_vec(), view.dtype(), view.data().to_vec())
    }
}

/// Asserts that `actual` has the shape of `expected` and differs from it nowhere by more than
/// `tolerance` times the largest magnitude in `expected`.
///
/// A scale for the whole tensor and not for each element, since an element that is small by
/// cancellation carries the rounding of its large terms. A zero tensor must be zero exactly.
///
/// # Panics
/// If they differ, naming the worst element and the ratio of the norms of error and expectation.
pub fn assert_close(name: &str, actual: Values, expected: Values, tolerance: f64) {
    assert_eq!(actual.0, expected.0, "{name}: the shape");
    let (shape, actual, expected) = (expected.0, actual.1, expected.1);
    assert_eq!(
        actual.len(),
        expected.len(),
        "{name}: the number of elements"
    );
    let scale = expected.iter().fold(0.0, |max: f64, e| max.max(e.abs()));
    let error = |i: usize| (actual[i] - expected[i]).abs();
    let is_worse = |i: usize, j: usize| error(i) > error(j) || error(i).is_nan();
    let Some(worst) = (0..expected.len()).reduce(|j, i| if is_worse(i, j) { i } else { j }) else {
        return;
    };
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let ratio = norm(&mut (0..expected.len()).map(error)) / norm(&mut expected.iter().copied());
    assert!(
        error(worst) <= tolerance * scale,
        "{name}: element {:?} of {shape:?} is {} instead of {}, off by {:.2e} of the largest \
         magnitude {scale:.3e} (allowed: {tolerance:.1e}); norm ratio {ratio:.2e}",
        index_of(worst, &shape),
        actual[worst],
        expected[worst],
        error(worst) / scale,
    );
}

/// The index along each dimension of the `flat`-th element.
fn index_of(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let i = flat % size;
            flat /= size;
            i
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::assert_close;

    fn close(actual: &[f64], expected: &[f64]) {
        let tensor = |values: &[f64]| (vec![values.len()], values.to_vec());
        assert_close("test", tensor(actual), tensor(expected), 1e-3);
    }

    #[test]
    fn within_the_tolerance_of_the_largest() {
        close(&[100.05, 0.0], &[100.0, 0.05]);
    }

    #[test]
    #[should_panic(expected = "element [1]")]
    fn names_the_worst_element() {
        close(&[100.0, 1.0], &[100.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "element [0]")]
    fn not_a_number_is_never_close() {
        close(&[f64::NAN, 1.0], &[1.0, 1.0]);
    }
}
