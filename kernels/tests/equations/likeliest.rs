//! The likeliest ids of logits, by hand.

use burn::tensor::{Tensor, TensorData};
use kernels::losses::divergence::likeliest::LEAST;
use kernels::runtime::Flex;
use kernels::{TopClasses, likeliest};

/// Ids, their logarithms and those of the rest, for logits of `v` ids.
fn of(logits: &[f32], v: usize, k: usize) -> (Vec<i32>, Vec<f32>, Vec<f32>) {
    let logits = TensorData::new(logits.to_vec(), [logits.len() / v, v]);
    let logits = Tensor::<Flex, 2>::from_data(logits, &Default::default());
    let TopClasses {
        ids,
        log_q,
        log_rest,
    } = likeliest(logits, k);
    let floats = |log: Tensor<Flex, 2>| log.into_data().to_vec().expect("f32");
    let ids = ids.into_data().convert::<i32>();
    (ids.to_vec().expect("i32"), floats(log_q), floats(log_rest))
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
    }
}

/// Probabilities of 1/2, 1/4, 1/8 and 1/8, two of which are equal; and a row in which one has all.
#[test]
fn the_likeliest_come_first() {
    let row = [0.125f32, 0.5, 0.125, 0.25].map(f32::ln);
    let two_rows = [row, [0.0, f32::NEG_INFINITY, -1e6, f32::NEG_INFINITY]].concat();
    let (ids, log_q, log_rest) = of(&two_rows, 4, 3);
    assert_eq!(ids, [1, 3, 0, 0, 2, 1]);
    close(&log_q, &[row[1], row[3], row[0], 0.0, LEAST, LEAST]);
    close(&log_rest, &[row[2], LEAST]);
    close(&of(&row, 4, 1).2, &[0.5f32.ln()]);
    let all = of(&row, 4, 4);
    assert_eq!((all.0, all.2), (vec![1, 3, 0, 2], vec![LEAST]));
    let (_, log_q, log_rest) = of(&[f32::NAN, 0.0], 2, 1);
    assert!(log_q[0].is_nan() || log_rest[0].is_nan());
}
