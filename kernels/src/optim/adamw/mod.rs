//! AdamW with decoupled weight decay, in one pass over the memory of each parameter.
//!
//! Burn has an AdamW too, which reads and writes each parameter about a dozen times. `D` is the parameter's rank.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::profile::{Kind, timed};

/// The numbers of one optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 for parameters that do not decay.
    pub weight_decay: f64,
    /// Steps done on this parameter, this one included; from 1.
    pub time: u64,
}

impl AdamWStep {
    /// `1 - beta1^time` and `1 - beta2^time`.
    pub fn bias_corrections(&self) -> [f64; 2] {
        let time = self.time as f64;
        [1.0 - self.beta1.powf(time), 1.0 - self.beta2.powf(time)]
    }
}

/// An update of a flat parameter by [`adamw_steps`]. It changes as many elements of the parameter, from `start` on, as
/// the gradient has; these may be all of them.
#[derive(Debug, Clone)]
pub struct Update<B: Backend> {
    /// The parameter, whole.
    pub parameter: Tensor<B, 1>,
    /// The first element that is updated.
    pub start: usize,
    /// The gradient of the elements that are updated.
    pub gradient: Tensor<B, 1>,
    /// The moments `[m, v]` of the elements that are updated.
    pub moments: [Tensor<B, 1>; 2],
    /// The numbers of the step.
    pub step: AdamWStep,
}

impl<B: Backend> Update<B> {
    /// The elements of the parameter that are updated.
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.gradient.shape().num_elements()
    }
}

/// The result of an update: the whole parameter, and the moments of the elements that were updated.
pub type Updated<B> = (Tensor<B, 1>, [Tensor<B, 1>; 2]);

/// The ops, as backends compute them. No gradient passes through them.
pub trait AdamW: Backend {
    /// See [`adamw_step`].
    fn adamw_step<const D: usize>(
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        scale: Tensor<Self, 1>,
        step: AdamWStep,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        reference::step(parameter, gradient, moments, scale, step)
    }

    /// See [`adamw_steps`].
    fn adamw_steps(updates: Vec<Update<Self>>, scale: Tensor<Self, 1>) -> Vec<Updated<Self>> {
        let one = |update: Update<Self>| {
            let step = |parameter, gradient, moments, numbers| {
                Self::adamw_step(parameter, gradient, moments, scale.clone(), numbers)
            };
            within(update, step)
        };
        updates.into_iter().map(one).collect()
    }

    /// See [`squared_norm`].
    fn squared_norm<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        reference::squared_norm(x)
    }

    /// See [`squared_norms`].
    fn squared_norms(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        reference::squared_norms(xs)
    }
}

by_default!(AdamW for ndarray, autodiff);

/// An update by `step`, which takes a parameter, its gradient and its moments of one length.
fn within<B: Backend>(
    update: Update<B>,
    step: impl FnOnce(Tensor<B, 1>, Tensor<B, 1>, [Tensor<B, 1>; 2], AdamWStep) -> Updated<B>,
) -> Updated<B> {
    let range = update.range();
    let Update {
        parameter,
        gradient,
        moments,
        step: numbers,
        ..
    } = update;
    if range == (0..parameter.shape().num_elements()) {
        return step(parameter, gradient, moments, numbers);
    }
    let part = parameter.clone().slice([range.clone()]);
    let (part, moments) = step(part, gradient, moments, numbers);
    (parameter.slice_assign([range], part), moments)
}

/// PyTorch's AdamW: with `g = gradient * scale`,
///
/// ```text
/// w <- w (1 - lr weight_decay)
/// m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
/// w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
/// ```
///
/// `scale` is a tensor of one element, in f32 or the parameter's dtype, so that a clipping coefficient can stay on the
/// device. If it is not finite, parameter and moments are not changed at all.
///
/// Parameter and moments must have the same dtype; everything is computed in it. The gradient has this dtype or half
/// precision. All four tensors have the same shape. Returns the parameter and `[m, v]`. A backend may write in place
/// into buffers that nothing else holds.
///
/// # Panics
/// If the shapes differ, or `scale` has not one element.
pub fn adamw_step<B: AdamW, const D: usize>(
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    moments: [Tensor<B, D>; 2],
    scale: Tensor<B, 1>,
    step: AdamWStep,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let shape = parameter.dims();
    assert_eq!(
        gradient.dims(),
        shape,
        "adamw_step: the gradient's shape must be the parameter's"
    );
    for moment in &moments {
        assert_eq!(
            moment.dims(),
            shape,
            "adamw_step: a moment's shape must be the parameter's"
        );
    }
    assert_eq!(scale.dims(), [1], "adamw_step: the scale has one element");
    timed(Kind::Optimizer, || {
        B::adamw_step(parameter, gradient, moments, scale, step)
    })
}

/// [`adamw_step`] of many parameters, or of parts of them, with one `scale`, in their order: on a GPU in few launches.
///
/// # Panics
/// If shapes do not fit, as in [`adamw_step`], or an update goes beyond its parameter.
pub fn adamw_steps<B: AdamW>(updates: Vec<Update<B>>, scale: Tensor<B, 1>) -> Vec<Updated<B>> {
    for update in &updates {
        let [elements] = update.parameter.dims();
        assert!(
            update.range().end <= elements,
            "adamw_steps: what is updated must lie in the parameter"
        );
        let shape = update.gradient.dims();
        assert!(
            update.moments.iter().all(|moment| moment.dims() == shape),
            "adamw_steps: the moments' shape must be the gradient's"
        );
    }
    assert_eq!(scale.dims(), [1], "adamw_steps: the scale has one element");
    timed(Kind::Optimizer, || B::adamw_steps(updates, scale))
}

/// The sum of the squares of `x`, as one element; f32 for half-precision inputs.
pub fn squared_norm<B: AdamW, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    timed(Kind::Optimizer, || B::squared_norm(x))
}

/// The sum of the squares of all elements of all `xs`, as one element, in f32 for half-precision inputs. The tensors
/// may have different dtypes if all are f32 or half precision. The order of the additions is fixed by the order of the
/// list.
///
/// # Panics
/// If there is no tensor.
pub fn squared_norms<B: AdamW>(xs: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    assert!(!xs.is_empty(), "squared_norms: no tensors");
    timed(Kind::Optimizer, || B::squared_norms(xs))
}
