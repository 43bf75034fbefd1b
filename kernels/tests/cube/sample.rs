//! Choosing tokens, against the same done by sorting.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::decode::sample::{Choice, Fault, Warp};
use kernels::sample;

use crate::support::*;

/// By the definition, in 64-bit arithmetic.
fn expected(logits: &[f64], seen: &[i32], vocab_size: usize, warp: Warp, point: f64) -> usize {
    let penalty = f64::from(warp.repetition_penalty);
    let penalised = logits[..vocab_size]
        .iter()
        .zip(seen)
        .map(|(&logit, &seen)| match seen {
            0 => logit,
            _ if logit < 0.0 => logit * penalty,
            _ => logit / penalty,
        });
    let logits: Vec<f64> = penalised.collect();
    let mut falling: Vec<usize> = (0..vocab_size).collect();
    falling.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let most = logits[falling[0]];
    if warp.is_greedy() {
        return falling[0];
    }
    let weight = |token: usize| ((logits[token] - most) / f64::from(warp.temperature)).exp();
    if warp.top_k > 0 {
        falling.truncate(warp.top_k);
    }
    let mut left: f64 = falling.iter().map(|&token| weight(token)).sum();
    let left_out = (1.0 - warp.top_p) * left;
    while falling.len() > 1 {
        // Drops the last token if the others reach the required probability without it.
        let last = falling[falling.len() - 1];
        let below: f64 = left - falling.iter().map(|&token| weight(token)).sum::<f64>();
        if below + weight(last) > left_out || warp.top_p == 1.0 {
            break;
        }
        falling.pop();
    }
    falling.retain(|&token| weight(token) >= f64::from(warp.min_p));
    falling.sort_unstable();
    left = point * falling.iter().map(|&token| weight(token)).sum::<f64>();
    for &token in &falling {
        if left < weight(token) {
            return token;
        }
        left -= weight(token);
    }
    falling[falling.len() - 1]
}

/// One token a row of `logits [b, v]`.
fn chosen(
    logits: &[Vec<f64>],
    seen: Option<&mut Tensor<Cube, 2, Int>>,
    vocab_size: usize,
    choices: &[Choice],
) -> Vec<i64> {
    let values: Vec<f32> = logits.iter().flatten().map(|v| *v as f32).collect();
    let data = TensorData::new(values, [logits.len(), logits[0].len()]);
    let logits_bv = Tensor::from_data(data, (&Default::default(), DType::F32));
    let chosen = sample(logits_bv, seen, vocab_size, choices);
    let chosen = chosen.expect("a CubeCL backend has the op");
    chosen.into_data().iter::<i64>().collect()
}

/// The token of a single row.
fn chosen_alone(logits: &[f64], vocab_size: usize, warp: Warp, point: f64) -> i64 {
    chosen(
        &[logits.to_vec()],
        None,
        vocab_size,
        &[Choice { warp, point }],
    )[0]
}

const GREEDY: Warp = Warp {
    repetition_penalty: 1.0,
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
};

#[test]
fn tokens_are_chosen_as_by_sorting() {
    with_device(|| {
        for mut random in random_cases() {
            let vocab_size = random.of(&[1, 2, 7, 300, 1024, 4099]);
            let v = vocab_size + random.size(0, 9);
            // More than one launch has rows for, at times.
            let b = random.of(&[1, 1, 3, 8, 11]);
            let warps: Vec<Warp> = (0..b)
                .map(|_| Warp {
                    repetition_penalty: random.of(&[1.0, 1.3, 0.7]),
                    temperature: random.of(&[0.0, 0.5, 1.0, 1.7]),
                    top_k: random.of(&[0, 0, 1, 3, 50]),
                    top_p: random.of(&[1.0, 0.95, 0.4, 0.0]),
                    min_p: random.of(&[0.0, 0.05, 1.0]),
                })
                .collect();
            let logits: Vec<Vec<f64>> = (0..b)
                .map(|_| {
                    let scale = random.of(&[1.0, 8.0]);
                    let values = random.values([v], scale, DType::F32).exact();
                    values.into_data().iter::<f64>().collect()
                })
                .collect();
            let mut seen: Vec<i32> = (0..b * v)
                .map(|_| i32::from(random.size(0, 3) == 0))
                .collect();
            let data = TensorData::new(seen.clone(), [b, v]);
            let mut flags = Tensor::from_data(data, (&Default::default(), DType::I32));
            let penalised = warps.iter().any(|warp| warp.repetition_penalty != 1.0);
            for _ in 0..4 {
                let choice = |&warp| Choice {
                    warp,
                    point: random.size(0, 9999) as f64 / 1e4,
                };
                let choices: Vec<Choice> = warps.iter().map(choice).collect();
                let found = chosen(&logits, Some(&mut flags), vocab_size, &choices);
                for (row, Choice { warp, point }) in choices.into_iter().enumerate() {
                    let seen = &mut seen[row * v..][..v];
                    let expected = expected(&logits[row], seen, vocab_size, warp, point);
                    assert_eq!(
                        found[row], expected as i64,
                        "row {row} of {b}, {vocab_size} tokens, {warp:?}, at {point}"
                    );
                    // Of every row, or where no row needs it of none.
                    seen[expected] |= i32::from(penalised);
                }
            }
            let flags: Vec<i64> = flags.into_data().iter::<i64>().collect();
            let same = flags.iter().zip(&seen).all(|(a, b)| *a == i64::from(*b));
            assert!(same, "{warps:?}");
        }
    });
}

#[test]
fn equal_logits_give_the_first() {
    with_device(|| {
        let mut logits = vec![-1.0; 2000];
        (logits[700], logits[1999]) = (3.0, 3.0);
        assert_eq!(chosen_alone(&logits, 2000, GREEDY, 0.0), 700);
        assert_eq!(chosen_alone(&logits, 600, GREEDY, 0.0), 0);
    });
}

#[test]
fn logits_that_are_no_scores_choose_nothing() {
    with_device(|| {
        let warp = Warp {
            temperature: 1.0,
            top_p: 0.5,
            ..GREEDY
        };
        let none = [f64::NEG_INFINITY; 3000];
        for warp in [GREEDY, warp] {
            for wrong in [f64::NAN, f64::INFINITY] {
                let mut logits = vec![0.5; 3000];
                (logits[1700], logits[2999]) = (wrong, f64::NAN);
                let id = chosen_alone(&logits, 3000, warp, 0.0);
                let Some(Fault::NotAScore { token, logit }) = Fault::of(id) else {
                    panic!("{id} for {wrong}");
                };
                assert_eq!((token, logit.is_nan()), (1700, wrong.is_nan()));
                assert_eq!(chosen_alone(&logits, 1700, warp, 0.0), 0);
            }
            let id = chosen_alone(&none, 3000, warp, 0.0);
            assert_eq!(Fault::of(id), Some(Fault::NoScore));
        }
        let mut one = none;
        one[77] = -5.0;
        assert_eq!(chosen_alone(&one, 3000, warp, 0.999), 77);
    });
}
