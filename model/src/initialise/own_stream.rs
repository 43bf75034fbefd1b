//! Inputs and targets of a layer for a fit on the outputs of the student's own earlier layers.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::descent::{Example, squares};
use crate::block::Block;
use crate::mixers::discrete_mamba2::DiscreteMamba2;
use crate::precision::widen;

/// One sequence in so many is held out.
const HELD_OUT: usize = 8;
/// Added to the mean square of each token that is divided by, as a share of that of all.
const SMALLEST: f64 = 1e-6;

/// The residual streams of one piece of text before a layer, `[b, l, d_model]`.
pub(super) struct Streams<B: KernelBackend> {
    pub theirs: Tensor<B, 3>,
    pub own: Tensor<B, 3>,
}

/// What a layer is fitted to, of one piece of text.
pub(super) struct Piece<B: KernelBackend> {
    /// What the student's mixer reads, `[b, l, d_model]`.
    pub read: Tensor<B, 3>,
    /// What it is to give, without the bias of its output projection, of the same shape.
    pub wanted: Tensor<B, 3>,
    /// What it is to give before its output projection, `[b, l, h, p]`.
    pub context: Tensor<B, 4>,
    /// How much each token counts, `[b, l, 1]`.
    pub weights: Tensor<B, 3>,
    /// What its output is added to, `[b, l, d_model]`.
    pub beside: Tensor<B, 3>,
    /// The teacher's stream after its mixer, of the same shape.
    pub sum: Tensor<B, 3>,
}

impl<B: KernelBackend> Piece<B> {
    pub(super) fn read(own: &Block<B>, theirs: &Block<B>, streams: &Streams<B>) -> Self {
        let attention = theirs.mixer.softmax().expect("a layer");
        let (beside, u) = theirs.around_mixer(streams.theirs.clone());
        let context = attention.context(u);
        let sum = beside + attention.merge(context.clone());
        let (beside, read) = own.around_mixer(streams.own.clone());
        let [b, l, d] = sum.dims();
        let mut wanted = widen(sum.clone()) - widen(beside.clone());
        if let Some(added) = own.mixer.added_output(read.clone()) {
            wanted = wanted - widen(added);
        }
        let mamba = own.mixer.mamba().expect("a layer");
        if let Some(bias) = &mamba.out_proj.bias {
            wanted = wanted - widen(bias.val()).reshape([1, 1, d]);
        }
        let heads = context.dims()[2];
        let context = match own.mixer.added_context(read.clone(), heads) {
            Some(added) => context - added,
            None => context,
        };
        let squares = widen(sum.clone()).powi_scalar(2).mean_dim(2);
        let smallest = squares.clone().mean().mul_scalar(SMALLEST);
        let smallest = smallest.reshape([1, 1, 1]).expand([b, l, 1]);
        // The number alone only where all of the stream is zero.
        let weights = (squares + smallest).add_scalar(1e-12).recip();
        Self {
            read,
            wanted,
            context,
            weights,
            beside,
            sum,
        }
    }

    /// The sequences from `start` on, `n` of them, as one step of a descent reads them. The output projection's `bias`
    /// is part of what it gives.
    pub(super) fn example(&self, start: usize, n: usize, bias: Option<Tensor<B, 3>>) -> Example<B> {
        let wanted = self.wanted.clone().narrow(0, start, n);
        Example {
            read: self.read.clone().narrow(0, start, n),
            wanted: match bias {
                Some(bias) => wanted + bias,
                None => wanted,
            },
            weights: self.weights.clone().narrow(0, start, n),
        }
    }
}

/// Pieces of text, the last of which are held out: none where there is but one sequence.
pub(super) struct Split<T> {
    pub pieces: Vec<T>,
    pub held_out: usize,
}

impl<T> Split<T> {
    /// What is fitted.
    pub(super) fn fitted(&self) -> &[T] {
        &self.pieces[..self.pieces.len() - self.held_out]
    }

    /// What is held out, or all if nothing is.
    pub(super) fn measured(&self) -> &[T] {
        match self.held_out {
            0 => &self.pieces,
            n => &self.pieces[self.pieces.len() - n..],
        }
    }
}

/// The last sequences of `text` are held out.
pub(super) fn split<B: KernelBackend>(text: &[Tensor<B, 2, Int>]) -> Split<Tensor<B, 2, Int>> {
    let all: usize = text.iter().map(|ids| ids.dims()[0]).sum();
    let mut pieces = text.to_vec();
    let mut held_out = vec![];
    // Of a single sequence nothing can be held out.
    let mut left = if all > 1 { all.div_ceil(HELD_OUT) } else { 0 };
    while left > 0
        && let Some(last) = pieces.pop()
    {
        let rows = last.dims()[0];
        if rows > left {
            pieces.push(last.clone().narrow(0, 0, rows - left));
            held_out.push(last.narrow(0, rows - left, left));
            left = 0;
        } else {
            held_out.push(last);
            left -= rows;
        }
    }
    let n = held_out.len();
    pieces.extend(held_out);
    Split {
        pieces,
        held_out: n,
    }
}

/// The relative error of a mixer: the root of the weighted sum of squared errors over the weighted sum of squared
/// targets. 0 if the target is zero.
pub(super) fn share<B: KernelBackend>(mamba: &DiscreteMamba2<B>, pieces: &[Piece<B>]) -> f64 {
    let (mut lacking, mut whole) = (0.0, 0.0);
    for piece in pieces {
        let given = widen(through(mamba, mamba.gated(piece.read.clone())));
        lacking += squares(piece.wanted.clone() - given, piece.weights.clone());
        whole += squares(piece.wanted.clone(), piece.weights.clone());
    }
    if whole > 0.0 {
        (lacking / whole).sqrt()
    } else {
        0.0
    }
}

/// `y [b, l, d_inner]` through the output projection, without its bias.
fn through<B: KernelBackend>(mamba: &DiscreteMamba2<B>, y: Tensor<B, 3>) -> Tensor<B, 3> {
    kernels::linear(y, mamba.out_proj.weight.val(), None)
}
