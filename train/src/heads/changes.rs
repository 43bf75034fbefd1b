//! Recall with some heads changed, computed exactly for many changes, with their common part computed once.
//!
//! A change in a layer does not affect the residual stream before that layer. So a batch goes through the layers once,
//! and at each layer every change of that layer branches off: the layer is computed with other outputs of its heads,
//! and then the layers behind it. For `n` heads in `L` layers of equal numbers of heads, that costs about `n / 2`
//! passes over the network.

use std::fmt;

use burn::tensor::Tensor;
use kernels::{KernelBackend, Window};
use model::{CausalLm, HeadOutputs, HeadSight};
use serde::{Deserialize, Serialize};

use super::questions::Reading;
use super::recall::{Recall, Sums};
use crate::error::TrainError;

/// Heads of one layer that are changed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The layer, from 0.
    pub layer: usize,
    /// The heads, from 0, ascending.
    pub heads: Vec<usize>,
}

impl Unit {
    /// Each head as a configuration names it.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let heads = self.heads.iter();
        heads.map(|head| format!("{}/{head}", self.layer))
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.names().collect();
        f.write_str(&names.join(" "))
    }
}

/// What every head of a network sees, by layer and head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sights(Vec<Vec<HeadSight>>);

impl Sights {
    /// The same for every head.
    pub(super) fn all<B: KernelBackend>(model: &CausalLm<B>, sight: HeadSight) -> Self {
        let layers = model.backbone.layers.iter();
        Self(
            layers
                .map(|block| vec![sight; block.attention_heads()])
                .collect(),
        )
    }

    /// The same, except that the heads of `units` have this `sight`.
    pub(super) fn with<'a>(
        mut self,
        units: impl IntoIterator<Item = &'a Unit>,
        sight: HeadSight,
    ) -> Self {
        for unit in units {
            self.0[unit.layer] = changed(&self.0[unit.layer], unit, sight);
        }
        self
    }
}

/// The sights of one layer, except that the heads of `unit` have this `sight`.
fn changed(layer: &[HeadSight], unit: &Unit, sight: HeadSight) -> Vec<HeadSight> {
    let heads = layer.iter().enumerate();
    let of = |(head, own): (usize, &HeadSight)| {
        if unit.heads.contains(&head) {
            sight
        } else {
            *own
        }
    };
    heads.map(of).collect()
}

/// The changes to measure.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// What the unchanged heads see.
    pub(super) base: &'a Sights,
    /// The heads that are changed, one unit after the other; `sight` is what they see then.
    pub(super) units: &'a [Unit],
    pub(super) sight: HeadSight,
    /// The window of [`HeadSight::Window`].
    pub(super) window: Window,
}

/// The recall that was measured, for each set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// Without a change.
    pub(super) base: Vec<Recall>,
    /// With each change.
    pub(super) changed: Vec<Vec<Recall>>,
}

impl Question<'_> {
    /// Measures all changes; `None` if `stop`, which is called before each change, returns true.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(super) fn measure<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        readings: &[Reading<B>],
        sets: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Measured>, TrainError> {
        let mut base = Sums::new(sets);
        let mut changes = vec![Sums::new(sets); self.units.len()];
        let layers = &model.backbone.layers;
        for reading in readings {
            let mut x_bld = model.backbone.embedding.forward(reading.ids_bl.clone());
            for layer in 0..layers.len() {
                let units = self.units.iter().enumerate();
                let here: Vec<_> = units.filter(|(_, unit)| unit.layer == layer).collect();
                if here.is_empty() {
                    x_bld = self.through(model, layer, x_bld);
                    continue;
                }
                let (block, own) = (&layers[layer], &self.base.0[layer]);
                let asked = [&own[..], &[self.sight]].concat();
                let outputs = HeadOutputs::new(block, x_bld.clone(), &asked, self.window);
                // A unit's layer has heads, and so has outputs of heads.
                let outputs = outputs.expect("a layer with attention");
                for (number, unit) in here {
                    if stop() {
                        return Ok(None);
                    }
                    let sights = changed(own, unit, self.sight);
                    let mut y_bld = block.forward_with_heads(x_bld.clone(), &outputs, &sights);
                    for later in layer + 1..layers.len() {
                        y_bld = self.through(model, later, y_bld);
                    }
                    changes[number].add(model, y_bld, reading)?;
                }
                x_bld = block.forward_with_heads(x_bld, &outputs, own);
            }
            if stop() {
                return Ok(None);
            }
            base.add(model, x_bld, reading)?;
        }
        Ok(Some(Measured {
            base: base.recalls(),
            changed: changes.into_iter().map(Sums::recalls).collect(),
        }))
    }

    /// The output of a layer without a change.
    fn through<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        layer: usize,
        x_bld: Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let (block, sights) = (&model.backbone.layers[layer], &self.base.0[layer]);
        if sights.iter().all(|sight| *sight == HeadSight::Own) {
            return block.forward(x_bld);
        }
        match HeadOutputs::new(block, x_bld.clone(), sights, self.window) {
            Some(outputs) => block.forward_with_heads(x_bld, &outputs, sights),
            None => block.forward(x_bld),
        }
    }
}
