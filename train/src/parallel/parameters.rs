//! Copies the student of rank 0 to all ranks.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::{KernelBackend, TrainBackend};
use model::{Layout, PhiMamba};

use super::{FlatOrder, Ranks};
use crate::optimizer::Put;

/// The most elements that are sent at once.
const MOST: usize = 64 << 20;

impl<B: KernelBackend> Ranks<B> {
    /// `student` with the parameters of rank 0, so that all ranks begin with the same ones, whatever they have drawn or
    /// read.
    pub(crate) fn student_of_first<A: TrainBackend<InnerBackend = B>>(
        &self,
        student: PhiMamba<A>,
        layout: Layout,
    ) -> PhiMamba<A> {
        if self.place().world == 1 {
            return student;
        }
        let mut all = All {
            found: HashMap::new(),
        };
        student.visit(&mut all);
        let mut values = HashMap::new();
        for bucket in FlatOrder::of(&student, layout).buckets(|_| true, MOST) {
            let own = bucket.0.iter().map(|entry| all.found[&entry.id].clone());
            let whole = self.collective().broadcast(own.collect()).wait();
            values.extend(bucket.0.iter().map(|entry| entry.id).zip(whole));
        }
        student.map(&mut Put(values))
    }
}

struct All<B: Backend> {
    /// Flat.
    found: HashMap<ParamId, Tensor<B, 1>>,
}

impl<A: TrainBackend> ModuleVisitor<A> for All<A::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<A, D>>) {
        let value = parameter.val().inner();
        debug_assert_eq!(
            value.dtype(),
            DType::F32,
            "a student's own parameters are f32"
        );
        let elements = value.shape().num_elements();
        self.found.insert(parameter.id, value.reshape([elements]));
    }
}
