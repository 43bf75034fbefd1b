//! MOHAWK's losses and every gradient of them, against the published code's: a Phi's student and a Llama's.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use model::mohawk::{hidden_state_loss, matrix_orientation_loss};
use tests::assert_close;
use tests::networks::mohawk::*;
use tests::networks::*;

#[test]
fn stage1_exact() {
    for recorded in RECORDED {
        stage1::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn stage1_flex() {
    for recorded in RECORDED {
        stage1::<Autodiff<Fast>>(recorded, FAST);
    }
}

#[test]
fn stage2_exact() {
    for recorded in RECORDED {
        stage2::<Autodiff<Exact>>(recorded, EXACT);
        gap::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn stage2_flex() {
    for recorded in RECORDED {
        stage2::<Autodiff<Fast>>(recorded, FAST);
        gap::<Autodiff<Fast>>(recorded, FAST);
    }
}

#[test]
fn stage3_exact() {
    for recorded in RECORDED {
        stage3::<Autodiff<Exact>>(recorded, EXACT);
    }
}

#[test]
fn stage3_flex() {
    for recorded in RECORDED {
        stage3::<Autodiff<Fast>>(recorded, FAST);
    }
}

/// At distance zero the root has no derivative; the loss must give zero there and not NaN, and the
/// right gradient to the other rows.
#[test]
fn a_perfect_student_has_finite_gradients() {
    type B = Autodiff<Exact>;
    let device = Default::default();
    let student: Tensor<B, 3> =
        Tensor::from_data([[[1.0, 2.0], [3.0, 7.0]]], &device).require_grad();
    let teacher = Tensor::from_data([[[1.0, 2.0], [0.0, 3.0]]], &device);
    let loss = hidden_state_loss(student.clone(), teacher);
    assert_eq!(values(loss.clone()).1, [2.5]);
    let gradient = student.grad(&loss.backward()).expect("a gradient");
    let expected = (vec![1, 2, 2], vec![0.0, 0.0, 0.3, 0.4]);
    assert_close("gradient", values(gradient), expected, 1e-12);

    let matrix: Tensor<B, 4> = Tensor::ones([1, 2, 3, 3], &device).require_grad();
    let loss = matrix_orientation_loss(matrix.clone(), matrix.clone().detach());
    let gradient = matrix.grad(&loss.backward()).expect("a gradient");
    assert!(values(gradient).1.iter().all(|v| *v == 0.0));
}
