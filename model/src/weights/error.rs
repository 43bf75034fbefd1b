//! What can be wrong with a model folder, or with fetching one.

use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::DType;

use super::{CONFIG, INDEX, PICKLE, PICKLE_INDEX, SINGLE};
use crate::config_error::ConfigError;
use crate::manifest::ManifestError;

/// Why a model folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The configuration cannot be used.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// There are no weights in the folder.
    #[error(
        "{}: no weights here; expected {SINGLE}, {INDEX} with its shards, {PICKLE}, or {PICKLE_INDEX} with \
         its shards; a GGUF file is read by its own path, or in a folder without {CONFIG}",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of weights is cut short, damaged, or not what its name says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors are not those of the network that the configuration describes.
    #[error("{}: the weights do not fit the configuration:{}", folder.display(), Lines(faults))]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// Everything that does not fit.
        faults: Vec<TensorFault>,
    },
    /// Some weights are NaN or infinite, so that nothing can be computed with them.
    #[error(
        "{}: a model needs finite weights, and these are not:{}",
        folder.display(),
        Lines(tensors)
    )]
    NotFinite {
        /// The folder.
        folder: PathBuf,
        /// The tensors.
        tensors: Vec<NotFinite>,
    },
    /// A file is not the one that the folder's manifest lists.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file that is no GGUF file.
    #[error("{}: this file is no GGUF file; name one, or the folder of a model", path.display())]
    NoModelFile {
        /// The file.
        path: PathBuf,
    },
    /// The folder of a run, whose student is one folder deeper.
    #[error("{}: no model, but the folder of a run; its student is in {}", folder.display(), student.display())]
    OfRun {
        /// The folder.
        folder: PathBuf,
        /// The student in it.
        student: PathBuf,
    },
    /// No folder has the name, and no model on the hub can have it.
    #[error(
        "{}: no such folder, and not the name of a model on the Hugging Face hub (OWNER/NAME, \
         OWNER/NAME:FILE.gguf or OWNER/NAME:Q4_K_M)",
        name.display()
    )]
    NoSuchModel {
        /// The name.
        name: PathBuf,
    },
    /// The model would have to be fetched, which `HF_HUB_OFFLINE` forbids.
    #[error(
        "{name}: no such folder here, no such model in the cache {}, and HF_HUB_OFFLINE forbids to \
         fetch it",
        cache.display()
    )]
    Offline {
        /// The model's name.
        name: String,
        /// The cache that lacks it.
        cache: PathBuf,
    },
    /// The model could not be fetched.
    #[error(
        "{name}: no such folder here, no such model in the cache {}, and fetching it from \
         {endpoint} failed: {reason}",
        cache.display()
    )]
    Fetch {
        /// The model's name.
        name: String,
        /// The cache that lacks it.
        cache: PathBuf,
        /// The hub's address.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// A data set would have to be fetched, which `HF_HUB_OFFLINE` forbids.
    #[error(
        "the data set {name} is not in the cache {}, and HF_HUB_OFFLINE forbids to fetch it",
        cache.display()
    )]
    DatasetOffline {
        /// The data set's name.
        name: String,
        /// The cache that lacks it.
        cache: PathBuf,
    },
    /// A data set could not be fetched.
    #[error("fetching the data set {name} from {endpoint} failed: {reason}")]
    FetchDataset {
        /// The data set's name.
        name: String,
        /// The hub's address.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// There is no folder for the cache of fetched models.
    #[error("fetched models are kept in the home folder, and there is none; set HF_HOME")]
    NoCache,
}

/// One tensor in which the files differ from the network that `config.json` describes. Shapes are row-major
/// sizes, `[d_out, d_in]` for a projection, as in the files; all of a folder's faults are found before any value
/// is read, and come together in [`WeightsError::Tensors`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// The network has it and the files do not.
    #[error("`{name}` is missing; it should be {expected:?}")]
    Missing {
        /// Its published name.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// The files have it and the network does not.
    #[error("`{name}`, {found:?}, belongs to no part of the network")]
    Unexpected {
        /// Its name in the file.
        name: String,
        /// Its shape there.
        found: Vec<usize>,
    },
    /// Both have it, differently shaped.
    #[error("`{name}` is {found:?}; it should be {expected:?}")]
    Shape {
        /// Its published name.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// `config.json` ties it to another tensor, and the files have both with different values.
    #[error("`{name}` differs from `{other}`, to which {CONFIG} ties it")]
    Untied {
        /// Its published name.
        name: String,
        /// That of the other.
        other: String,
    },
    /// It is a part of a weight in bits, and does not hold what that part should.
    #[error("`{name}` holds {dtype}; it should hold {expected}")]
    Packed {
        /// Its name in the file.
        name: String,
        /// What it holds.
        dtype: String,
        /// What it should hold.
        expected: String,
    },
    /// It does not hold floating-point numbers.
    #[error("`{name}` holds {dtype}; it should hold f32, f16, bf16 or f64")]
    Dtype {
        /// Its published name.
        name: String,
        /// What it holds.
        dtype: String,
    },
}

impl TensorFault {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Missing { name, .. }
            | Self::Unexpected { name, .. }
            | Self::Shape { name, .. }
            | Self::Untied { name, .. }
            | Self::Packed { name, .. }
            | Self::Dtype { name, .. } => name,
        }
    }
}

/// A tensor with numbers that are NaN or infinite, in the file or in the dtype that they are to have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}`: {count} of {all} numbers are NaN or infinite in {dtype:?}")]
pub struct NotFinite {
    /// Its published name.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// How many numbers the tensor has.
    pub all: usize,
    /// The dtype of the numbers when they were counted: the stored dtype, or the dtype that was asked for.
    pub dtype: DType,
}

/// One fault a line, indented. With the wrong folder there are thousands: the first say enough.
struct Lines<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ENOUGH: usize = 24;
        let mut shown = self.0.iter().take(ENOUGH);
        shown.try_for_each(|fault| write!(f, "\n  {fault}"))?;
        match self.0.len().saturating_sub(ENOUGH) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Turns an operating system's error into one that names `path`.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError + '_ {
    |source| WeightsError::Io {
        path: path.into(),
        source,
    }
}

/// An error of a file that is not what it should be.
pub(super) fn damaged(path: &Path, reason: impl ToString) -> WeightsError {
    WeightsError::Damaged {
        path: path.into(),
        reason: reason.to_string(),
    }
}
