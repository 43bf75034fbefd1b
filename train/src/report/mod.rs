//! `report.html`: a finished run on one page.
//!
//! The page is a single file without scripts, fonts or links, so that it can be sent, archived and still opened in ten
//! years. Curves are SVG, drawn by plotters; its fixed colours are placeholders that the style sheet replaces, so that
//! the same drawing suits a light and a dark page. Matrices are PNG images with one pixel per entry.
//!
//! - `chart` draws curves,
//! - `heatmap` matrices,
//! - `page` puts them, the numbers and the words together,
//! - `compare` lays runs over each other, on a page of the same style.

pub(crate) mod chart;
mod compare;
pub(crate) mod heatmap;
mod page;

pub use compare::Comparison;
pub(crate) use page::document;

use std::path::{Path, PathBuf};

use crate::metrics::Record;
use crate::summary::Summary;

/// All that a report shows.
#[derive(Debug, Clone)]
pub struct ReportData {
    /// The run's name.
    pub name: String,
    /// The run in numbers.
    pub summary: Summary,
    /// The content of `metrics.jsonl`, as [`crate::metrics::read`] gives it.
    pub records: Vec<Record>,
    /// The student's and the teacher's mixing matrices, for a few heads.
    pub matrices: Vec<MatrixPair>,
    /// Texts that both models write.
    pub samples: Vec<Sample>,
    /// The resolved configuration, as TOML.
    pub config: String,
}

/// The mixing matrices of one head on one sequence, of both models.
#[derive(Debug, Clone)]
pub struct MatrixPair {
    /// The layer, from 0.
    pub layer: usize,
    /// The head, from 0.
    pub head: usize,
    /// Positions: both matrices are `size x size`.
    pub size: usize,
    /// The transfer matrix, row by row: `student[query * size + key]`.
    pub student: Vec<f32>,
    /// The attention matrix, in the same order.
    pub teacher: Vec<f32>,
}

/// The continuations that both models write after one prompt.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The text given.
    pub prompt: String,
    /// What the teacher adds.
    pub teacher: String,
    /// What the student adds.
    pub student: String,
}

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A matrix that is not `size x size`.
    #[error("layer {layer} head {head}: {found} matrix entries, not {size} x {size}")]
    Matrix {
        /// The layer.
        layer: usize,
        /// The head.
        head: usize,
        /// The side of the square that the entries should fill.
        size: usize,
        /// The entries it has.
        found: usize,
    },
    /// A curve that plotters cannot draw.
    #[error("cannot draw a chart: {0}")]
    Chart(String),
    /// A matrix that cannot be encoded as an image.
    #[error("cannot encode a heat map: {0}")]
    Image(#[from] png::EncodingError),
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ReportData {
    /// The report as HTML.
    ///
    /// # Errors
    /// [`ReportError`], but for `Write`.
    pub fn to_html(&self) -> Result<String, ReportError> {
        page::render(self)
    }

    /// Writes the report to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let html = self.to_html()?;
        model::atomic_file::write(path, html.as_bytes()).map_err(|source| ReportError::Write {
            path: path.to_owned(),
            source,
        })
    }
}
