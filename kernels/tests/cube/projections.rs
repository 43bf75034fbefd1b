//! Projections of few vectors.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::decode::projections::{
    self, Activation, Input, Normalisation, Projection, Weight, reference,
};

use crate::support::*;

const EPSILON: f64 = 1e-5;

/// A projection on both backends.
#[derive(Clone)]
struct Both {
    weight: Values<2>,
    bias: Option<Values<1>>,
    int8: bool,
    activation: Activation,
}

impl Both {
    fn random(random: &mut Random, d_out: usize, d_in: usize, dtype: DType, int8: bool) -> Self {
        let bias = random.flag();
        Self {
            weight: random.values([d_out, d_in], 1.0, dtype),
            bias: bias.then(|| random.values([d_out], 1.0, dtype)),
            int8,
            activation: random.of(&[Activation::Identity, Activation::GeluNew, Activation::Silu]),
        }
    }

    fn exact(&self) -> Projection<Exact> {
        Self::projection(
            self.weight.exact(),
            self.bias.as_ref().map(Values::exact),
            self.int8,
        )
    }

    fn cube(&self) -> Projection<Cube> {
        Self::projection(
            self.weight.cube(),
            self.bias.as_ref().map(Values::cube),
            self.int8,
        )
    }

    fn projection<B: KernelBackend>(
        weight: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
        int8: bool,
    ) -> Projection<B> {
        let weight = Weight::Float(weight);
        let weight = if int8 { weight.to_int8() } else { weight };
        Projection { weight, bias }
    }
}

fn outputs<B: KernelBackend>(outputs: Vec<Tensor<B, 2>>) -> Outputs {
    outputs.into_iter().map(|y| output("y", y)).collect()
}

fn check_into(b: usize, d: usize, projections: &[Both], random: &mut Random, dtype: DType) {
    let x = random.values([b, d], 3.0, DType::F32);
    let gamma = random.values([d], 1.0, dtype);
    // Layer normalisation, or root-mean-square normalisation.
    let beta = random.flag().then(|| random.values([d], 1.0, dtype));
    let exact = {
        let norm = Normalisation {
            gamma: gamma.exact(),
            beta: beta.as_ref().map(Values::exact),
            epsilon: EPSILON,
        };
        let projections = projections.iter().map(|one| (one.exact(), one.activation));
        outputs(reference::into(x.exact(), norm, projections.collect()))
    };
    let run = || {
        let norm = Normalisation {
            gamma: gamma.cube(),
            beta: beta.as_ref().map(Values::cube),
            epsilon: EPSILON,
        };
        let projections = projections.iter().map(|one| (one.cube(), one.activation));
        outputs(projections::into(x.cube(), norm, projections.collect()))
    };
    let rows: Vec<_> = projections
        .iter()
        .map(|one| one.weight.exact().dims()[0])
        .collect();
    let int8 = projections[0].int8;
    let centred = beta.is_some();
    let name = format!("into b{b} {d} to {rows:?}, int8 {int8}, centred {centred}, {dtype:?}");
    check(&name, 1e-5, exact, run);
}

fn check_out_of(b: usize, d: usize, projections: &[Both], random: &mut Random, dtype: DType) {
    let x = random.values([b, d], 3.0, DType::F32);
    // Of all inputs, of some or of none.
    let gated = random.of(&[[true; 2], [true, false], [false; 2]]);
    let inputs = projections.iter().enumerate().map(|(i, both)| {
        let [_, d_in] = both.weight.exact().dims();
        let mut values = || random.values([b, d_in], 1.0, DType::F32);
        (values(), gated[i % 2].then(values))
    });
    let inputs: Vec<_> = inputs.collect();
    let exact = {
        let both = inputs.iter().zip(projections).map(|((u, gate), it)| {
            let (u, gate) = (u.exact(), gate.as_ref().map(Values::exact));
            (Input { u, gate }, it.exact())
        });
        outputs(vec![reference::out_of(x.exact(), both.collect())])
    };
    let run = || {
        let both = inputs.iter().zip(projections).map(|((u, gate), it)| {
            let (u, gate) = (u.cube(), gate.as_ref().map(Values::cube));
            (Input { u, gate }, it.cube())
        });
        outputs(vec![projections::out_of(x.cube(), both.collect())])
    };
    let widths: Vec<_> = projections
        .iter()
        .map(|one| one.weight.exact().dims()[1])
        .collect();
    let int8 = projections[0].int8;
    let name = format!("out of b{b} {widths:?} to {d}, int8 {int8}, gated {gated:?}, {dtype:?}");
    check(&name, 1e-5, exact, run);
}

fn case(b: usize, d: usize, widths: &[usize], int8: bool, dtype: DType, random: &mut Random) {
    let out = widths
        .iter()
        .map(|&width| Both::random(random, width, d, dtype, int8));
    let out: Vec<_> = out.collect();
    check_into(b, d, &out, random, dtype);
    let back = widths
        .iter()
        .map(|&width| Both::random(random, d, width, dtype, int8));
    let back: Vec<_> = back.collect();
    check_out_of(b, d, &back, random, dtype);
}

#[test]
fn projections_of_few_vectors_are_right() {
    with_device(|| {
        for dtype in dtypes() {
            for int8 in [false, true] {
                let mut random = Random::new(3);
                case(1, 64, &[72, 256], int8, dtype, &mut random);
                case(2, 192, &[193, 768, 33], int8, dtype, &mut random);
                case(8, 256, &[520], int8, dtype, &mut random);
                // Where there are tensor cores, these are theirs, and more rows than a cube has at a time.
                case(3, 512, &[9216, 512], int8, dtype, &mut random);
                // SmolLM2's MLP and a part of its mixer.
                case(1, 576, &[1536, 1536], int8, dtype, &mut random);
                case(4, 576, &[2313], int8, dtype, &mut random);
            }
        }
    });
}

#[test]
fn projections_of_few_vectors_are_right_on_random_shapes() {
    with_device(|| {
        // Each case compiles other kernels, which takes a CPU's Vulkan driver ten seconds.
        for mut random in random_cases().step_by(4) {
            let dtype = random.of(&dtypes());
            let (b, d) = (random.size(1, 9), random.size(1, 600));
            let count = random.size(1, 4);
            let widths: Vec<_> = (0..count).map(|_| random.size(1, 900)).collect();
            let int8 = random.flag();
            case(b, d, &widths, int8, dtype, &mut random);
        }
    });
}

/// A row's bits are the same in any company.
#[test]
fn a_vector_alone_is_as_in_a_batch() {
    with_device(|| {
        // The second has more rows than all cubes of a large GPU at a time.
        let each = dtypes().into_iter().map(|dtype| (dtype, 256, 300, false));
        for (dtype, d, d_out, int8) in each.chain([(DType::F32, 1024, 20_000, true)]) {
            let mut random = Random::new(11);
            let it = Both::random(&mut random, d_out, d, dtype, int8);
            let x = random.values([8, d], 3.0, DType::F32);
            let norm = |centred: bool| Normalisation::<Cube> {
                gamma: Tensor::ones([d], (&Default::default(), dtype)),
                beta: centred.then(|| Tensor::zeros([d], (&Default::default(), dtype))),
                epsilon: EPSILON,
            };
            let weight = it.cube();
            let out = |x, centred| {
                let projection = vec![(weight.clone(), it.activation)];
                projections::into(x, norm(centred), projection).remove(0)
            };
            let back = |u: Tensor<Cube, 2>, gated: bool| {
                let [rows, _] = u.dims();
                let x = Tensor::zeros([rows, d_out], (&Default::default(), DType::F32));
                let gate = gated.then(|| u.clone());
                projections::out_of(x, vec![(Input { u, gate }, weight.clone())])
            };
            let all = |x: Tensor<Cube, 2>| {
                let each = [false, true].map(|flag| [out(x.clone(), flag), back(x.clone(), flag)]);
                each.into_iter().flatten()
            };
            let together: Vec<_> = all(x.cube()).collect();
            for rows in [1, 2, 3, 5] {
                let some = x.cube().narrow(0, 8 - rows, rows);
                for (some, together) in all(some).zip(&together) {
                    let same = together.clone().narrow(0, 8 - rows, rows);
                    assert!(
                        some.into_data().as_bytes() == same.into_data().as_bytes(),
                        "{rows} rows in {dtype:?}"
                    );
                }
            }
        }
    });
}
