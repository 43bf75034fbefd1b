//! The student as a pass reads it.

use std::sync::OnceLock;

use kernels::TrainBackend;
use model::{Block, PhiMamba};

/// A student whose parts are made when they are asked for.
pub trait Parts<B: TrainBackend>: Sync {
    /// The number of its layers.
    fn layers(&self) -> usize;

    /// A layer, from 0, on a graph of its own.
    fn layer(&self, number: usize) -> Block<B>;

    /// All of it, on a graph of its own.
    fn whole(&self) -> PhiMamba<B>;
}

/// The student of one pass. It may be on its way from other ranks: what a pass does before it asks for the student, or for a
/// layer, is queued before the device waits for it.
pub enum PassStudent<'a, B: TrainBackend> {
    /// One that is there.
    Here(&'a PhiMamba<B>),
    /// One that comes when it is asked for.
    Coming(Box<Coming<'a, B>>),
}

/// What has come of a student.
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
    /// One that is made of `parts`.
    pub fn coming(parts: &'a dyn Parts<B>) -> Self {
        Self::Coming(Box::new(Coming {
            parts,
            layers: (0..parts.layers()).map(|_| OnceLock::new()).collect(),
            whole: OnceLock::new(),
        }))
    }

    /// All of it.
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
    /// If there are not so many.
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
