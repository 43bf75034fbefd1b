//! The causal convolution.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::scan::causal_conv::{Activation, CausalConv, ConvInputs, reference};

use crate::support::*;

struct Case {
    shape: [usize; 3],
    width: usize,
    bias: bool,
    history: bool,
    activation: Activation,
    /// Whether the inputs are slices.
    sliced: bool,
    dtype: DType,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let shape = [
            random.size(1, 3),
            random.of(&[1, 3, 31, 33, 64, 255, 257, 700, 1031]),
            random.of(&[1, 5, 24, 32, 96, 130, 256]),
        ];
        Self {
            shape,
            width: random.of(&[1, 2, 3, 4, 4, 4, 7]),
            bias: random.flag(),
            history: random.flag(),
            activation: random.of(&[Activation::Identity, Activation::Silu]),
            sliced: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            shape: [b, l, c],
            width: w,
            activation,
            dtype,
            sliced,
            ..
        } = *self;
        let x = random.values([b, l, c], 1.0, dtype);
        let weight = random.values([c, w], 1.0, dtype);
        let bias = self.bias.then(|| random.values([c], 1.0, dtype));
        let has_history = self.history && w > 1;
        let history = has_history.then(|| random.values([b, w - 1, c], 1.0, dtype));
        let dy = random.values([b, l, c], 1.0, dtype);
        let wanted = [true, true, bias.is_some(), history.is_some()];

        let exact = {
            let bias = bias.as_ref().map(Values::exact);
            let history = history.as_ref().map(Values::exact);
            let (x, weight, dy) = (x.exact(), weight.exact(), dy.exact());
            let inputs = ConvInputs {
                x,
                weight,
                bias,
                history,
                activation,
                documents: None,
            };
            let y = reference::forward(inputs.clone());
            outputs(y, reference::backward(inputs, dy, wanted))
        };
        let read = |values: &Values<3>| {
            if sliced {
                values.sliced()
            } else {
                values.cube()
            }
        };
        let run = || {
            let bias = bias.as_ref().map(Values::cube);
            let history = history.as_ref().map(&read);
            let (x, weight, dy) = (read(&x), weight.cube(), read(&dy));
            let inputs = ConvInputs {
                x,
                weight,
                bias,
                history,
                activation,
                documents: None,
            };
            poison();
            let y = Cube::causal_conv_forward(inputs.clone());
            outputs(y, Cube::causal_conv_backward(inputs, dy, wanted))
        };
        let name = format!(
            "convolution {:?}, width {w}, bias {}, history {}, {activation:?}, sliced {sliced}, {dtype:?}",
            self.shape, self.bias, self.history
        );
        check(&name, tolerance(dtype), exact, run);
    }
}

fn outputs<B: KernelBackend>(
    y: burn::tensor::Tensor<B, 3>,
    gradients: kernels::ConvGradients<B>,
) -> Outputs {
    let mut outputs = vec![output("y", y)];
    outputs.extend(gradients.x.map(|x| output("dx", x)));
    outputs.extend(gradients.weight.map(|x| output("dweight", x)));
    outputs.extend(gradients.bias.map(|x| output("dbias", x)));
    outputs.extend(gradients.history.map(|x| output("dhistory", x)));
    outputs
}

#[test]
fn convolution_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (shape, width, sliced) in [
                ([1, 1, 1], 4, false),
                ([2, 2, 5], 4, false),
                ([3, 40, 17], 2, false),
                ([2, 700, 24], 4, true),
                ([1, 300, 64], 3, true),
                ([2, 9, 4], 1, false),
            ] {
                for (activation, given) in [(Activation::Identity, false), (Activation::Silu, true)]
                {
                    let case = Case {
                        shape,
                        width,
                        bias: given,
                        history: given,
                        activation,
                        sliced,
                        dtype,
                    };
                    case.check(&mut Random::new(7));
                }
            }
        }
    });
}

#[test]
fn convolution_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}
