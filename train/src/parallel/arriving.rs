//! A student whose parameters the ranks still exchange.
//!
//! The next step does not read them at once: its teacher goes first. So the device need not wait for them at the end of a
//! step, but only before something reads the student. An [`Arriving`] gives its student only by waiting.

use std::collections::{HashMap, VecDeque};

use burn::module::{Module, ParamId, list_param_ids};
use burn::tensor::Tensor;
use kernels::TrainBackend;
use kernels::runtime::collective::InFlight;
use model::{Block, PhiMamba};

use super::Bucket;
use crate::optimizer::Put;

/// A student after a step, of which parameters may be on their way from the other ranks.
pub struct Arriving<A: TrainBackend> {
    /// With a place for each of those.
    student: PhiMamba<A>,
    /// In the order in which they arrive.
    gathers: VecDeque<(Bucket, InFlight<A::InnerBackend>)>,
    /// What has arrived and is not in the student, flat.
    arrived: HashMap<ParamId, Tensor<A::InnerBackend, 1>>,
}

impl<A: TrainBackend> From<PhiMamba<A>> for Arriving<A> {
    /// One that is there.
    fn from(student: PhiMamba<A>) -> Self {
        Self::new(student, VecDeque::new())
    }
}

impl<A: TrainBackend> Arriving<A> {
    /// One whose parameters in each bucket are the results of the operation beside it, which may be longer.
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

    /// The student. On a device with a queue no thread waits: what is queued from now on does.
    pub fn wait(mut self) -> PhiMamba<A> {
        self.whole();
        self.student
    }

    /// The same, for a look at it.
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

    /// A layer of the student, from 0: the device waits for what has to arrive for it.
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

    /// Has what is queued from now on wait for the next bucket.
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
