//! Inputs of different dtypes: half precision and f32 may be mixed and are computed in f32; f64 may not be mixed with
//! narrower dtypes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::decode::attention_step::{NewToken, attention_step};
use kernels::decode::recurrent_step::{StepParameters, StepState, recurrent_step};
use kernels::runtime::{Flex, NdArray64};
use kernels::scan::causal_conv::Activation;
use kernels::*;
use tests::assert_close;

use crate::support::*;

type B = NdArray64;

fn of<B: Backend, const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    tensor(random(5, &shape, 1.0)).cast(dtype)
}

/// What `op` panics with.
fn refusal<T>(op: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        op();
    }));
    let panic = panic.expect_err("an op took f64 beside f32");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(_) => String::new(),
    }
}

#[test]
fn f64_does_not_meet_narrower_inputs() {
    let (single, double) = (DType::F32, DType::F64);
    let [b, l, h, p, n] = [1, 3, 2, 2, 2];
    let scan = |a_log| ScanInputs::<B> {
        x: of([b, l, h, p], single),
        a_log: of([b, l, h], a_log),
        b: of([b, l, 1, n], single),
        c: of([b, l, 1, n], single),
        initial_state: None,
    };
    let gate = Epilogue {
        d: None,
        z: Some(of([b, l, h * p], double)),
        z_bias: None,
    };
    let student = |d| TransferParts::<B> {
        a_log: of([b, l, h], single),
        b: of([b, l, 1, n], single),
        c: of([b, l, 1, n], single),
        d: of([h], d),
    };
    let teacher = |dtype| AttentionParts {
        q: of([b, l, h, p], dtype),
        k: of([b, l, 1, p], dtype),
        window: None,
        documents: None,
    };
    let weights = DistillationWeights {
        temperature: 1.0,
        hard: 0.0,
    };
    let channels = h * p + 2 * n;
    let parameters = StepParameters::<B> {
        taps: of([channels, 1, 4], single),
        bias: None,
        activation: Activation::Identity,
        d: of([h], single),
        z_bias: None,
        a_log_bias: None,
        bc_norms: None,
        turn: None,
    };
    let state = StepState {
        conv: of([b, channels, 4], single),
        ssm: of([b, h, p, n], single),
    };
    let token = |v| NewToken::<B> {
        q: of([b, h * p], single),
        k: of([b, p], single),
        v: of([b, p], v),
        cos: of([1, 1], single),
        sin: of([1, 1], single),
        angle: 0,
    };
    let (_, cache) = attention_step(token(single), None, h);
    let projected = of([b, channels + h * p + h], double);
    let step = || recurrent_step(projected, parameters, state);
    let (x, taps) = (of::<B, 3>([b, l, h], double), of([h, 4], single));
    let y = of::<B, 4>([b, l, h, p], single);
    let z = of([b, l, h * p], single);
    let logits = |dtype| of::<B, 2>([l, n], dtype);
    let queries = |dtype| of::<B, 4>([b, l, h, p], dtype);
    let ScanInputs {
        x: values,
        a_log,
        b: inputs,
        c: outputs,
        ..
    } = scan(double);

    let refusals = [
        refusal(|| attention_matrix(queries(single), queries(double))),
        refusal(|| causal_conv(x, taps, None, None, Activation::Identity)),
        refusal(|| ssd_scan(values, a_log, inputs, outputs, None, 2)),
        refusal(|| gated_scan(scan(single), gate, 2)),
        refusal(|| skip_gate(y.clone(), y, of([h], double), z, None)),
        refusal(|| mixing_distance(student(single), teacher(double))),
        refusal(|| transfer_matrix(student(double))),
        refusal(|| rows_distance(logits(single), logits(double))),
        refusal(|| distillation_loss(logits(single), logits(double), None, weights)),
        refusal(step),
        refusal(|| attention_step(token(double), Some(cache), h)),
    ];
    for message in refusals {
        let is_named =
            message.contains("of f64 and of narrower") || message.contains("the dtype of");
        assert!(is_named, "{message}");
    }
}

/// A convolution of half-precision inputs by f32 taps is that of their widened values, rounded once.
#[test]
fn half_precision_inputs_meet_wider_taps() {
    let x = of::<Flex, 3>([2, 9, 4], DType::BF16);
    let taps = of::<Flex, 2>([4, 3], DType::F32);
    let found = causal_conv(x.clone(), taps.clone(), None, None, Activation::Silu);
    assert_eq!(found.dtype(), DType::BF16);
    let expected = causal_conv(x.cast(DType::F32), taps, None, None, Activation::Silu);
    let expected = expected.cast(DType::BF16);
    assert_close("bf16 by f32", values(found), values(expected), 0.0);
}
