//! Phi-Mamba, pure and hybrid, against what the published modules computed from the same weights:
//! the whole sequence at once, and decoding from a prompt.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use tests::Goldens;
use tests::networks::student::*;
use tests::networks::*;

on_both! {
    whole_sequence(EXACT, FAST);
    decoding(EXACT, FAST);
    greedy();
    // No file is in between, so only the order of sums differs.
    splits(1e-12, 2e-5);
    joining(1e-12, 2e-5);
    interrupted_steps(1e-11, 2e-4);
    eight_bits();
}

#[test]
fn next_tokens_exact() {
    next_tokens::<Autodiff<Exact>>(EXACT);
}

#[test]
fn next_tokens_flex() {
    next_tokens::<Autodiff<Fast>>(FAST);
}

/// With B and C shared by several heads there is no recorded matrix, but `T x` must still be the
/// scan's output: the gate opened and the projection made the identity, `T` applied to x is the
/// mixer's output.
#[test]
fn grouped_transfer_matrix_is_the_scan() {
    use burn::module::Param;
    use model::{Mixer, TokenMixer};

    let device = Default::default();
    let (_, model) =
        model::load_any::<Exact>(tests::goldens_dir().join("student-grouped"), &device)
            .expect("a student");
    let Mixer::DiscreteMamba2(mut mixer) = model.backbone.layers[0].mixer.clone() else {
        panic!("a Mamba layer")
    };
    let d = model.backbone.embedding.weight.dims()[1];
    let goldens = Goldens::open("student-grouped/expected");
    let u: Tensor<Exact, 3> = tensor(goldens.f64("hidden_states.0"), &device);
    let [b, l, _] = u.dims();
    // Gate rows zero and a bias whose silu is 1; x through the convolution's present tap alone.
    let conv_dim = mixer.conv1d.weight.dims()[0];
    let weight = mixer.in_proj.weight.val();
    let closed = weight.slice_assign(
        [conv_dim..conv_dim + d, 0..d],
        Tensor::zeros([d, d], &device),
    );
    mixer.in_proj.weight = Param::from_tensor(closed.clone());
    let open = Tensor::full([d], 1.278464542761, &device);
    mixer.z_bias = Some(Param::from_tensor(open));
    mixer.out_proj.weight = Param::from_tensor(Tensor::eye(d, &device));
    let taps = mixer.conv1d.weight.val();
    let present = Tensor::cat(
        vec![
            Tensor::zeros([d, 1, 3], &device),
            Tensor::ones([d, 1, 1], &device),
        ],
        2,
    );
    let taps = taps.slice_assign([0..d, 0..1, 0..4], present);
    mixer.conv1d.weight = Param::from_tensor(taps);
    let bias = mixer.conv1d.bias.as_ref().expect("a bias").val();
    let unbiased = bias.clone().narrow(0, d, conv_dim - d);
    let bias = Tensor::cat(vec![Tensor::zeros([d], &device), unbiased], 0);
    mixer.conv1d.bias = Some(Param::from_tensor(bias));

    let transfer = mixer.mixing_matrix(u.clone());
    let h = transfer.dims()[1];
    let x = kernels::linear(u.clone(), closed.narrow(0, 0, d), None);
    let x_bhlp = x.reshape([b, l, h, d / h]).swap_dims(1, 2);
    let by_matrix = transfer.matmul(x_bhlp).swap_dims(1, 2).reshape([b, l, d]);
    let by_scan = mixer.forward(u);
    // The gate's bias opens it to 1 within 1e-9 only.
    tests::assert_close("T x", values(by_matrix), values(by_scan), 2e-9);
}
