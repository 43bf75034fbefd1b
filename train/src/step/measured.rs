//! The values that a step has measured.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use model::Part;

/// What a step has measured, one element each, on the device.
#[derive(Debug, Clone)]
pub struct Measured<B: Backend> {
    /// The mean loss over the passes.
    pub loss: Tensor<B, 1>,
    /// The norm of the mean gradient, before it is clipped.
    pub norm: Tensor<B, 1>,
    /// The same for each part that has a gradient.
    pub norms: BTreeMap<Part, Tensor<B, 1>>,
    /// Where ranks share the steps: how many of them were asked to stop.
    pub stops: Option<Tensor<B, 1>>,
}

/// What a step has measured, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadMeasured {
    /// The mean loss over the passes.
    pub loss: f64,
    /// The norm of the mean gradient, before it is clipped.
    pub norm: f64,
    /// The same for each part that has a gradient.
    pub norms: BTreeMap<Part, f64>,
    /// Whether any rank was asked to stop, if ranks share the steps. All ranks have the same value for the same step.
    pub stops: bool,
}

impl<B: Backend> Measured<B> {
    /// Copies the values of all `steps` to the host, in one transfer.
    pub fn read(steps: Vec<Self>) -> Vec<ReadMeasured> {
        if steps.is_empty() {
            return vec![];
        }
        let dtype = steps[0].norm.dtype();
        let in_dtype = |value: &Tensor<B, 1>| {
            if value.dtype() == dtype {
                value.clone()
            } else {
                value.clone().cast(dtype)
            }
        };
        let values = steps.iter().flat_map(|step| {
            let both = [&step.loss, &step.norm].into_iter();
            let all = both.chain(step.norms.values()).chain(&step.stops);
            all.map(in_dtype)
        });
        let values = Tensor::cat(values.collect(), 0).into_data();
        let mut values = values.iter::<f64>();
        let mut next = || values.next().expect("a value for each tensor");
        let read = |step: Self| ReadMeasured {
            loss: next(),
            norm: next(),
            norms: step.norms.into_keys().map(|part| (part, next())).collect(),
            stops: step.stops.is_some_and(|_| next() > 0.0),
        };
        steps.into_iter().map(read).collect()
    }
}
