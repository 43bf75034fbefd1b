//! The gated activation of Llama's MLP.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::dense::swiglu::{SwiGlu, reference};

use crate::support::*;

fn outputs<B: KernelBackend>(y: Tensor<B, 2>, [dgate, dup]: [Tensor<B, 2>; 2]) -> Outputs {
    vec![output("y", y), output("dgate", dgate), output("dup", dup)]
}

fn check_values(name: &str, [gate, up, dy]: [&Values<2>; 3], sliced: bool, dtype: DType) {
    let exact = {
        let (gate, up, dy) = (gate.exact(), up.exact(), dy.exact());
        let y = reference::forward(gate.clone(), up.clone());
        outputs(y, reference::backward(gate, up, dy))
    };
    let run = || {
        let [gate, up, dy] = [gate, up, dy].map(|values| {
            if sliced {
                values.sliced()
            } else {
                values.cube()
            }
        });
        poison();
        let y = Cube::swiglu_forward(gate.clone(), up.clone());
        outputs(y, Cube::swiglu_backward(gate, up, dy))
    };
    let name = format!("swiglu {name}, {dtype:?}");
    check(&name, tolerance(dtype), exact, run);
}

#[test]
fn swiglu_is_right() {
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
                let gate = random.values(shape, 6.0, dtype);
                let up = random.values(shape, 2.0, dtype);
                let dy = random.values(shape, 1.0, dtype);
                check_values(&format!("{shape:?}"), [&gate, &up, &dy], sliced, dtype);
            }
        }
    });
}

#[test]
fn swiglu_is_finite_far_out() {
    with_device(|| {
        for dtype in dtypes() {
            let largest = if dtype == DType::F16 { 6e4 } else { 1e30 };
            for gate in [0.0, 1e-3, 3.0, 12.0, 100.0, largest] {
                for gate in [gate, -gate] {
                    let one = |value| Values::new(vec![value], [1, 1], dtype);
                    let (gate, up, dy) = (one(gate), one(0.5), one(0.5));
                    let y = Cube::swiglu_forward(gate.cube(), up.cube());
                    let outputs =
                        outputs(y, Cube::swiglu_backward(gate.cube(), up.cube(), dy.cube()));
                    let exact_y = reference::forward(gate.exact(), up.exact()).into_scalar();
                    for (name, data) in outputs {
                        let value = data.iter::<f64>().next().expect("one element");
                        assert!(value.is_finite(), "{name} is {value}, {dtype:?}");
                        if name == "y" {
                            let error = (value - exact_y).abs();
                            let bound = tolerance(dtype) * exact_y.abs() + 1e-6;
                            assert!(error <= bound, "y is {value}, not {exact_y}");
                        }
                    }
                }
            }
        }
    });
}
