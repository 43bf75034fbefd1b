//! The mixers that are there for comparison, against their definitions.

use burn::tensor::activation::silu;
use burn::tensor::{Distribution, Tensor};
use model::{CausalLm, Linear, Mixer, TokenMixer};
use tests::assert_close;
use tests::networks::*;

use super::block_orders::{networks, random};

/// A network with every mixer, far from its start, and an input of its mixers.
fn network() -> (CausalLm<Exact>, Tensor<Exact, 3>) {
    let mut all = networks().into_iter();
    let (_, network) = all.find(|(name, _)| name.contains("every mixer")).unwrap();
    let u = Tensor::random([2, 11, 16], Distribution::Default, &Default::default());
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
    out_proj.forward(mixed * silu(z))
}

#[test]
fn a_toeplitz_matrix_knows_distances_alone() {
    let (network, u) = network();
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
    let (network, u) = network();
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
