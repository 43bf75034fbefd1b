//! `gelu_new`.

use burn::tensor::DType;
use kernels::dense::gelu::{GeluNew, reference};

use crate::support::*;

fn check_values(name: &str, x: &Values<2>, dy: &Values<2>, sliced: bool, dtype: DType) {
    let outputs = |y, dx| vec![output::<Exact, 2>("y", y), output("dx", dx)];
    let exact = outputs(
        reference::forward(x.exact()),
        reference::backward(x.exact(), dy.exact()),
    );
    let run = || {
        let (x, dy) = if sliced {
            (x.sliced(), dy.sliced())
        } else {
            (x.cube(), dy.cube())
        };
        poison();
        let y = Cube::gelu_new_forward(x.clone());
        let dx = Cube::gelu_new_backward(x, dy);
        vec![output("y", y), output("dx", dx)]
    };
    check(
        &format!("gelu {name}, {dtype:?}"),
        tolerance(dtype),
        exact,
        run,
    );
}

#[test]
fn gelu_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (shape, sliced) in [
                ([1, 1], false),
                ([5, 7], false),
                ([33, 130], true),
                ([3, 2050], false),
                ([64, 512], false),
            ] {
                let mut random = Random::new(7);
                let x = random.values(shape, 6.0, dtype);
                let dy = random.values(shape, 1.0, dtype);
                check_values(&format!("{shape:?}"), &x, &dy, sliced, dtype);
            }
        }
    });
}

#[test]
fn gelu_is_right_element_by_element_and_far_out() {
    with_device(|| {
        for dtype in dtypes() {
            let largest = if dtype == DType::F16 { 6e4 } else { 1e30 };
            for x in [0.0, 1e-3, 0.7, 3.0, 5.0, 12.0, 100.0, 1e4, largest] {
                for x in [x, -x] {
                    let (x, dy) = (vec![x], vec![0.5]);
                    let name = format!("at {x:?}");
                    let x = Values::new(x, [1, 1], dtype);
                    let dy = Values::new(dy, [1, 1], dtype);
                    // What is left of 1 - tanh in f32 far below 0 is of no consequence.
                    let near = x.exact().into_scalar() > -4.0;
                    if near {
                        check_values(&name, &x, &dy, false, dtype);
                    } else {
                        let y = Cube::gelu_new_forward(x.cube()).into_data();
                        let dx = Cube::gelu_new_backward(x.cube(), dy.cube()).into_data();
                        for (value, exact) in [
                            (y, reference::forward(x.exact())),
                            (dx, reference::backward(x.exact(), dy.exact())),
                        ] {
                            let value = value.iter::<f64>().next().expect("one element");
                            let error = (value - exact.into_scalar()).abs();
                            assert!(error <= 1e-6, "gelu {name}, {dtype:?}: off by {error:.2e}");
                        }
                    }
                }
            }
        }
    });
}
