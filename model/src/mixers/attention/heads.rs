//! One attention's heads in another.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::KernelBackend;

use super::Attention;
use crate::layers::{Linear, Norm};

impl<B: KernelBackend> Attention<B> {
    /// Takes over all of `theirs`, if that has as many heads; whatever window each has.
    pub(crate) fn copy_from(&mut self, theirs: &Attention<B>) {
        let sizes = |attention: &Attention<B>| {
            let config = attention.config();
            let norm = attention.q_norm.is_some();
            let biases = (config.qkv_bias, config.dense_bias, norm);
            (config.n_heads, config.n_kv_heads, attention.p, biases)
        };
        if sizes(self) == sizes(theirs) {
            let record = theirs.clone().into_record();
            *self = self.clone().load_record(record);
        }
    }

    /// Takes over the query heads `heads` of `theirs`, with the keys and values that each reads; heads in a row that
    /// share their keys and values here must do so there. Their sizes must fit.
    pub(crate) fn copy_heads(&mut self, theirs: &Attention<B>, heads: &[usize]) {
        let p = self.p;
        let group = theirs.config().n_heads / theirs.config().n_kv_heads;
        let own_group = self.config().n_heads / self.config().n_kv_heads;
        let shared: Vec<usize> = (heads.iter().step_by(own_group))
            .map(|head| head / group)
            .collect();
        rows(&mut self.q_proj, &theirs.q_proj, heads, p);
        rows(&mut self.k_proj, &theirs.k_proj, &shared, p);
        rows(&mut self.v_proj, &theirs.v_proj, &shared, p);
        let columns = picked(theirs.dense.weight.val().transpose(), heads, p).transpose();
        set(&mut self.dense.weight, columns);
        if let (Some(own), Some(bias)) = (&mut self.dense.bias, &theirs.dense.bias) {
            set(own, bias.val());
        }
        let norms = [
            (&mut self.q_norm, &theirs.q_norm),
            (&mut self.k_norm, &theirs.k_norm),
        ];
        for (own, theirs) in norms {
            if let (Some(Norm { weight, .. }), Some(theirs)) = (own, theirs) {
                set(weight, theirs.weight.val());
            }
        }
    }
}

/// How many heads of keys and values the query heads `heads`, ascending, need of an attention in which each of those is
/// shared by `group` query heads: those that they read, if each is read by as many of them; otherwise one for each, since
/// an attention has groups of one size.
pub(crate) fn kv_heads(heads: &[usize], group: usize) -> usize {
    let groups: Vec<&[usize]> = heads.chunk_by(|a, b| a / group == b / group).collect();
    if groups.windows(2).all(|pair| pair[0].len() == pair[1].len()) {
        groups.len()
    } else {
        heads.len()
    }
}

/// The rows of `heads` of `p`, one after the other.
fn picked<B: KernelBackend, const D: usize>(
    all: Tensor<B, D>,
    heads: &[usize],
    p: usize,
) -> Tensor<B, D> {
    let each = heads.iter().map(|head| all.clone().narrow(0, head * p, p));
    Tensor::cat(each.collect(), 0)
}

/// Sets the rows of a projection.
fn rows<B: KernelBackend>(own: &mut Linear<B>, theirs: &Linear<B>, heads: &[usize], p: usize) {
    set(&mut own.weight, picked(theirs.weight.val(), heads, p));
    if let (Some(own), Some(theirs)) = (&mut own.bias, &theirs.bias) {
        set(own, picked(theirs.val(), heads, p));
    }
}

fn set<B: KernelBackend, const D: usize>(parameter: &mut Param<Tensor<B, D>>, value: Tensor<B, D>) {
    *parameter = Param::initialized(parameter.id, value);
}

#[cfg(test)]
mod tests {
    use super::kv_heads;

    /// Three query heads to each head of keys and values.
    #[test]
    fn keys_and_values_are_shared_where_all_groups_are_alike() {
        for (heads, expected) in [
            (&[][..], 0),
            (&[4], 1),
            (&[3, 4, 5], 1),
            (&[0, 2], 1),
            (&[0, 3, 8], 3),
            (&[0, 1, 6, 8], 2),
            // Two of the first and one of the second.
            (&[0, 1, 3], 3),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8], 3),
        ] {
            assert_eq!(kv_heads(heads, 3), expected, "{heads:?}");
        }
        assert_eq!(kv_heads(&[1, 2, 5], 1), 3);
    }
}
