//! Columns side by side, and a bias for rows that may have others between them.

use burn::tensor::DType;
use kernels::dense::bias::{Bias, reference as bias};
use kernels::dense::columns::{Columns, reference};

use crate::support::*;

/// Parts of these widths in rows of `d`; those without a gradient are `None`.
fn check_join(widths: &[usize], given: &[bool], d: usize, dtype: DType) {
    let mut random = Random::new(11);
    let parts: Vec<_> = widths
        .iter()
        .map(|width| random.values([2, 5, *width], 1.0, dtype))
        .collect();
    let some = |i: usize| given[i].then_some(&parts[i]);
    let exact = (0..parts.len()).map(|i| some(i).map(Values::exact));
    let exact = vec![output(
        "joined",
        reference::join(exact.collect(), widths, d),
    )];
    let run = || {
        let parts = (0..parts.len())
            .map(|i| some(i).map(Values::cube))
            .collect();
        poison();
        vec![output("joined", Cube::join_columns(parts, widths, d))]
    };
    check(
        &format!("columns {widths:?} of {d}, {dtype:?}"),
        tolerance(dtype),
        exact,
        run,
    );
}

#[test]
fn joined_columns_are_right() {
    with_device(|| {
        for dtype in dtypes() {
            check_join(&[16, 8, 8], &[true; 3], 32, dtype);
            // A last part of no whole vectors, and columns behind it.
            check_join(&[24, 8, 9], &[true; 3], 48, dtype);
            check_join(&[24, 8, 9], &[true, false, true], 41, dtype);
            check_join(&[7, 3], &[false, true], 11, dtype);
            check_join(&[35], &[true], 40, dtype);
        }
    });
}

#[test]
fn bias_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (shape, sliced) in [([1, 1, 1], false), ([2, 33, 9], true), ([3, 5, 40], false)] {
                let mut random = Random::new(12);
                let x = random.values(shape, 1.0, dtype);
                let own = random.values([shape[2]], 3.0, DType::F32);
                let exact = vec![output("y", bias::forward(x.exact(), own.exact()))];
                let run = || {
                    let x = if sliced { x.sliced() } else { x.cube() };
                    let own = own.cube();
                    poison();
                    vec![output("y", Cube::add_bias(x, own))]
                };
                check(
                    &format!("bias {shape:?}, {dtype:?}"),
                    tolerance(DType::F32),
                    exact,
                    run,
                );
            }
        }
    });
}
