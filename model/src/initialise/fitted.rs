//! A copy of the attention that is fitted layer by layer on the student's own stream.
//!
//! `calibrated` and `ridge` fit every layer on the inputs of the teacher's layers. A student never has exactly these
//! inputs: the error of each layer is in the input of the next one, and the errors of thirty layers add up. Here the
//! input of a layer is the output of the student's own earlier layers, and its target is the output that brings the
//! residual stream back to the teacher's. So each layer corrects the errors of the layers before it.
//!
//! In each layer, in this order, on the same text:
//!
//! 1. each head's decay is the one, out of a dozen, with which the scan comes nearest to the head's attention;
//! 2. the scan, D and a constant feature get the scales of least squares, as in `calibrated` and `ridge`; the scale of
//!    the scan, which is small, is shared out evenly between B and C, as in [even](super::even);
//! 3. each head's [gate](super::gates) follows what the layer reads;
//! 4. the output projection is that of the ridge regression which is drawn towards the copy and not towards zero, with
//!    the ridge that does best on text that is held out: directions of which the text says little stay the teacher's;
//! 5. with a [descent](super::descent), all of the mixer's parameters are brought nearer by some steps of Adam.
//!
//! Each token is weighted by the inverse of its sum of squares in the teacher's stream, because the norm that reads the
//! stream divides by it. Without these weights, the few tokens with the largest stream, such as the first token of a
//! text, would dominate.
//!
//! The mixer is chosen among those after step 2, after step 4 with and without step 3, and after step 5: the one with
//! the smallest error on the held-out text is kept.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::calibrated::{self, HeadSums, options, set_decays};
use super::copy::copy;
use super::descent::Descent;
use super::even::even_out;
use super::gates::{Tokens, with_gates};
use super::own_stream::{Piece, Split, Streams, share, split};
use super::projection::with_projection;
use super::{Fit, InitError, Initialise, Stop, layers};
use crate::lm::CausalLm;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config};
use crate::precision::widen;

/// The half-lives that a head's decay is chosen from, in tokens.
const HALF_LIVES: [f64; 12] = [
    0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0, 1e5,
];
/// Tokens that one step of the descent reads, about.
const TOKENS_OF_STEP: usize = 4096;

/// The closed form alone.
pub(super) struct Fitted;

/// The closed form, and a descent from there.
pub(super) struct Tuned;

/// The descent of [`Tuned`].
const DESCENT: Descent = Descent {
    steps: 200,
    lr: 1e-3,
};
/// How often a descent that came no nearer is tried again, from the same start and with a quarter of the rate.
const RETRIES: usize = 2;

macro_rules! fitted {
    ($type:ident, $descent:expr) => {
        impl Initialise for $type {
            fn options(
                &self,
                mixer: DiscreteMamba2Config,
                of_teacher: &AttentionConfig,
                d_model: usize,
            ) -> DiscreteMamba2Config {
                options(mixer, of_teacher, d_model)
            }

            fn reads_text(&self) -> bool {
                true
            }

            fn check<B: KernelBackend>(
                &self,
                student: &CausalLm<B>,
                teacher: &CausalLm<B>,
            ) -> Result<(), InitError> {
                calibrated::check_plain(student, teacher)
            }

            fn initialise<B: KernelBackend>(
                &self,
                student: &mut CausalLm<B>,
                teacher: &CausalLm<B>,
                text: &[Tensor<B, 2, Int>],
                stop: Stop<'_>,
            ) -> Result<Vec<Fit>, InitError> {
                start(student, teacher, text, $descent, stop)
            }
        }
    };
}

fitted!(Fitted, None);
fitted!(Tuned, Some(DESCENT));

/// Fits layer after layer.
fn start<B: KernelBackend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
    text: &[Tensor<B, 2, Int>],
    descent: Option<Descent>,
    stop: Stop<'_>,
) -> Result<Vec<Fit>, InitError> {
    if text.is_empty() {
        return Err(InitError::NoText);
    }
    copy(student, teacher, |p| (p as f64).powf(-0.5));
    let fitted = layers(student, teacher);
    let Split { pieces, held_out } = split(text);
    let embed = |ids: &Tensor<B, 2, Int>| Streams {
        theirs: teacher.backbone.embedding.forward(ids.clone()),
        own: student.backbone.embedding.forward(ids.clone()),
    };
    let mut streams: Vec<Streams<B>> = pieces.iter().map(embed).collect();
    let mut fits = vec![];
    for (layer, theirs) in teacher.backbone.layers.iter().enumerate() {
        let own = &mut student.backbone.layers[layer];
        if !fitted.contains(&layer) {
            for streams in &mut streams {
                asked(stop)?;
                streams.theirs = theirs.forward(streams.theirs.clone());
                streams.own = own.forward(streams.own.clone());
            }
            continue;
        }
        let mut pieces = vec![];
        for streams in &streams {
            asked(stop)?;
            pieces.push(Piece::read(own, theirs, streams));
        }
        let text = Split { pieces, held_out };
        let mamba = own.mixer.mamba_mut().expect("a layer");
        let set_up = |reason| InitError::Layer { layer, reason };
        scale(mamba, &text, stop, set_up)?;
        let (best, error) = nearest(mamba, &text, descent, stop)?;
        *mamba = best;
        fits.push(Fit { layer, error });
        for (streams, piece) in streams.iter_mut().zip(text.pieces) {
            let Piece {
                read, beside, sum, ..
            } = piece;
            streams.theirs = theirs.behind_mixer(sum);
            streams.own = own.behind_mixer(beside + own.mixer.forward(read));
        }
    }
    Ok(fits)
}

/// # Errors
/// [`InitError::Stopped`] if `stop` says so.
fn asked(stop: Stop<'_>) -> Result<(), InitError> {
    if stop() {
        return Err(InitError::Stopped);
    }
    Ok(())
}

/// Whether a channel of B and C can become a constant.
fn has_constant<B: KernelBackend>(mamba: &DiscreteMamba2<B>) -> bool {
    mamba.conv1d.bias.is_some() && mamba.b_norm.is_none() && mamba.c_norm.is_none()
}

/// Gives the copy of a layer's attention its decays, and its terms their scales.
fn scale<B: KernelBackend>(
    mamba: &mut DiscreteMamba2<B>,
    text: &Split<Piece<B>>,
    stop: Stop<'_>,
    refused: impl Fn(String) -> InitError,
) -> Result<(), InitError> {
    let constant = has_constant(mamba);
    if constant {
        mamba.free_constant_channel();
    }
    let h = mamba.config().n_v_heads;
    let sums = |mamba: &DiscreteMamba2<B>, pieces: &[Piece<B>]| {
        let mut sums = HeadSums::new(2 + usize::from(constant));
        for piece in pieces {
            let features = mamba.features(piece.read.clone(), constant);
            let [b, l, _] = piece.read.dims();
            let root = piece.weights.clone().sqrt().reshape([b, l, 1, 1]);
            let weigh = |x: Tensor<B, 4>| widen(x) * root.clone();
            let features = features.into_iter().map(weigh).collect();
            sums.add(features, weigh(piece.context.clone()));
        }
        sums.fit()
    };
    // The first piece says enough of one number.
    let first = &text.fitted()[..1];
    let mut best = vec![(f64::INFINITY, HALF_LIVES[0]); h];
    for half_life in HALF_LIVES {
        asked(stop)?;
        set_decays(mamba, &vec![half_life; h]).map_err(&refused)?;
        let lacking = sums(mamba, first).lacking;
        for (best, lacking) in best.iter_mut().zip(lacking) {
            if lacking < best.0 {
                *best = (lacking, half_life);
            }
        }
    }
    let half_lives: Vec<f64> = best.iter().map(|(_, half_life)| *half_life).collect();
    set_decays(mamba, &half_lives).map_err(&refused)?;
    asked(stop)?;
    let scales = sums(mamba, text.fitted()).scales;
    let of_scan: Vec<f64> = scales.iter().map(|scales| scales[0]).collect();
    even_out(mamba, first[0].read.clone(), &of_scan);
    mamba.set_scales(&scales);
    Ok(())
}

/// Of the mixer as it is, with its output projection fitted, with its gates fitted too, and after a descent: the one
/// that lacks least of what is held out, and its share.
fn nearest<B: KernelBackend>(
    mamba: &DiscreteMamba2<B>,
    text: &Split<Piece<B>>,
    descent: Option<Descent>,
    stop: Stop<'_>,
) -> Result<(DiscreteMamba2<B>, f64), InitError> {
    asked(stop)?;
    let mut best = (mamba.clone(), share(mamba, text.measured()));
    let mut offer = |mamba: DiscreteMamba2<B>| {
        let error = share(&mamba, text.measured());
        if error < best.1 {
            best = (mamba, error);
        }
    };
    offer(with_projection(mamba, text));
    let tokens = text.fitted().iter().map(|piece| Tokens {
        read: piece.read.clone(),
        wanted: piece.context.clone(),
        weights: piece.weights.clone(),
    });
    // Where C has a norm, the scale of a head is in the output projection, behind the gate.
    if mamba.c_norm.is_none()
        && let Some(gated) = with_gates(mamba, tokens)
    {
        asked(stop)?;
        offer(with_projection(&gated, text));
    }
    if let Some(descent) = descent {
        let from = best.0.clone();
        let bias = from.out_proj.bias.as_ref().map(|bias| {
            let bias = widen(bias.val());
            let d = bias.dims()[0];
            bias.reshape([1, 1, d])
        });
        let mut examples = vec![];
        for piece in text.fitted() {
            let [b, l, _] = piece.read.dims();
            let rows = (TOKENS_OF_STEP / l).clamp(1, b);
            for start in (0..b).step_by(rows) {
                let n = rows.min(b - start);
                examples.push(piece.example(start, n, bias.clone()));
            }
        }
        let mut descent = descent;
        for _ in 0..=RETRIES {
            let tuned = descent.run(&from, &examples, stop)?;
            let error = share(&tuned, text.measured());
            if error < best.1 {
                best = (tuned, error);
                break;
            }
            descent.lr /= 4.0;
        }
    }
    Ok(best)
}
