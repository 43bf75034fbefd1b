//! Feature maps of B and C, and gates of B: the mixing matrix against its equation, and gradients against finite
//! differences.

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use kernels::KernelBackend;
use model::{DiscreteMamba2, DiscreteMamba2Config, FeatureMap, TokenMixer};
use tests::assert_close;
use tests::networks::*;

/// Tokens, width, heads, and numbers of state.
const L: usize = 5;
const D: usize = 6;
const H: usize = 2;
const N: usize = 4;

fn options(feature_map: FeatureMap, b_gate: bool) -> DiscreteMamba2Config {
    DiscreteMamba2Config {
        d_state: N,
        feature_map,
        b_gate,
        chunk_size: 2,
        ..DiscreteMamba2Config::with_heads(H)
    }
}

/// The rows of the input projection before those of the gates of B.
const PLAIN_ROWS: usize = D + 2 * H * N + D + H;

/// A mixer as it is drawn, whose convolution passes its input through; with gates of B that are not those that it
/// begins with, which are 1.
fn mixer<B: KernelBackend>(feature_map: FeatureMap, b_gate: bool) -> DiscreteMamba2<B> {
    let options = options(feature_map, b_gate);
    let mut mixer = DiscreteMamba2::<B>::new(&options, D, 4, &Default::default()).expect("one");
    if b_gate {
        let (_, drawn) = tests::random(8, &[H, D], 1.0);
        let (shape, mut all) = values(mixer.in_proj.weight.val());
        assert!(all[PLAIN_ROWS * D..].iter().all(|value| *value == 0.0));
        all[PLAIN_ROWS * D..].copy_from_slice(&drawn);
        let all = Tensor::from_data(TensorData::new(all, shape), &Default::default());
        mixer.in_proj.weight = Param::from_tensor(all);
    }
    mixer
}

/// Each map without gates, and gates without a map and behind one.
const ALL: [(FeatureMap, bool); 5] = [
    (FeatureMap::Identity, false),
    (FeatureMap::Exp, false),
    (FeatureMap::Softmax, false),
    (FeatureMap::Identity, true),
    (FeatureMap::Softmax, true),
];

fn input<B: KernelBackend>(seed: u64) -> Tensor<B, 3> {
    let (shape, values) = tests::random(seed, &[1, L, D], 1.0);
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn mapped(feature_map: FeatureMap, x: &[f64]) -> Vec<f64> {
    let exponentials: Vec<f64> = x.iter().map(|x| x.exp()).collect();
    match feature_map {
        FeatureMap::Identity => x.to_vec(),
        FeatureMap::Exp => exponentials,
        FeatureMap::Softmax => {
            let sum: f64 = exponentials.iter().sum();
            exponentials.iter().map(|x| x / sum).collect()
        }
    }
}

/// `T[l, s] = map(C_l) . map(B_s)` times the gate of `s` and the decays from `s` to `l`, and D on the diagonal.
#[test]
fn matrices_are_products_of_features() {
    for (feature_map, b_gate) in ALL {
        let mixer = mixer::<Exact>(feature_map, b_gate);
        let u = input::<Exact>(3);
        let projected = values(mixer.in_proj.forward(u.clone())).1;
        let rows = projected.len() / L;
        let token = |l: usize, start: usize, n: usize| &projected[l * rows + start..][..n];
        let skip = values(mixer.d.val()).1;
        let mut expected = vec![];
        for (head, skip) in skip.iter().enumerate() {
            let b = |l| mapped(feature_map, token(l, D + head * N, N));
            let c = |l| mapped(feature_map, token(l, D + H * N + head * N, N));
            let decay = |l: usize| {
                let a_log: f64 = token(l, D + 2 * H * N + D + head, 1)[0];
                1.0 / (1.0 + a_log.exp())
            };
            let gate = |l: usize| {
                if b_gate {
                    2.0 / (1.0 + (-token(l, PLAIN_ROWS + head, 1)[0]).exp())
                } else {
                    1.0
                }
            };
            for l in 0..L {
                for s in 0..L {
                    let product: f64 = c(l).iter().zip(b(s)).map(|(c, b)| c * b).sum();
                    let product = product * gate(s);
                    let between: f64 = (s + 1..=l).map(decay).product();
                    let own = if l == s { *skip } else { 0.0 };
                    expected.push(if s <= l { product * between + own } else { 0.0 });
                }
            }
        }
        let found = values(mixer.mixing_matrix(u));
        let name = format!("{feature_map:?}, gates: {b_gate}");
        assert_close(&name, found, (vec![1, H, L, L], expected), 1e-10);
    }
}

/// The gradient of a weighted sum of the output to some rows of B, of C and of the gates of the input projection.
#[test]
fn gradients_are_slopes() {
    type A = Autodiff<Exact>;
    for (feature_map, b_gate) in ALL {
        let plain = mixer::<Exact>(feature_map, b_gate);
        let weights = input::<Exact>(9);
        let loss = |mixer: &DiscreteMamba2<Exact>| -> f64 {
            let output = mixer.forward(input(3)) * weights.clone();
            values(output.sum()).1[0]
        };
        let with_gradient = mixer::<A>(feature_map, b_gate);
        let output = with_gradient.forward(input::<A>(3)) * Tensor::from_inner(weights.clone());
        let gradients = output.sum().backward();
        let weight = with_gradient.in_proj.weight.val();
        let gradient = values(weight.grad(&gradients).expect("a gradient")).1;
        // One of B, one of C, and one of the gates.
        let of_gates = b_gate.then_some(PLAIN_ROWS + 1);
        for row in [D + 1, D + H * N + N + 2].into_iter().chain(of_gates) {
            for column in [0, D - 1] {
                let slope = |step: f64| {
                    let mut moved = plain.clone();
                    let (shape, mut all) = values(moved.in_proj.weight.val());
                    all[row * D + column] += step;
                    let all = Tensor::from_data(TensorData::new(all, shape), &Default::default());
                    moved.in_proj.weight = Param::from_tensor(all);
                    loss(&moved)
                };
                let expected = (slope(1e-5) - slope(-1e-5)) / 2e-5;
                let found = gradient[row * D + column];
                assert!(
                    (found - expected).abs() < 1e-7 * expected.abs().max(1.0),
                    "{feature_map:?}, row {row}: {found} and {expected}"
                );
                assert!(found.abs() > 1e-9, "{feature_map:?}, row {row}");
            }
        }
    }
}
