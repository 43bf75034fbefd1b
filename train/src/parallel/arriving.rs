//! A student with parameters that are still being exchanged by the ranks.
//!
//! The next step does not read these parameters at once, since it computes the teacher first. So the device need not
//! wait for them at the end of a step, but only before something reads the student. An [`Arriving`] gives access to its
//! student only through functions that wait.

use std::collections::{HashMap, VecDeque};

use burn::module::{Module, ParamId, list_param_ids};
use burn::tensor::Tensor;
use kernels::TrainBackend;
use kernels::runtime::collective::InFlight;
use model::{Block, PhiMamba};

use super::Bucket;
use crate::optimizer::Put;

/// A student after a step. Some of its parameters may still be in transit from the other ranks.
pub struct Arriving<A: TrainBackend> {
    /// The student, with a placeholder for each of those parameters.
    student: PhiMamba<A>,
    /// The exchanges, in the order in which they end.
    gathers: VecDeque<(Bucket, InFlight<A::InnerBackend>)>,
    /// Parameters that have arrived and are not in the student yet, flattened.
    arrived: HashMap<ParamId, Tensor<A::InnerBackend, 1>>,
}

impl<A: TrainBackend> From<PhiMamba<A>> for Arriving<A> {
    /// A student that is complete already.
    fn from(student: PhiMamba<A>) -> Self {
        Self::new(student, VecDeque::new())
    }
}

impl<A: TrainBackend> Arriving<A> {
    /// A student whose parameters in each bucket are the results of the exchange beside it. A result may be longer than
    /// its parameter, by padding.
    pub(super) fn new(
        student: PhiMamba<A>,
        gathers: VecDeque<(Bucket, InFlight<A::InnerBackend>)>,
    ) -> Self {
        Self {
            student,
            gathers,
            arrived: HashMap::new(),
        }
    }

    /// The complete student. On a device with a queue the host does not wait; the work that is queued from now on does.
    pub fn wait(mut self) -> PhiMamba<A> {
        self.whole();
        self.student
    }

    /// The same, without taking the student.
    pub fn whole(&mut self) -> &PhiMamba<A> {
        while !self.gathers.is_empty() {
            self.receive();
        }
        if !self.arrived.is_empty() {
            let arrived = std::mem::take(&mut self.arrived);
            self.student = self.student.clone().map(&mut Put(arrived));
        }
        &self.student
    }

    /// How many layers the student has.
    pub(crate) fn layers(&self) -> usize {
        self.student.backbone.layers.len()
    }

    /// A layer of the student, from 0. The device waits for the exchanges that this layer needs.
    pub(crate) fn layer(&mut self, number: usize) -> Block<A> {
        let layer = self.student.backbone.layers[number].clone();
        let ids = list_param_ids(&layer);
        let to_come = |gathers: &VecDeque<(Bucket, InFlight<A::InnerBackend>)>| {
            let buckets = gathers.iter().map(|(bucket, _)| bucket);
            let mut entries = buckets.flat_map(|bucket| &bucket.0);
            entries.any(|entry| ids.contains(&entry.id))
        };
        while to_come(&self.gathers) {
            self.receive();
        }
        let arrived = ids.iter().filter_map(|id| {
            let value = self.arrived.get(id)?;
            Some((*id, value.clone()))
        });
        layer.map(&mut Put(arrived.collect()))
    }

    /// Makes the work that is queued from now on wait for the next bucket.
    fn receive(&mut self) {
        let Some((bucket, gathered)) = self.gathers.pop_front() else {
            return;
        };
        for (entry, value) in bucket.0.iter().zip(gathered.wait()) {
            let value = if value.dims()[0] == entry.elements {
                value
            } else {
                value.narrow(0, 0, entry.elements)
            };
            self.arrived.insert(entry.id, value);
        }
    }
}
