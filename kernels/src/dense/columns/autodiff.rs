//! The backward pass on Burn's graph. An op of this graph has one output, so each part is a node of its own: it stores
//! its gradient in a place that all parts share, and the node of the whole takes all gradients from there. Burn runs
//! the backward pass from the deepest nodes, so all parts run before the whole.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::Columns;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

/// The gradients of the parts, as they come.
#[derive(Debug, Clone)]
struct Parts<B: Columns> {
    gradients: Arc<Mutex<Vec<Option<Tensor<B, 3>>>>>,
    widths: Vec<usize>,
    /// Columns of the whole.
    d: usize,
}

impl<B: Columns> Parts<B> {
    /// Stores the gradient of part `i`. The node of the whole gets one element as a placeholder, once; it is never
    /// read.
    fn put(&self, i: usize, gradient: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let mut gradients = self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_first = gradients.iter().all(Option::is_none);
        let (device, dtype) = (gradient.device(), gradient.dtype());
        gradients[i] = Some(gradient);
        is_first.then(|| Tensor::empty([1, 1, 1], (&device, dtype)))
    }

    fn joined(&self) -> Tensor<B, 3> {
        let mut gradients = self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let taken = gradients.iter_mut().map(Option::take).collect();
        timed(Kind::Elementwise, || {
            B::join_columns(taken, &self.widths, self.d)
        })
    }
}

impl<B: Columns, C: CheckpointStrategy> Columns for Autodiff<B, C> {
    fn extend_columns(x: Tensor<Self, 3>, d: usize) -> Tensor<Self, 3> {
        let width = x.dims()[2];
        let y = B::extend_columns(value(&x), d);
        record([input(&x)], y, width, |width, dy: Tensor<B, 3>, _| {
            let dx = timed(Kind::Elementwise, || B::split_columns(dy, &[width]));
            [dx.into_iter().next().map(primitive)]
        })
    }

    fn split_columns(x: Tensor<Self, 3>, widths: &[usize]) -> Vec<Tensor<Self, 3>> {
        let whole = value(&x);
        let outputs = B::split_columns(whole.clone(), widths);
        let parts = Parts::<B> {
            gradients: Arc::new(Mutex::new(vec![None; widths.len()])),
            widths: widths.to_vec(),
            d: whole.dims()[2],
        };
        let above: Tensor<Self, 3> = record([input(&x)], whole, parts.clone(), |parts, _, _| {
            [Some(primitive(parts.joined()))]
        });
        let outputs = outputs.into_iter().enumerate().map(|(i, output)| {
            let saved = (parts.clone(), i);
            record([input(&above)], output, saved, |(parts, i), dy, _| {
                [parts.put(i, dy).map(primitive)]
            })
        });
        outputs.collect()
    }
}
