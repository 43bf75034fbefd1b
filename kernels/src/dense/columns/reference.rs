//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// See [`split_columns`](super::split_columns).
pub fn split<B: Backend>(x: Tensor<B, 3>, widths: &[usize]) -> Vec<Tensor<B, 3>> {
    let mut start = 0;
    let part = |width: &usize| {
        let part = x.clone().narrow(2, start, *width);
        start += width;
        part
    };
    widths.iter().map(part).collect()
}

/// See [`Columns::join_columns`](super::Columns::join_columns).
pub fn join<B: Backend>(
    parts: Vec<Option<Tensor<B, 3>>>,
    widths: &[usize],
    d: usize,
) -> Tensor<B, 3> {
    Tensor::cat(all_columns(parts, widths, d), 2)
}

/// The parts with zeros for those that have no gradient, and behind the last.
pub(super) fn all_columns<B: Backend>(
    parts: Vec<Option<Tensor<B, 3>>>,
    widths: &[usize],
    d: usize,
) -> Vec<Tensor<B, 3>> {
    let first = parts.iter().flatten().next().expect("a part's gradient");
    let ([b, l, _], device, dtype) = (first.dims(), first.device(), first.dtype());
    let zeros = |width| Tensor::zeros([b, l, width], (&device, dtype));
    let parts = parts.into_iter().zip(widths);
    let mut all: Vec<_> = parts
        .map(|(part, width)| part.unwrap_or_else(|| zeros(*width)))
        .collect();
    let rest = d - widths.iter().sum::<usize>();
    if rest > 0 {
        all.push(zeros(rest));
    }
    all
}
