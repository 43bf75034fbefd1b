//! The mixers that are there for comparison, against their definitions.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, Linear, Mixer, NetworkConfig, TokenMixer};
use tests::assert_close;
use tests::networks::*;

use super::block_orders::{networks, random, tokens};

/// One with every mixer.
fn network() -> (String, NetworkConfig) {
    let mut all = networks().into_iter();
    all.find(|(name, _)| name.contains("every mixer")).unwrap()
}

/// It far from its start, and an input of its mixers.
fn model_and_input() -> (CausalLm<Exact>, Tensor<Exact, 3>) {
    let (_, network) = network();
    let (shape, values) = tests::random(3, &[2, 11, 16], 1.0);
    let u = Tensor::from_data(TensorData::new(values, shape), &Default::default());
    (random(&network), u)
}

/// The outputs of heads that mix `x [b, l, d]` by `matrices [b, h, l, l]`, gated by `z [b, l, d]`.
fn output(
    matrices: Tensor<Exact, 4>,
    x: Tensor<Exact, 3>,
    z: Tensor<Exact, 3>,
    out_proj: &Linear<Exact>,
) -> Tensor<Exact, 3> {
    let ([b, l, d], h) = (x.dims(), matrices.dims()[1]);
    let x_bhlp = x.reshape([b, l, h, d / h]).swap_dims(1, 2);
    let mixed = matrices.matmul(x_bhlp).swap_dims(1, 2).reshape([b, l, d]);
    // Burn's own computes in f32 whatever the tensor's dtype.
    let silu = z.clone() * ((-z).exp() + 1.0).recip();
    out_proj.forward(mixed * silu)
}

#[test]
fn a_toeplitz_matrix_knows_distances_alone() {
    let (network, u) = model_and_input();
    let mixer = (network.backbone.layers.iter()).find_map(|layer| match &layer.mixer {
        Mixer::Toeplitz(mixer) => Some(mixer),
        _ => None,
    });
    let mixer = mixer.expect("a Toeplitz mixer");
    let matrices = mixer.mixing_matrix(u.clone());
    let (shape, found) = values(matrices.clone());
    let ([h, k], [_, _, l, _]) = (mixer.taps.dims(), matrices.dims());
    let (_, taps) = values(mixer.taps.val());
    let tap = |head: usize, i: usize, j: usize| {
        if j <= i && i - j < k {
            taps[head * k + i - j]
        } else {
            0.0
        }
    };
    let each = (0..2 * h * l * l).map(|at| tap(at / (l * l) % h, at / l % l, at % l));
    let expected: Vec<f64> = each.collect();
    assert!(k < l && expected.iter().any(|value| *value != 0.0));
    assert_close("T", (shape.clone(), found), (shape, expected), 1e-15);

    let d = mixer.config().d_inner();
    let projected = mixer.in_proj.forward(u.clone());
    let (x, z) = (projected.clone().narrow(2, 0, d), projected.narrow(2, d, d));
    let z = z + mixer.z_bias.val().unsqueeze();
    let expected = output(matrices, x, z, &mixer.out_proj);
    let found = mixer.forward(u);
    assert_close("T x", values(found), values(expected), 1e-12);
}

#[test]
fn a_low_rank_matrix_has_no_decay() {
    let (network, u) = model_and_input();
    let mixer = (network.backbone.layers.iter()).find_map(|layer| match &layer.mixer {
        Mixer::LowRank(mixer) => Some(mixer),
        _ => None,
    });
    let mixer = mixer.expect("a low-rank mixer");
    let config = mixer.config();
    let (d, d_bc, n) = (config.d_inner(), config.d_bc(), config.d_state);
    let ([b, l, _], h) = (u.dims(), config.n_heads);
    let projected = mixer.in_proj.forward(u.clone());
    let xbc = projected.clone().narrow(2, 0, d + 2 * d_bc);
    let taps = mixer.conv1d.weight.val().squeeze_dim::<2>(1);
    let bias = mixer.conv1d.bias.as_ref().map(|bias| bias.val());
    let activation = kernels::scan::causal_conv::Activation::Identity;
    let xbc = kernels::causal_conv(xbc, taps, bias, None, activation);
    let heads = |start: usize| {
        let part: Tensor<Exact, 3> = xbc.clone().narrow(2, start, d_bc);
        part.reshape([b, l, h, n]).swap_dims(1, 2)
    };
    let (b_bhln, c_bhln) = (heads(d), heads(d + d_bc));
    let skip = Tensor::<Exact, 2>::eye(l, &u.device()).unsqueeze::<4>()
        * mixer.d.val().reshape([1, h, 1, 1]);
    let expected = c_bhln.matmul(b_bhln.transpose()).tril(0) + skip;
    let matrices = mixer.mixing_matrix(u.clone());
    assert_close("T", values(matrices.clone()), values(expected), 1e-12);

    let z = projected.narrow(2, d + 2 * d_bc, d) + mixer.z_bias.val().unsqueeze();
    let expected = output(matrices, xbc.narrow(2, 0, d), z, &mixer.out_proj);
    let found = mixer.forward(u);
    assert_close("T x", values(found), values(expected), 1e-12);
}

/// In half precision, whole and step by step, they are near what they are in f32.
#[test]
fn in_half_precision() {
    half::<Fast>();
}

fn half<B: KernelBackend>() {
    let device = Default::default();
    let (_, mut network) = network();
    (network.mixers).retain(|mixer| ["toeplitz", "low_rank"].contains(&mixer.kind()));
    assert_eq!(network.mixers.len(), 2);
    let model = random::<B>(&network);
    let expected = values(model.logits(model.features(tokens())));
    for dtype in [DType::F16, DType::BF16] {
        if !B::holds(&device, dtype) {
            continue;
        }
        let half = model.clone().cast(dtype);
        let whole = half.logits(half.features(tokens()));
        assert_close(&format!("{dtype:?}"), values(whole), expected.clone(), 0.1);
        let mut state = half.new_state(2, &device);
        let mut logits = vec![half.prefill_all(tokens().narrow(1, 0, 8), &mut state)];
        for i in 8..11 {
            let next = tokens().narrow(1, i, 1).reshape([2]);
            logits.push(half.step(next, &mut state).unsqueeze_dim(1));
        }
        let logits = logits.into_iter().map(|logits| logits.cast(DType::F32));
        let pieces: Tensor<B, 3> = Tensor::cat(logits.collect(), 1);
        assert_close(
            &format!("{dtype:?}, pieces"),
            values(pieces),
            expected.clone(),
            0.1,
        );
    }
}
