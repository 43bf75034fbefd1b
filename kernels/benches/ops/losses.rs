//! The losses, the gradient to the embedding and the rotary embedding, at the sizes of Phi-1.5.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::dense::embedding::reference as embedding;
use kernels::dense::rotary::reference as rotary;
use kernels::losses::divergence::likeliest::reference as choice;
use kernels::losses::divergence::top_classes::reference as top_classes_in_tensors;
use kernels::losses::hidden_states::reference as distance;
use kernels::losses::predictions::{DistillationInputs, reference as distillation};
use kernels::*;

use crate::clock::random;
use crate::table::{Bench, Row};

/// A row for `call`, and beside it for the same in tensor operations where the shapes are small.
fn row<B: KernelBackend, T>(
    bench: &Bench<B>,
    (op, shape, dtype, bytes): (&'static str, String, DType, usize),
    call: impl FnMut(usize) -> T,
    composed: impl FnMut(usize) -> T,
) {
    let seconds = bench.clock.time(call);
    let composed = bench.small.then(|| bench.clock.time(composed));
    bench.row(Row {
        op,
        shape,
        dtype,
        seconds: [Some(seconds), None],
        bytes,
        operations: 0,
        composed: [composed, None],
    });
}

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    for &dtype in &bench.dtypes {
        if bench.wants("distillation block") {
            distillation_block::<B>(bench, dtype);
        }
        if bench.wants("top classes block") {
            top_classes::<B>(bench, dtype);
        }
        if bench.wants("embedding gradient") {
            // All ids different in the mean, and one that is a quarter of them.
            embedding_gradient::<B>(bench, dtype, false);
            embedding_gradient::<B>(bench, dtype, true);
        }
        if bench.wants("rotary") {
            rotate::<B>(bench, dtype);
        }
        if bench.wants("rows distance") {
            rows_distance::<B>(bench, dtype);
        }
    }
}

fn distillation_block<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    let [t, v] = if bench.small {
        [256, 4096]
    } else {
        [2048, 51_200]
    };
    let (student, teacher) = (random::<B, 2>([t, v], dtype), random([t, v], dtype));
    let inputs = DistillationInputs {
        student,
        teacher,
        labels: None,
        weights: DistillationWeights::default(),
    };
    let about = (
        "distillation block",
        format!("{t} x {v}"),
        dtype,
        3 * t * v * dtype.size(),
    );
    row(
        bench,
        about,
        |_| B::distillation_block(inputs.clone(), 4 * t),
        |_| distillation::block(inputs.clone(), 4 * t),
    );
}

/// The choice of a cache's ids, and the loss from them.
fn top_classes<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    let [t, v] = if bench.small {
        [256, 4096]
    } else {
        [2048, 51_200]
    };
    let (student, logits) = (random::<B, 2>([t, v], dtype), random::<B, 2>([t, v], dtype));
    for k in [64, 256] {
        let shape = format!("{t} x {v}, {k} ids");
        row(
            bench,
            ("likeliest ids", shape.clone(), dtype, t * v * dtype.size()),
            |_| B::likeliest(logits.clone(), k),
            |_| choice::likeliest(logits.clone(), k),
        );
        let inputs = TopClassesInputs {
            student: student.clone(),
            teacher: B::likeliest(logits.clone(), k),
            labels: None,
            weights: DistillationWeights::default(),
            divergence: Divergence::ForwardKl,
        };
        row(
            bench,
            ("top classes block", shape, dtype, 2 * t * v * dtype.size()),
            |_| B::top_classes_block(inputs.clone(), 4 * t),
            |_| top_classes_in_tensors::block(inputs.clone(), 4 * t),
        );
    }
}

fn embedding_gradient<B: KernelBackend>(bench: &Bench<B>, dtype: DType, repeated: bool) {
    let [t, v, d] = if bench.small {
        [1024, 4096, 192]
    } else {
        [8192, 51_200, 2048]
    };
    let ids = (0..t).map(|i| {
        if repeated && i % 4 == 0 {
            7
        } else {
            (i * 7919 % v) as i64
        }
    });
    let ids = TensorData::new(ids.collect::<Vec<i64>>(), [1, t]);
    let ids: Tensor<B, 2, Int> = Tensor::from_data(ids, &Default::default());
    let dy = random::<B, 3>([1, t, d], dtype);
    let which = if repeated { ", a quarter the same" } else { "" };
    let about = (
        "embedding gradient",
        format!("{t} of {v} x {d}{which}"),
        dtype,
        (t + v) * d * dtype.size(),
    );
    row(
        bench,
        about,
        |_| B::embedding_gradient(ids.clone(), dy.clone(), v),
        |_| embedding::gradient(ids.clone(), dy.clone(), v),
    );
}

fn rotate<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    let [b, l, h, p] = if bench.small {
        [4, 256, 3, 64]
    } else {
        [4, 2048, 32, 64]
    };
    let x = random::<B, 4>([b, l, h, p], dtype);
    let (cos, sin) = (random([l, 16], DType::F32), random([l, 16], DType::F32));
    let given = || (x.clone(), cos.clone(), sin.clone());
    let about = (
        "rotary",
        format!("b{b} l{l} h{h} p{p}"),
        dtype,
        2 * b * l * h * p * dtype.size(),
    );
    row(
        bench,
        about,
        |_| {
            let (x, cos, sin) = given();
            B::rotary_forward(x, cos, sin)
        },
        |_| {
            let (x, cos, sin) = given();
            rotary::forward(x, cos, sin)
        },
    );
}

fn rows_distance<B: KernelBackend>(bench: &Bench<B>, dtype: DType) {
    let [t, d] = if bench.small {
        [1024, 192]
    } else {
        [32_768, 2048]
    };
    let (a, b) = (random::<B, 2>([t, d], dtype), random::<B, 2>([t, d], dtype));
    let about = (
        "rows distance",
        format!("{t} x {d}"),
        dtype,
        3 * t * d * dtype.size(),
    );
    row(
        bench,
        about,
        |_| B::rows_distance_with_gradient(a.clone(), b.clone()),
        |_| distance::with_gradient(a.clone(), b.clone()),
    );
}
