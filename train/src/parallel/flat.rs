//! Parameters in one flat order, and buckets of them.
//!
//! The order is that of the published names, which checkpoints use too: the ids of modules differ from process to
//! process.

use burn::module::ParamId;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use model::{CausalLm, Layout, named_parameters};

use super::share::part;

/// A parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its id in this process.
    pub id: ParamId,
    /// Its elements.
    pub elements: usize,
}

/// All parameters of a student, in the order of their published names.
#[derive(Debug, Clone)]
pub struct FlatOrder(pub(super) Vec<Entry>);

impl FlatOrder {
    /// The parameters of `student` in that order.
    pub fn of<B: Backend>(student: &CausalLm<B>, layout: Layout) -> Self {
        let mut named = named_parameters(student, layout);
        named.sort_by(|one, other| one.name.cmp(&other.name));
        let entry = |parameter: &model::NamedParameter| Entry {
            id: parameter.id,
            elements: parameter.shape.iter().product(),
        };
        Self(named.iter().map(entry).collect())
    }

    /// All of them.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The `wanted` parameters, in buckets of at most `most` elements; a larger parameter has its own bucket.
    pub fn buckets(&self, wanted: impl Fn(ParamId) -> bool, most: usize) -> Vec<Bucket> {
        let wanted = self.0.iter().filter(|entry| wanted(entry.id));
        buckets(wanted.copied(), most)
    }
}

/// Parameters that are exchanged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket(pub Vec<Entry>);

impl Bucket {
    /// The elements of all its parameters.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|entry| entry.elements).sum()
    }

    /// The elements of a rank's part, including its padding.
    pub fn part(&self, world: usize) -> usize {
        self.0.iter().map(|entry| part(entry.elements, world)).sum()
    }
}

/// The parameters `entries`, in their order, in buckets of at most `most` elements; a larger parameter has its own
/// bucket.
pub(super) fn buckets(entries: impl IntoIterator<Item = Entry>, most: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = vec![];
    for entry in entries {
        match buckets.last_mut() {
            Some(last) if last.elements() + entry.elements <= most => last.0.push(entry),
            _ => buckets.push(Bucket(vec![entry])),
        }
    }
    buckets
}

/// `x`, with zeros up to `length`.
pub(super) fn filled<B: Backend>(x: Tensor<B, 1>, length: usize) -> Tensor<B, 1> {
    let [n] = x.dims();
    if n == length {
        return x;
    }
    let zeros = Tensor::<B, 1>::zeros([length - n], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_of_few_elements() {
        let entry = |elements: &usize| Entry {
            id: ParamId::new(),
            elements: *elements,
        };
        let entries: Vec<_> = [5, 3, 100, 2, 8, 1].iter().map(entry).collect();
        let left_out = entries[3].id;
        let buckets = FlatOrder(entries).buckets(|id| id != left_out, 10);
        let sizes = |bucket: &Bucket| -> Vec<usize> {
            bucket.0.iter().map(|entry| entry.elements).collect()
        };
        let sizes: Vec<_> = buckets.iter().map(sizes).collect();
        assert_eq!(sizes, [vec![5, 3], vec![100], vec![8, 1]]);
    }
}
