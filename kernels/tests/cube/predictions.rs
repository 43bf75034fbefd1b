//! Stage 3's loss and its gradient.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::losses::predictions::{DistillationInputs, Predictions, reference};
use kernels::{DistillationWeights, distillation_block};

use crate::support::*;

struct Case {
    t: usize,
    v: usize,
    /// Of the student's logits, and of the teacher's.
    dtypes: [DType; 2],
    weights: DistillationWeights,
    tokens: usize,
    /// Logits lie between plus and minus this.
    range: f64,
    sliced: bool,
}

fn labels<B: Backend>(of: &[i64]) -> Option<Tensor<B, 1, Int>> {
    let data = TensorData::new(of.to_vec(), [of.len()]);
    Some(Tensor::from_data(data, &Default::default()))
}

fn block_outputs<B: Backend>((loss, gradient): (Tensor<B, 1>, Tensor<B, 2>)) -> Outputs {
    vec![output("loss", loss), output("gradient", gradient)]
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let t = random.of(&[1, 2, 7, 33]);
        Self {
            t,
            v: random.of(&[2, 3, 16, 257, 1000, 1023, 2048, 4099]),
            dtypes: [random.of(&dtypes()), random.of(&dtypes())],
            weights: DistillationWeights {
                temperature: random.of(&[1.0, 0.5, 3.0]),
                hard: random.of(&[0.0, 0.3, 1.0]),
            },
            tokens: t * random.size(1, 5),
            range: random.of(&[0.1, 8.0, 1e4]),
            sliced: random.flag(),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            t,
            v,
            weights,
            tokens,
            ..
        } = *self;
        let student = random.values([t, v], self.range, self.dtypes[0]);
        let teacher = random.values([t, v], self.range, self.dtypes[1]);
        let of: Vec<i64> = (0..t).map(|_| random.size(0, v - 1) as i64).collect();
        let exact_inputs = DistillationInputs {
            student: student.exact(),
            teacher: teacher.exact(),
            labels: labels(&of),
            weights,
        };
        let exact = block_outputs(reference::block(exact_inputs.clone(), tokens));
        let read = |values: &Values<2>| {
            if self.sliced {
                values.sliced()
            } else {
                values.cube()
            }
        };
        let name = format!(
            "distillation {t} x {v} of {tokens}, {weights:?}, {:?}, within {}, sliced {}",
            self.dtypes, self.range, self.sliced
        );
        let run = || {
            let (student, teacher) = (read(&student), read(&teacher));
            let (loss, gradient) =
                distillation_block(student, teacher, labels(&of), weights, tokens);
            assert_eq!(loss.dtype(), DType::F32, "{name}");
            assert_eq!(gradient.dtype(), self.dtypes[0], "{name}");
            block_outputs((loss, gradient))
        };
        check(&name, tolerance(self.dtypes[0]), exact, run);

        let exact = reference::forward(exact_inputs);
        let run = || {
            let loss = Cube::distillation_loss_forward(DistillationInputs {
                student: read(&student),
                teacher: read(&teacher),
                labels: labels(&of),
                weights,
            });
            assert_eq!(loss.dtype(), self.dtypes[0], "{name}");
            vec![output("the loss alone", loss)]
        };
        let exact = vec![output("the loss alone", exact)];
        check(&name, tolerance(self.dtypes[0]), exact, run);
    }
}

#[test]
fn distillation_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (t, v, hard, temperature, range, sliced) in [
                (1, 1, 0.0, 1.0, 3.0, false),
                (2, 2, 1.0, 2.0, 3.0, false),
                (3, 51, 0.25, 2.0, 3.0, true),
                (5, 4096, 0.0, 1.0, 1e4, false),
                (2, 51_200, 0.5, 1.0, 10.0, false),
                (3, 10_003, 1.0, 0.7, 1e4, false),
            ] {
                let weights = DistillationWeights { temperature, hard };
                let case = Case {
                    t,
                    v,
                    dtypes: [dtype; 2],
                    weights,
                    tokens: 3 * t,
                    range,
                    sliced,
                };
                case.check(&mut Random::new(v as u64));
            }
        }
    });
}

#[test]
fn distillation_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

/// A label outside the vocabulary makes the loss NaN, which a training run detects. If the label were ignored, nothing
/// would be detected.
#[test]
fn labels_out_of_range_are_noticed() {
    with_device(|| {
        let weights = DistillationWeights {
            temperature: 1.0,
            hard: 1.0,
        };
        let loss = |label: i64| {
            let logits = Tensor::<Cube, 2>::full([2, 3], 0.5, &Default::default());
            let labels = labels(&[1, label]);
            let (loss, _) = distillation_block(logits.clone(), logits, labels, weights, 2);
            loss.into_data().iter::<f64>().sum::<f64>()
        };
        assert!((loss(2) - 3.0f64.ln()).abs() < 1e-6);
        for label in [3, 4, 100, -1, -100] {
            assert!(loss(label).is_nan(), "{label}");
        }
    });
}

#[test]
fn equal_logits_give_the_logarithm_of_their_number() {
    with_device(|| {
        let (t, v) = (3, 777);
        let student = Tensor::<Cube, 2>::full([t, v], -1e4, &Default::default());
        let teacher = Tensor::full([t, v], 1e4, &Default::default());
        let (loss, gradient) = distillation_block(student, teacher, None, Default::default(), t);
        let loss: f64 = loss.into_data().iter::<f64>().sum();
        assert!((loss - (v as f64).ln()).abs() < 1e-5, "{loss}");
        let gradient = gradient.into_data();
        assert!(gradient.iter::<f64>().all(|g| g.abs() < 1e-9));
    });
}

#[test]
fn blocks_of_tokens_add_up_to_the_whole() {
    with_device(|| {
        let (t, v, first) = (13, 300, 5);
        let mut random = Random::new(5);
        let student = random.values([t, v], 5.0, DType::F32).cube();
        let teacher = random.values([t, v], 5.0, DType::F32).cube();
        let weights = DistillationWeights::default();
        let (loss, gradient) = Cube::distillation_loss_with_gradient(DistillationInputs {
            student: student.clone(),
            teacher: teacher.clone(),
            labels: None,
            weights,
        });
        let blocks = [(0, first), (first, t - first)].map(|(from, count)| {
            let of = |x: &Tensor<Cube, 2>| x.clone().narrow(0, from, count);
            distillation_block(of(&student), of(&teacher), None, weights, t)
        });
        let [(loss_1, gradient_1), (loss_2, gradient_2)] = blocks;
        let error = distance(&loss.into_data(), &(loss_1 + loss_2).into_data());
        assert!(error < 1e-6, "the losses are off by {error:.1e}");
        let gradients = Tensor::cat(vec![gradient_1, gradient_2], 0).into_data();
        assert!(gradient.into_data().as_bytes() == gradients.as_bytes());
    });
}
