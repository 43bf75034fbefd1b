//! The definition, in tensor operations: chunked, so linear in the length.
//!
//! Letters in names: b batch, c chunk, q and s positions in a chunk, h head, p head dimension,
//! n state dimension.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;

use super::{ScanInputs, SsdGradients};
use crate::dtype::{narrow, sigmoid, widen};
use crate::groups::{to_groups, to_heads};
use crate::product::product;

/// `-softplus(a_log)`: the logarithm of the decay, without overflow at either end.
pub fn log_decay<B: Backend, const D: usize>(a_log: Tensor<B, D>) -> Tensor<B, D> {
    -(relu(a_log.clone()) + (-a_log.abs()).exp().log1p())
}

/// `[b, h, c, q]` log-decays to `[b, h, c, q, q]`: at `(l, s)` their sum over `(s, l]`, and `-inf`
/// above the diagonal.
///
/// The sum is taken anew for every `s`, and not as a difference of two running sums: if the running sums are large,
/// their small difference loses its precision.
pub fn segment_sums<B: Backend>(log_decay_bhcq: Tensor<B, 4>) -> Tensor<B, 5> {
    let [b, h, c, q] = log_decay_bhcq.dims();
    let options = (&log_decay_bhcq.device(), log_decay_bhcq.dtype());
    let ones = Tensor::<B, 2>::ones([q, q], options);
    let below = ones.clone().tril(-1).reshape([1, 1, 1, q, q]);
    let above = ones.triu(1).greater_elem(0.5).unsqueeze::<5>();
    // Row l holds the l-th log-decay in every column s < l, and 0 elsewhere.
    let rows = log_decay_bhcq.reshape([b, h, c, q, 1]) * below;
    rows.cumsum(3)
        .mask_fill(above.expand([b, h, c, q, q]), f32::NEG_INFINITY)
}

/// The scan's inputs cut into chunks, groups repeated to heads, everything `[b, h, c, q, ..]`.
struct Chunked<B: Backend> {
    x_bhcqp: Tensor<B, 5>,
    b_bhcqn: Tensor<B, 5>,
    c_bhcqn: Tensor<B, 5>,
    /// `L[l, s]`, the product of the decays in `(s, l]`: `[b, h, c, q, q]`.
    decay_bhcls: Tensor<B, 5>,
    /// The product of the decays from the chunk's start through `l`: `[b, h, c, q, 1]`.
    decay_in_bhcq: Tensor<B, 5>,
    /// The product of the decays after `s` to the chunk's end: `[b, h, c, q, 1]`.
    decay_out_bhcq: Tensor<B, 5>,
    /// The state that enters each chunk, `[b, h, p, n]`, and last the one after the last token.
    states: Vec<Tensor<B, 4>>,
}

/// `[b, l, h, d]` to `[b, h, c, q, d]`, zeros after the end.
fn to_chunks<B: Backend>(x: Tensor<B, 4>, q: usize) -> Tensor<B, 5> {
    let [b, l, h, d] = x.dims();
    let chunks = l.div_ceil(q);
    let x = match chunks * q - l {
        0 => x,
        missing => {
            let zeros = Tensor::zeros([b, missing, h, d], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 1)
        }
    };
    x.reshape([b, chunks, q, h, d]).permute([0, 3, 1, 2, 4])
}

/// `[b, h, c, q, d]` back to `[b, l, h, d]`.
fn from_chunks<B: Backend>(x: Tensor<B, 5>, l: usize) -> Tensor<B, 4> {
    let [b, h, c, q, d] = x.dims();
    x.permute([0, 2, 3, 1, 4])
        .reshape([b, c * q, h, d])
        .narrow(1, 0, l)
}

/// Chunk `k` of `[b, h, c, ..]` as `[b, h, ..]`.
fn chunk<B: Backend>(x: &Tensor<B, 5>, k: usize) -> Tensor<B, 4> {
    let [b, h, _, d, e] = x.dims();
    x.clone().narrow(2, k, 1).reshape([b, h, d, e])
}

impl<B: Backend> Chunked<B> {
    fn new(scan: ScanInputs<B>, q: usize) -> Self {
        let ScanInputs { x, a_log, b, c, .. } = scan;
        let [batch, l, h, p] = x.dims();
        let n = b.dims()[3];
        let chunks = l.div_ceil(q);
        // Past the end x is 0 and the log-decay is 0 (no decay), so the last state passes through.
        let log_decay = to_chunks(log_decay(widen(a_log)).reshape([batch, l, h, 1]), q)
            .reshape([batch, h, chunks, q]);
        let decay_bhcls = segment_sums(log_decay.clone()).exp();
        let decay_in_bhcq = log_decay.cumsum(3).exp().reshape([batch, h, chunks, q, 1]);
        let decay_out_bhcq = decay_bhcls.clone().narrow(3, q - 1, 1).swap_dims(3, 4);
        let x_bhcqp = to_chunks(widen(x), q);
        let b_bhcqn = to_chunks(to_heads(widen(b), h), q);
        let c_bhcqn = to_chunks(to_heads(widen(c), h), q);

        // 2. What each chunk adds to the state by its end.
        let decayed = (x_bhcqp.clone() * decay_out_bhcq.clone()).swap_dims(3, 4);
        let added_bhcpn = product(decayed, b_bhcqn.clone());
        // 3. The recurrence over chunks.
        let options = (&x_bhcqp.device(), x_bhcqp.dtype());
        let mut state = match scan.initial_state {
            Some(state) => widen(state),
            None => Tensor::zeros([batch, h, p, n], options),
        };
        let mut states = vec![state.clone()];
        for k in 0..chunks {
            let whole_chunk = chunk(&decay_in_bhcq, k).narrow(2, q - 1, 1);
            state = state * whole_chunk + chunk(&added_bhcpn, k);
            states.push(state.clone());
        }
        Self {
            x_bhcqp,
            b_bhcqn,
            c_bhcqn,
            decay_bhcls,
            decay_in_bhcq,
            decay_out_bhcq,
            states,
        }
    }

    fn entering_states(&self) -> Tensor<B, 5> {
        let chunks = self.states.len() - 1;
        Tensor::stack(self.states[..chunks].to_vec(), 2)
    }
}

/// See [`ssd_scan`](super::ssd_scan).
pub fn forward<B: Backend>(scan: ScanInputs<B>, q: usize) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let (l, dtype) = (scan.x.dims()[1], scan.x.dtype());
    let s = Chunked::new(scan, q);
    // 1. Inside each chunk.
    let scores = product(s.c_bhcqn.clone(), s.b_bhcqn.clone().swap_dims(3, 4));
    let y_inside = product(scores * s.decay_bhcls.clone(), s.x_bhcqp.clone());
    // 4. What the entering state gives each output.
    let from_state = product(s.c_bhcqn.clone(), s.entering_states().swap_dims(3, 4));
    let y = y_inside + from_state * s.decay_in_bhcq.clone();
    let last = s.states[s.states.len() - 1].clone();
    (narrow(from_chunks(y, l), dtype), last)
}

/// The sum over positions from `k` to the end of the chunk, for each `k` of `[b, h, c, q]`.
pub(crate) fn suffix_sums<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    x.flip([3]).cumsum(3).flip([3])
}

/// The gradients of `sum(y * dy)`. The decays and the entering states are computed again, so that
/// nothing but the inputs is kept from the forward pass.
pub fn backward<B: Backend>(scan: ScanInputs<B>, dy: Tensor<B, 4>, q: usize) -> SsdGradients<B> {
    let [batch, l, h, _] = scan.x.dims();
    let g = scan.b.dims()[2];
    let dtypes = (scan.x.dtype(), scan.a_log.dtype(), scan.b.dtype());
    let chunks = l.div_ceil(q);
    let a_log = scan.a_log.clone();
    let s = Chunked::new(scan, q);
    let dy_bhcqp = to_chunks(widen(dy), q);
    let over_last = |t: Tensor<B, 5>| t.sum_dim(4).reshape([batch, h, chunks, q]);

    // 4. backward: from each output to the entering state and to C.
    let entering_bhcpn = s.entering_states();
    let decayed_dy = dy_bhcqp.clone() * s.decay_in_bhcq.clone();
    let dentering_bhcpn = product(decayed_dy.clone().swap_dims(3, 4), s.c_bhcqn.clone());
    let dc_from_state = product(decayed_dy, entering_bhcpn);
    let mut dlog_in = over_last(dc_from_state.clone() * s.c_bhcqn.clone());

    // 3. backward: the recurrence from the last chunk to the first. `dleaving[k]` is the gradient to the state after
    //    chunk k. The last one is zero, because no output depends on the final state.
    let mut dstate = Tensor::zeros_like(&s.states[0]);
    let mut dleaving = Vec::with_capacity(chunks);
    let mut dlog_whole = Vec::with_capacity(chunks);
    for k in (0..chunks).rev() {
        let whole_chunk = chunk(&s.decay_in_bhcq, k).narrow(2, q - 1, 1);
        let decayed = dstate.clone() * whole_chunk;
        dlog_whole.push(
            (decayed.clone() * s.states[k].clone())
                .sum_dim(3)
                .sum_dim(2),
        );
        dleaving.push(dstate);
        dstate = decayed + chunk(&dentering_bhcpn, k);
    }
    dleaving.reverse();
    dlog_whole.reverse();
    let dleaving_bhcpn = Tensor::stack::<5>(dleaving, 2);
    // The whole chunk's decay is its last position's decay_in.
    let dlog_whole = Tensor::cat(dlog_whole, 2);
    let last = dlog_in.clone().narrow(3, q - 1, 1) + dlog_whole;
    dlog_in = dlog_in.slice_assign([0..batch, 0..h, 0..chunks, q - 1..q], last);

    // 2. backward: from the state at a chunk's end to x and B.
    let leaving = dleaving_bhcpn.clone().swap_dims(3, 4);
    let dx_from_state = product(s.b_bhcqn.clone(), leaving) * s.decay_out_bhcq.clone();
    let db_from_state = product(s.x_bhcqp.clone(), dleaving_bhcpn) * s.decay_out_bhcq.clone();
    let dlog_out = over_last(db_from_state.clone() * s.b_bhcqn.clone());

    // 1. backward: inside each chunk, with M = L o C B^T.
    let scores = product(s.c_bhcqn.clone(), s.b_bhcqn.clone().swap_dims(3, 4));
    let m = scores * s.decay_bhcls.clone();
    let dm = product(dy_bhcqp.clone(), s.x_bhcqp.clone().swap_dims(3, 4));
    let dx = product(m.clone().swap_dims(3, 4), dy_bhcqp) + dx_from_state;
    let dscores = dm.clone() * s.decay_bhcls;
    let dc = product(dscores.clone(), s.b_bhcqn.clone()) + dc_from_state;
    let db = product(dscores.swap_dims(3, 4), s.c_bhcqn) + db_from_state;
    let dlog_l = dm * m;

    // The log-decay at k is part of L[l, s] for s < k <= l, of decay_in from k on, and of decay_out before k. The
    // diagonal of L contains no decay. If it were included, its terms would cancel, but only up to rounding errors.
    let dlog_l = dlog_l.tril(-1);
    let rows = over_last(dlog_l.clone());
    let columns = over_last(dlog_l.swap_dims(3, 4));
    let before = dlog_out.clone().cumsum(3) - dlog_out;
    let dlog_decay = suffix_sums(dlog_in + rows - columns) + before;
    let dlog_decay = from_chunks(dlog_decay.reshape([batch, h, chunks, q, 1]), l);
    let da_log = -dlog_decay.reshape([batch, l, h]) * sigmoid(widen(a_log));

    SsdGradients {
        x: narrow(from_chunks(dx, l), dtypes.0),
        a_log: narrow(da_log, dtypes.1),
        b: narrow(to_groups(from_chunks(db, l), g), dtypes.2),
        c: narrow(to_groups(from_chunks(dc, l), g), dtypes.2),
        initial_state: dstate,
    }
}
