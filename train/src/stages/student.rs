//! The student, as a pass reads it.

use std::sync::OnceLock;

use kernels::TrainBackend;
use model::{Block, PhiMamba};

/// A student whose parts are made only when they are asked for.
pub trait Parts<B: TrainBackend>: Sync {
    /// The number of its layers.
    fn layers(&self) -> usize;

    /// A layer, from 0, on a graph of its own.
    fn layer(&self, number: usize) -> Block<B>;

    /// All of it, on a graph of its own.
    fn whole(&self) -> PhiMamba<B>;
}

/// The student of one pass. Parameters may still be in transit from other ranks: the device waits for them only after
/// the work that the pass has queued before it asks for the student or for a layer.
pub enum PassStudent<'a, B: TrainBackend> {
    /// A complete student.
    Here(&'a PhiMamba<B>),
    /// A student whose parts are made when they are asked for.
    Coming(Box<Coming<'a, B>>),
}

/// The parts of a student that were made so far.
pub struct Coming<'a, B: TrainBackend> {
    parts: &'a dyn Parts<B>,
    layers: Vec<OnceLock<Block<B>>>,
    whole: OnceLock<PhiMamba<B>>,
}

impl<'a, B: TrainBackend> From<&'a PhiMamba<B>> for PassStudent<'a, B> {
    fn from(student: &'a PhiMamba<B>) -> Self {
        Self::Here(student)
    }
}

impl<'a, B: TrainBackend> PassStudent<'a, B> {
    /// A student that is made from `parts`.
    pub fn coming(parts: &'a dyn Parts<B>) -> Self {
        Self::Coming(Box::new(Coming {
            parts,
            layers: (0..parts.layers()).map(|_| OnceLock::new()).collect(),
            whole: OnceLock::new(),
        }))
    }

    /// The whole student.
    pub fn whole(&self) -> &PhiMamba<B> {
        match self {
            Self::Here(student) => student,
            Self::Coming(coming) => coming.whole.get_or_init(|| coming.parts.whole()),
        }
    }

    /// The number of its layers.
    pub fn layers(&self) -> usize {
        match self {
            Self::Here(student) => student.backbone.layers.len(),
            Self::Coming(coming) => coming.layers.len(),
        }
    }

    /// One of its layers, from 0.
    ///
    /// # Panics
    /// If the student has fewer layers.
    pub fn layer(&self, number: usize) -> &Block<B> {
        match self {
            Self::Here(student) => &student.backbone.layers[number],
            Self::Coming(coming) => match coming.whole.get() {
                Some(student) => &student.backbone.layers[number],
                None => coming.layers[number].get_or_init(|| coming.parts.layer(number)),
            },
        }
    }
}
