//! The attention's projections in the mixer: V becomes x, K becomes B, Q becomes C, and O the output projection.
//!
//! Keys and values that several heads share are repeated, whole heads at a time. Where the state has more numbers than a
//! head of the attention, B begins as drawn in those, and C with zeros: they change nothing at first, and can learn. The
//! convolution passes its input through, the gate is open and D is 1. Neither the attention's scale nor its softmax has a
//! counterpart, and rotary positions only where the mixer has them.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::{Fit, InitError, Initialise, Stop, layers, set};
use crate::lm::CausalLm;
use crate::mixers::attention::Attention;
use crate::mixers::discrete_mamba2::{Activation, DiscreteMamba2, OPEN_GATE};

pub(super) struct Copy;

impl Initialise for Copy {
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
        _text: &[Tensor<B, 2, Int>],
        _stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError> {
        copy(student, teacher, |_| 1.0);
        Ok(vec![])
    }
}

/// Checks that every layer's mixer has room for all of the teacher's attention.
pub(super) fn check<B: KernelBackend>(
    student: &CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), InitError> {
    for layer in layers(student, teacher) {
        let mamba = student.backbone.layers[layer].mixer.mamba();
        let attention = teacher.backbone.layers[layer].mixer.softmax();
        let (mamba, attention) = (mamba.expect("a layer"), attention.expect("of both"));
        fits(mamba, attention).map_err(|reason| InitError::Layer { layer, reason })?;
    }
    Ok(())
}

/// Copies every layer's attention, whose place is [checked](check), with queries times `scale` of the dimensions of a
/// head.
pub(super) fn copy<B: KernelBackend>(
    student: &mut CausalLm<B>,
    teacher: &CausalLm<B>,
    scale: impl Fn(usize) -> f64,
) {
    for layer in layers(student, teacher) {
        let mamba = student.backbone.layers[layer].mixer.mamba_mut();
        let attention = teacher.backbone.layers[layer].mixer.softmax();
        let (mamba, attention) = (mamba.expect("a layer"), attention.expect("of both"));
        let p = attention.head_dim();
        copy_layer(mamba, attention, scale(p));
    }
}

/// Checks that the mixer has room for all of the attention.
fn fits<B: KernelBackend>(
    mamba: &DiscreteMamba2<B>,
    attention: &Attention<B>,
) -> Result<(), String> {
    let (config, theirs) = (mamba.config(), attention.config());
    let (h, p) = (theirs.n_heads, attention.head_dim());
    for (key, found, needed) in [
        ("n_v_heads", config.n_v_heads, h),
        ("n_qk_heads", config.n_qk_heads, h),
        // What is larger has channels that the attention lacks.
        ("d_state", config.d_state.min(p), p),
        ("head_dim", mamba.d_inner() / config.n_v_heads, p),
    ] {
        if found != needed {
            return Err(format!(
                "to start from the teacher's attention, of {h} heads of {p}, the student needs student.{key} = \
                 {needed}; it is {found}"
            ));
        }
    }
    if config.d_state > p && (mamba.b_norm.is_some() || attention.q_norm.is_some()) {
        return Err(format!(
            "to start from the teacher's attention the student needs student.d_state = {p}, and it is {}: norms of B and C \
             would count the channels that the attention lacks",
            config.d_state
        ));
    }
    let needs = |key: &str, value: &str, why: &str| {
        Err(format!(
            "to start from the teacher's attention the student needs student.{key} = {value}: {why}"
        ))
    };
    if config.activation != Activation::Identity {
        return needs(
            "activation",
            "identity",
            "queries, keys and values have none",
        );
    }
    if mamba.z_bias.is_none() && mamba.in_proj.bias.is_none() {
        return needs("z_bias", "true", "without a bias its gate cannot be open");
    }
    let has_place = mamba.in_proj.bias.is_some() || mamba.conv1d.bias.is_some();
    if attention.q_proj.bias.is_some() && !has_place {
        return needs(
            "conv_bias",
            "true",
            "the queries, keys and values have biases",
        );
    }
    if attention.dense.bias.is_some() && mamba.out_proj.bias.is_none() {
        return needs("bias", "true", "the output projection has a bias");
    }
    if attention.q_norm.is_some() != mamba.b_norm.is_some() {
        let (value, why) = if mamba.b_norm.is_some() {
            ("false", "queries and keys have no norms")
        } else {
            ("true", "queries and keys have norms")
        };
        return needs("bc_norm", value, why);
    }
    Ok(())
}

/// Rows `[g * p, ..]` of heads of `p`, each head `times` times in a row.
fn repeated<B: KernelBackend, const D: usize>(
    rows: Tensor<B, D>,
    p: usize,
    times: usize,
) -> Tensor<B, D> {
    let mut shape = rows.dims();
    let width = rows.shape().num_elements() / shape[0];
    let g = shape[0] / p;
    shape[0] *= times;
    let heads: Tensor<B, 4> = rows.reshape([g, 1, p, width]).repeat_dim(1, times);
    heads.reshape(shape)
}

/// Rows `[h * p, ..]` of heads of `p` as heads of `n`, the rest of each zeros, or as it is in `rest [h * n, ..]`.
fn widened<B: KernelBackend, const D: usize>(
    rows: Tensor<B, D>,
    p: usize,
    n: usize,
    rest: Option<Tensor<B, D>>,
) -> Tensor<B, D> {
    if n == p {
        return rows;
    }
    let mut shape = rows.dims();
    let width = rows.shape().num_elements() / shape[0];
    let h = shape[0] / p;
    shape[0] = h * n;
    let rows: Tensor<B, 3> = rows.reshape([h, p, width]);
    let rest = match rest {
        Some(rest) => rest.reshape([h, n, width]).narrow(1, p, n - p),
        None => Tensor::zeros([h, n - p, width], (&rows.device(), rows.dtype())),
    };
    Tensor::cat(vec![rows, rest], 1).reshape(shape)
}

fn copy_layer<B: KernelBackend>(
    mamba: &mut DiscreteMamba2<B>,
    attention: &Attention<B>,
    scale: f64,
) {
    let p = attention.head_dim();
    let times = attention.config().n_heads / attention.config().n_kv_heads;
    // A norm of C takes away the scale of what it reads.
    let (of_c, of_norm) = match &mamba.c_norm {
        Some(_) => (1.0, scale),
        None => (scale, 1.0),
    };
    let weights = [&attention.v_proj, &attention.k_proj, &attention.q_proj];
    let [v, k, q] = weights.map(|linear| linear.weight.val());
    let own = mamba.in_proj.weight.val();
    let drawn = own
        .clone()
        .narrow(0, mamba.d_inner(), mamba.config().d_bc());
    let n = mamba.config().d_state;
    let of_conv = Tensor::cat(
        vec![
            repeated(v, p, times),
            widened(repeated(k, p, times), p, n, Some(drawn)),
            widened(q.mul_scalar(of_c), p, n, None),
        ],
        0,
    );
    let a_log = mamba.a_log_rows();
    let z = Tensor::zeros(
        [mamba.d_inner(), own.dims()[1]],
        (&own.device(), own.dtype()),
    );
    let rest = own.dims()[0] - a_log.start;
    let rows = vec![of_conv, z, own.narrow(0, a_log.start, rest)];
    set(&mut mamba.in_proj.weight, Tensor::cat(rows, 0));

    let biases = [&attention.v_proj, &attention.k_proj, &attention.q_proj];
    let biases = biases.map(|linear| linear.bias.as_ref().map(|bias| bias.val()));
    let of_conv = match biases {
        [Some(v), Some(k), Some(q)] => Some(Tensor::cat(
            vec![
                repeated(v, p, times),
                widened(repeated(k, p, times), p, n, None),
                widened(q.mul_scalar(of_c), p, n, None),
            ],
            0,
        )),
        _ => None,
    };
    let zeros = |x: &Tensor<B, 1>, n: usize| Tensor::zeros([n], (&x.device(), x.dtype()));
    let conv_dim = mamba.conv_dim();
    let (mut in_rows, mut after_conv) = (None, None);
    if mamba.in_proj.bias.is_some() {
        in_rows = of_conv;
    } else {
        after_conv = of_conv;
    }
    if let Some(bias) = &mut mamba.in_proj.bias {
        let own = bias.val();
        let rows = in_rows.unwrap_or_else(|| zeros(&own, conv_dim));
        let gate = if mamba.z_bias.is_some() {
            0.0
        } else {
            OPEN_GATE
        };
        let z = zeros(&own, mamba.out_proj.weight.dims()[1]).add_scalar(gate);
        let own = own.narrow(0, a_log.start, rest);
        set(bias, Tensor::cat(vec![rows, z, own], 0));
    }
    if let Some(bias) = &mut mamba.conv1d.bias {
        let value = after_conv.unwrap_or_else(|| zeros(&bias.val(), conv_dim));
        set(bias, value);
    }
    if let Some(bias) = &mut mamba.z_bias {
        let value = bias.val().zeros_like().add_scalar(OPEN_GATE);
        set(bias, value);
    }
    let taps = mamba.conv1d.weight.val();
    let [c, _, w] = taps.dims();
    let present = taps.clone().narrow(2, 0, 1).ones_like();
    let past = Tensor::zeros([c, 1, w - 1], (&taps.device(), taps.dtype()));
    let identity = if w > 1 {
        Tensor::cat(vec![past, present], 2)
    } else {
        present
    };
    set(&mut mamba.conv1d.weight, identity);
    let ones = mamba.d.val().ones_like();
    set(&mut mamba.d, ones);
    set(&mut mamba.out_proj.weight, attention.dense.weight.val());
    if let Some(bias) = &mut mamba.out_proj.bias {
        let value = match &attention.dense.bias {
            Some(theirs) => theirs.val(),
            None => bias.val().zeros_like(),
        };
        set(bias, value);
    }
    let norms = [
        (&mut mamba.c_norm, &attention.q_norm, of_norm),
        (&mut mamba.b_norm, &attention.k_norm, 1.0),
    ];
    for (own, theirs, scale) in norms {
        if let (Some(own), Some(theirs)) = (own, theirs) {
            set(&mut own.weight, theirs.weight.val().mul_scalar(scale));
        }
    }
}
