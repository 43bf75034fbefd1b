//! A calibrated copy with a constant feature, and with output projections by ridge regression.
//!
//! Softmax gives every token some weight: the first term of the exponential's series is 1. So one channel of B and C,
//! that which turns slowest, becomes a constant: the scan then holds a sum of the values alone too, whose scale is
//! fitted with the others. Then the output projection is fitted to the attention's output in closed form.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::calibrated::{self, device, fit, host, options, start};
use super::solve::{add, mean_of_diagonal, solve};
use super::{Fit, InitError, Initialise, Stop, each_layer, layers, set};
use crate::lm::CausalLm;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::precision::widen;

/// Added to the diagonal of the regression, as a share of its mean.
const RIDGE: f64 = 1e-3;

pub(super) struct Ridge;

impl Initialise for Ridge {
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
        for layer in layers(student, teacher) {
            let theirs = teacher.backbone.layers[layer].mixer.softmax();
            let own = student.backbone.layers[layer].mixer.mamba();
            let reason = if theirs.is_some_and(|theirs| theirs.q_norm.is_some()) {
                "a teacher whose queries and keys have norms leaves no channel constant; set student.init = calibrated"
            } else if own.is_some_and(|own| !own.config().feature_map.is_identity()) {
                "behind a feature map no channel stays constant; set student.init = calibrated"
            } else if own.is_some_and(|own| own.conv1d.bias.is_none()) {
                "a constant channel needs student.conv_bias = true"
            } else {
                continue;
            };
            let reason = reason.into();
            return Err(InitError::Layer { layer, reason });
        }
        calibrated::check(student, teacher)
    }

    fn initialise<B: KernelBackend>(
        &self,
        student: &mut CausalLm<B>,
        teacher: &CausalLm<B>,
        text: &[Tensor<B, 2, Int>],
        stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError> {
        start(student, teacher, text, stop)?;
        for layer in layers(student, teacher) {
            let mamba = student.backbone.layers[layer].mixer.mamba_mut();
            mamba.expect("a layer").free_constant_channel();
        }
        fit(student, teacher, text, true, stop)?;
        regress(student, teacher, text, stop)
    }
}

/// Sums over the text, of one layer.
struct Sums {
    /// Of the products of what the output projection reads, `[d_inner, d_inner]`.
    gram: Vec<f64>,
    /// Of its products with what it is to give, `[d_inner, d_model]`.
    right: Vec<f64>,
    /// Of the squares of what it is to give.
    squares: f64,
}

/// Fits the output projections.
fn regress<B: KernelBackend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
    text: &[Tensor<B, 2, Int>],
    stop: Stop<'_>,
) -> Result<Vec<Fit>, InitError> {
    let layers = layers(student, teacher);
    let new = || Sums {
        gram: vec![],
        right: vec![],
        squares: 0.0,
    };
    let mut sums: Vec<Sums> = student.backbone.layers.iter().map(|_| new()).collect();
    for ids in text {
        each_layer(teacher, ids.clone(), stop, |layer, u| {
            if !layers.contains(&layer) {
                return;
            }
            let own = &student.backbone.layers[layer].mixer;
            let mamba = own.mamba().expect("a layer");
            let mut wanted = teacher.backbone.layers[layer].mixer.forward(u.clone());
            if let Some(added) = own.added_output(u.clone()) {
                wanted = wanted - added;
            }
            if let Some(bias) = &mamba.out_proj.bias {
                let d = wanted.dims()[2];
                wanted = wanted - bias.val().reshape([1, 1, d]);
            }
            let y = widen(mamba.gated(u));
            let wanted = widen(wanted);
            let [b, l, d_inner] = y.dims();
            let d = wanted.dims()[2];
            let (y, wanted) = (y.reshape([b * l, d_inner]), wanted.reshape([b * l, d]));
            let sums = &mut sums[layer];
            sums.squares += host(wanted.clone().powi_scalar(2).sum())[0];
            // The product of this project, which keeps all bits of f32 on every backend.
            let (y, wanted) = (y.transpose(), wanted.transpose());
            add(
                &mut sums.gram,
                host(kernels::linear(y.clone(), y.clone(), None)),
            );
            add(&mut sums.right, host(kernels::linear(y, wanted, None)));
        })?;
    }
    let mut fits = vec![];
    for layer in layers {
        let mamba = student.backbone.layers[layer].mixer.mamba_mut();
        let mamba = mamba.expect("a layer");
        let [d, d_inner] = mamba.out_proj.weight.dims();
        let Sums {
            gram,
            right,
            squares,
        } = &sums[layer];
        let ridge = RIDGE * mean_of_diagonal(gram, d_inner);
        let x = solve(gram, right, d_inner, ridge);
        let of_target: f64 = x.iter().zip(right).map(|(x, r)| x * r).sum();
        // With (G + r I) x = R: x G x = x R - r x x.
        let norm: f64 = x.iter().map(|x| x * x).sum();
        let lacking = (squares - of_target - ridge * norm).max(0.0);
        let weight = device::<B, 2>(&x, [d_inner, d], &mamba.d.val()).transpose();
        set(&mut mamba.out_proj.weight, weight);
        fits.push(Fit::new(layer, lacking, *squares));
    }
    Ok(fits)
}
