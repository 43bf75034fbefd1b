//! A copy of the attention that is fitted to its outputs on text.
//!
//! Softmax attention and the mixer differ in three quantities, which a plain copy gets wrong by orders of magnitude:
//! the scale of the scores, how fast they decay with distance, and their sum. So the queries get the attention's scale.
//! Each head gets a constant decay, whose half-life is the average distance that the head's attention looks back. And
//! the scan and D are scaled such that their sum is closest to the attention's output before the output projection, by
//! least squares over the text.

use std::f64::consts::LN_2;

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::copy::{self, copy};
use super::solve::{mean_of_diagonal, solve};
use super::{Fit, InitError, Initialise, Stop, each_layer, layers, set};
use crate::lm::CausalLm;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config, MixerRotary};
use crate::precision::widen;

/// Sequences that the look-back is measured on.
const LOOK_BACK: usize = 16;
/// No head looks back less than this, in tokens.
const SHORTEST: f64 = 0.25;
/// Added to the diagonal of the least squares, as a share of its mean.
const RIDGE: f64 = 1e-5;

pub(super) struct Calibrated;

impl Initialise for Calibrated {
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
        check(student, teacher)
    }

    fn initialise<B: KernelBackend>(
        &self,
        student: &mut CausalLm<B>,
        teacher: &CausalLm<B>,
        text: &[Tensor<B, 2, Int>],
        stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError> {
        start(student, teacher, text, stop)?;
        fit(student, teacher, text, false, stop)
    }
}

/// [`check`], and that products of B and C can be shared out between the two at will, as behind a feature map they cannot.
pub(super) fn check_plain<B: KernelBackend>(
    student: &CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), InitError> {
    check(student, teacher)?;
    for layer in layers(student, teacher) {
        let mamba = student.backbone.layers[layer].mixer.mamba();
        if !mamba.expect("a layer").config().feature_map.is_identity() {
            let reason =
                "such a start needs student.feature_map = identity; set student.init = calibrated"
                    .into();
            return Err(InitError::Layer { layer, reason });
        }
    }
    Ok(())
}

/// Checks that every layer's mixer has room for all of the teacher's attention, and that its output is added to the
/// output of the attention beside it. Nothing else can be fitted.
pub(super) fn check<B: KernelBackend>(
    student: &CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), InitError> {
    copy::check(student, teacher)?;
    for layer in layers(student, teacher) {
        if !student.backbone.layers[layer].mixer.is_sum() {
            return Err(InitError::Layer {
                layer,
                reason:
                    "scales are fitted to a sum; set student.joined = sum or student.init = copy"
                        .into(),
            });
        }
    }
    Ok(())
}

/// With the attention's rotary positions on B and C, and a bias of A_log in one place.
pub(super) fn options(
    mixer: DiscreteMamba2Config,
    of_teacher: &AttentionConfig,
    d_model: usize,
) -> DiscreteMamba2Config {
    DiscreteMamba2Config {
        rotary: Some(MixerRotary::of(of_teacher, d_model)),
        a_log_bias: mixer.a_log_bias || !mixer.bias,
        ..mixer
    }
}

/// The copy, with the attention's scale and its decays.
pub(super) fn start<B: KernelBackend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
    text: &[Tensor<B, 2, Int>],
    stop: Stop<'_>,
) -> Result<(), InitError> {
    if text.is_empty() {
        return Err(InitError::NoText);
    }
    copy(student, teacher, |p| (p as f64).powf(-0.5));
    let layers = layers(student, teacher);
    let back = look_back(teacher, text, stop)?;
    for layer in layers {
        let mamba = student.backbone.layers[layer].mixer.mamba_mut();
        let mamba = mamba.expect("a layer");
        set_decays(mamba, &back[layer]).map_err(|reason| InitError::Layer { layer, reason })?;
    }
    Ok(())
}

/// The numbers of a tensor, on the host.
pub(super) fn host<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// A tensor of numbers on the host.
pub(super) fn device<B: KernelBackend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    like: &Tensor<B, 1>,
) -> Tensor<B, D> {
    let data = burn::tensor::TensorData::new(values.to_vec(), shape);
    Tensor::from_data(data, (&like.device(), like.dtype()))
}

/// For each layer and head, the distance that attention looks back on average: weighted by attention, over the
/// tokens of the first sequences. Empty for a layer without attention.
fn look_back<B: KernelBackend>(
    teacher: &CausalLm<B>,
    text: &[Tensor<B, 2, Int>],
    stop: Stop<'_>,
) -> Result<Vec<Vec<f64>>, InitError> {
    let mut sums: Vec<Vec<f64>> = vec![vec![]; teacher.backbone.layers.len()];
    let mut tokens = 0;
    let mut left = LOOK_BACK;
    for ids in text {
        // One sequence at a time: the matrices are large.
        for row in 0..ids.dims()[0].min(left) {
            left -= 1;
            let one = ids.clone().narrow(0, row, 1);
            let l = one.dims()[1];
            tokens += l;
            each_layer(teacher, one, stop, |layer, u| {
                let mixer = &teacher.backbone.layers[layer].mixer;
                if mixer.softmax().is_none() {
                    return;
                }
                let matrix = mixer.mixing_matrix(u);
                let (device, dtype) = (matrix.device(), matrix.dtype());
                let positions = Tensor::<B, 1, Int>::arange(0..l as i64, &device).float();
                let positions = crate::precision::to_dtype(positions, dtype);
                let row = positions.clone().reshape([l, 1]);
                let gaps = (row - positions.reshape([1, l])).clamp_min(0.0);
                let back = (matrix * gaps.reshape([1, 1, l, l])).sum_dim(3).sum_dim(2);
                let back = host(back);
                let sums = &mut sums[layer];
                sums.resize(back.len(), 0.0);
                for (sum, back) in sums.iter_mut().zip(back) {
                    *sum += back;
                }
            })?;
        }
    }
    let mean = |sum: &f64| (sum / tokens as f64).max(SHORTEST);
    let layers = sums.iter();
    Ok(layers
        .map(|layer| layer.iter().map(mean).collect())
        .collect())
}

/// Makes each head's decay constant, with this half-life: `sigmoid(-bias) = 2^(-1 / back)`.
pub(super) fn set_decays<B: KernelBackend>(
    mamba: &mut DiscreteMamba2<B>,
    back: &[f64],
) -> Result<(), String> {
    let rows = mamba.a_log_rows();
    let biases: Vec<f64> = back
        .iter()
        .map(|back| (LN_2 / back).exp_m1().ln())
        .collect();
    let weight = mamba.in_proj.weight.val();
    let end = rows.start + rows.n;
    let rest = weight.dims()[0] - end;
    let zeros = weight.clone().narrow(0, rows.start, rows.n).zeros_like();
    let mut parts = vec![weight.clone().narrow(0, 0, rows.start), zeros];
    if rest > 0 {
        parts.push(weight.narrow(0, end, rest));
    }
    set(&mut mamba.in_proj.weight, Tensor::cat(parts, 0));
    let own = mamba.a_log_bias.is_some();
    if let Some(bias) = &mut mamba.in_proj.bias {
        let all = bias.val();
        let values = if own {
            vec![0.0; rows.n]
        } else {
            biases.clone()
        };
        let values = device(&values, [rows.n], &all);
        let mut parts = vec![all.clone().narrow(0, 0, rows.start), values];
        if rest > 0 {
            parts.push(all.narrow(0, end, rest));
        }
        set(bias, Tensor::cat(parts, 0));
    }
    match &mut mamba.a_log_bias {
        Some(bias) => {
            let values = device(&biases, [rows.n], &bias.val());
            set(bias, values);
        }
        None if mamba.in_proj.bias.is_none() => {
            return Err("a calibrated decay needs student.a_log_bias = true".into());
        }
        None => {}
    }
    Ok(())
}

/// Sums over the text of the products of features and of what is wanted, of each head.
pub(super) struct HeadSums {
    /// Features, and one for what is wanted.
    size: usize,
    /// `[h, size, size]`, what is wanted being the last row and column of each head.
    products: Vec<f64>,
}

/// The least-squares solution of [`HeadSums`].
pub(super) struct HeadFits {
    /// The scales of the features, of each head.
    pub scales: Vec<Vec<f64>>,
    /// What the scaled features then lack, of each head: a sum of squares.
    pub lacking: Vec<f64>,
    /// The squares of what is wanted, of each head.
    pub whole: Vec<f64>,
}

impl HeadSums {
    /// Sums of nothing, for `features`.
    pub(super) fn new(features: usize) -> Self {
        Self {
            size: features + 1,
            products: vec![],
        }
    }

    /// Adds some tokens: their features, and what is wanted of them, `[b, l, h, p]` each.
    pub(super) fn add<B: KernelBackend>(
        &mut self,
        features: Vec<Tensor<B, 4>>,
        wanted: Tensor<B, 4>,
    ) {
        let size = self.size;
        let all = features.into_iter().chain([wanted]);
        let all: Vec<_> = all.map(widen).collect();
        let h = all[0].dims()[2];
        self.products.resize(h * size * size, 0.0);
        let pairs = (0..size).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let pairs: Vec<(usize, usize)> = pairs.collect();
        let of_pair = |(i, j): &(usize, usize)| -> Tensor<B, 1> {
            let product = all[*i].clone() * all[*j].clone();
            product.sum_dim(3).sum_dim(1).sum_dim(0).reshape([h])
        };
        // Together, so that the host waits once.
        let values = host(Tensor::cat(pairs.iter().map(of_pair).collect(), 0));
        for ((i, j), of_heads) in pairs.into_iter().zip(values.chunks(h)) {
            for (head, value) in of_heads.iter().enumerate() {
                let at = head * size * size;
                self.products[at + i * size + j] += value;
                if i != j {
                    self.products[at + j * size + i] += value;
                }
            }
        }
    }

    /// The scales with which the features come nearest to what is wanted.
    pub(super) fn fit(&self) -> HeadFits {
        let (size, features) = (self.size, self.size - 1);
        let mut fits = HeadFits {
            scales: vec![],
            lacking: vec![],
            whole: vec![],
        };
        for products in self.products.chunks(size * size) {
            let at = |i: usize, j: usize| products[i * size + j];
            let each = || 0..features;
            let gram: Vec<f64> = each().flat_map(|i| each().map(move |j| at(i, j))).collect();
            let right: Vec<f64> = each().map(|i| at(i, features)).collect();
            let ridge = RIDGE * mean_of_diagonal(&gram, features);
            let w = solve(&gram, &right, features, ridge);
            let of_target: f64 = each().map(|i| w[i] * right[i]).sum();
            let own: f64 = each()
                .map(|i| each().map(|j| w[i] * w[j] * at(i, j)).sum::<f64>())
                .sum();
            let lacking = at(features, features) - 2.0 * of_target + own;
            fits.lacking.push(lacking.max(0.0));
            fits.whole.push(at(features, features));
            fits.scales.push(w);
        }
        fits
    }
}

/// The scales of the features, by least squares over the text: of the scan, of D, and with `constant` of a feature
/// that sums the values alone, whatever B and C are; then of this layer's features what they lack of the output.
pub(super) fn fit<B: KernelBackend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
    text: &[Tensor<B, 2, Int>],
    constant: bool,
    stop: Stop<'_>,
) -> Result<Vec<Fit>, InitError> {
    let layers = layers(student, teacher);
    let features = 2 + usize::from(constant);
    let mut sums: Vec<Option<HeadSums>> =
        (0..student.backbone.layers.len()).map(|_| None).collect();
    for ids in text {
        each_layer(teacher, ids.clone(), stop, |layer, u| {
            if !layers.contains(&layer) {
                return;
            }
            let mixer = &student.backbone.layers[layer].mixer;
            let mamba = mixer.mamba().expect("a layer");
            let found = mamba.features(u.clone(), constant);
            let sums = sums[layer].get_or_insert_with(|| HeadSums::new(features));
            sums.add(found, target(student, teacher, layer, u));
        })?;
    }
    let mut fits = vec![];
    for layer in layers {
        let Some(sums) = &sums[layer] else { continue };
        let fit = sums.fit();
        let mamba = student.backbone.layers[layer].mixer.mamba_mut();
        mamba.expect("a layer").set_scales(&fit.scales);
        let (lacking, whole) = (fit.lacking.iter().sum(), fit.whole.iter().sum());
        fits.push(Fit::new(layer, lacking, whole));
    }
    Ok(fits)
}

/// The target of a layer's mixer before its output projection: the teacher's context minus the context of the attention
/// beside the mixer; `[b, l, h, p]`.
pub(super) fn target<B: KernelBackend>(
    student: &CausalLm<B>,
    teacher: &CausalLm<B>,
    layer: usize,
    u: Tensor<B, 3>,
) -> Tensor<B, 4> {
    let theirs = teacher.backbone.layers[layer].mixer.softmax();
    let theirs = theirs.expect("a layer").context(u.clone());
    let heads = theirs.dims()[2];
    match student.backbone.layers[layer].mixer.added_context(u, heads) {
        Some(added) => theirs - added,
        None => theirs,
    }
}
