//! On the host: backends have no selection of their own on a device.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::LEAST;
use crate::dtype::widen;
use crate::losses::divergence::top_classes::TopClasses;

/// See [`likeliest`](super::likeliest).
pub fn likeliest<B: Backend>(logits: Tensor<B, 2>, k: usize) -> TopClasses<B> {
    let ([t, v], device) = (logits.dims(), logits.device());
    let log_q = log_softmax(widen(logits), 1).into_data().convert::<f32>();
    let log_q: Vec<f32> = log_q.into_vec().expect("it was made f32");
    let mut ids_tk = vec![0i32; t * k];
    let mut log_q_tk = vec![0f32; t * k];
    let mut log_rest_t = vec![0f32; t];
    let rows = log_q.par_chunks(v).zip(ids_tk.par_chunks_mut(k));
    let rows = rows.zip(log_q_tk.par_chunks_mut(k)).zip(&mut log_rest_t);
    rows.for_each_init(Vec::new, |scratch, (((row, ids), values), rest)| {
        *rest = top(row, ids, scratch);
        for (value, id) in values.iter_mut().zip(ids) {
            *value = at_least(row[*id as usize]);
        }
    });
    let floats =
        |values, shape| Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
    TopClasses {
        ids: Tensor::from_data(TensorData::new(ids_tk, [t, k]), &device),
        log_q: floats(log_q_tk, [t, k]),
        log_rest: floats(log_rest_t, [t, 1]),
    }
}

/// Fills `ids` with the likeliest of a row of logarithms, and returns the logarithm of the probability of all others
/// together. `scratch` is memory that is used again.
fn top(row: &[f32], ids: &mut [i32], scratch: &mut Vec<i32>) -> f32 {
    scratch.clear();
    scratch.extend(0..row.len() as i32);
    let order = |a: &i32, b: &i32| {
        let values = row[*b as usize].total_cmp(&row[*a as usize]);
        values.then(a.cmp(b))
    };
    let k = ids.len();
    if k < row.len() {
        scratch.select_nth_unstable_by(k, order);
    }
    let (chosen, others) = scratch.split_at_mut(k);
    chosen.sort_unstable_by(order);
    ids.copy_from_slice(chosen);
    let others = others.iter().map(|id| row[*id as usize]);
    let most = others.clone().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return LEAST;
    }
    let sum: f64 = others.map(|log| f64::from((log - most).exp())).sum();
    at_least(most + sum.ln() as f32)
}

/// NaN stays NaN.
fn at_least(log: f32) -> f32 {
    if log < LEAST { LEAST } else { log }
}
