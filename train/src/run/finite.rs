//! Checks that all parameters of the student are finite.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;
use model::{CausalLm, Layout, PhiMamba, named_parameters};

use super::Run;
use crate::error::TrainError;

impl<B: TrainBackend> Run<B> {
    /// Returns an error unless every parameter of `student` is finite.
    pub(super) fn require_finite(&self, student: &PhiMamba<B>) -> Result<(), TrainError> {
        match not_finite(&student.valid(), self.student_config.layout()) {
            Some(name) => Err(self.diverged(format!("parameter {name}"))),
            None => Ok(()),
        }
    }

    pub(super) fn diverged(&self, what: String) -> TrainError {
        TrainError::StudentNotFinite {
            stage: self.progress.stage.clone(),
            step: self.progress.step,
            what,
            folder: self.options.folder.clone(),
        }
    }
}

/// The name of the first parameter of `network` that has a value which is not finite.
fn not_finite<B: Backend>(network: &CausalLm<B>, layout: Layout) -> Option<String> {
    let mut zeros = Zeros {
        ids: vec![],
        sums: vec![],
    };
    network.visit(&mut zeros);
    // One transfer for all of them.
    let sums = Tensor::cat(zeros.sums, 0).into_data();
    let mut wrong = sums.iter::<f32>().zip(zeros.ids);
    let (_, id) = wrong.find(|(sum, _)| *sum != 0.0)?;
    let names = named_parameters(network, layout).into_iter();
    let mut names = names.filter(|parameter| parameter.id == id);
    names.next().map(|parameter| parameter.name)
}

/// For each parameter the sum of each value's difference from itself: 0, unless one is not finite.
struct Zeros<B: Backend> {
    ids: Vec<ParamId>,
    sums: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for Zeros<B> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let values = parameter.val();
        self.ids.push(parameter.id);
        self.sums.push((values.clone() - values).sum());
    }
}
