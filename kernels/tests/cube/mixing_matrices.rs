//! Stage 1's distance.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::losses::mixing_matrices::{MixingMatrices, reference};
use kernels::{AttentionParts, KernelBackend, TransferParts};

use crate::support::*;

struct Case {
    /// `[b, l, h]`.
    sizes: [usize; 3],
    /// Groups of B and C, and of the keys.
    groups: [usize; 2],
    n: usize,
    p: usize,
    /// The range of `a_log`: 60 is decays of one and of zero.
    decay: f64,
    sliced: bool,
    dtype: DType,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let (h, g, k) = random.of(&[
            (1, 1, 1),
            (2, 1, 2),
            (3, 3, 1),
            (4, 2, 4),
            (6, 3, 2),
            (5, 5, 5),
        ]);
        Self {
            sizes: [
                random.size(1, 2),
                random.of(&[1, 2, 31, 32, 33, 64, 65, 130, 257, 500]),
                h,
            ],
            groups: [g, k],
            n: random.of(&[1, 5, 16, 32, 48, 64, 128]),
            p: random.of(&[2, 16, 33, 64, 128]),
            decay: random.of(&[0.5, 5.0, 60.0]),
            sliced: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            sizes: [b, l, h],
            groups: [g, k],
            n,
            p,
            dtype,
            sliced,
            ..
        } = *self;
        let a_log = random.values([b, l, h], self.decay, DType::F32);
        let bs = random.values([b, l, g, n], 1.0, dtype);
        let cs = random.values([b, l, g, n], 1.0, dtype);
        let d = random.values([h], 1.0, dtype);
        let q = random.values([b, l, h, p], 2.0, dtype);
        let ks = random.values([b, l, k, p], 2.0, dtype);

        let student = TransferParts {
            a_log: a_log.exact(),
            b: bs.exact(),
            c: cs.exact(),
            d: d.exact(),
        };
        let teacher = AttentionParts {
            q: q.exact(),
            k: ks.exact(),
            window: None,
            documents: None,
        };
        let forward = reference::forward(student.clone(), teacher.clone());
        let exact = outputs(forward, reference::with_gradients(student, teacher));
        let read = |values: &Values<4>| {
            if sliced {
                values.sliced()
            } else {
                values.cube()
            }
        };
        let run = || {
            let student = TransferParts {
                a_log: a_log.cube(),
                b: read(&bs),
                c: read(&cs),
                d: d.cube(),
            };
            let teacher = AttentionParts {
                q: read(&q),
                k: read(&ks),
                window: None,
                documents: None,
            };
            poison();
            let forward = Cube::mixing_distance_forward(student.clone(), teacher.clone());
            outputs(
                forward,
                Cube::mixing_distance_with_gradients(student, teacher),
            )
        };
        let name = format!(
            "distance {:?}, groups {:?}, n {n}, p {p}, decay {}, sliced {sliced}, {dtype:?}",
            self.sizes, self.groups, self.decay
        );
        check(&name, tolerance(dtype), exact, run);
    }
}

fn outputs<B: KernelBackend>(
    forward: Tensor<B, 1>,
    (loss, gradients): (Tensor<B, 1>, TransferParts<B>),
) -> Outputs {
    vec![
        output("forward", forward),
        output("loss", loss),
        output("da_log", gradients.a_log),
        output("dB", gradients.b),
        output("dC", gradients.c),
        output("dD", gradients.d),
    ]
}

#[test]
fn distance_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (sizes, groups, n, p, decay) in [
                ([1, 1, 1], [1, 1], 1, 2, 0.5),
                ([2, 70, 3], [3, 3], 16, 64, 0.5),
                ([1, 200, 6], [2, 3], 64, 64, 5.0),
                ([1, 130, 2], [2, 2], 128, 32, 60.0),
            ] {
                for sliced in [false, true] {
                    let case = Case {
                        sizes,
                        groups,
                        n,
                        p,
                        decay,
                        sliced,
                        dtype,
                    };
                    case.check(&mut Random::new(3));
                }
            }
        }
    });
}

#[test]
fn distance_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

/// `B = C = 0` and `D = 1` is the identity; so is the attention of one token.
#[test]
fn no_distance_has_no_gradient() {
    with_device(|| {
        let device = Default::default();
        let student = TransferParts {
            a_log: Tensor::zeros([2, 1, 3], &device),
            b: Tensor::zeros([2, 1, 3, 4], &device),
            c: Tensor::ones([2, 1, 3, 4], &device),
            d: Tensor::ones([3], &device),
        };
        let teacher = AttentionParts {
            q: Tensor::ones([2, 1, 3, 4], &device),
            k: Tensor::ones([2, 1, 3, 4], &device),
            window: None,
            documents: None,
        };
        let (loss, gradients) = Cube::mixing_distance_with_gradients(student, teacher);
        assert_eq!(loss.into_scalar(), 0.0);
        // Each number is checked, because a maximum may hide a NaN.
        let zero = |name: &str, gradient: TensorData| {
            assert!(gradient.iter::<f64>().all(|g| g == 0.0), "{name}");
        };
        zero("b", gradients.b.into_data());
        zero("c", gradients.c.into_data());
        zero("d", gradients.d.into_data());
        zero("a_log", gradients.a_log.into_data());
    });
}
