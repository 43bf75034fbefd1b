//! Projections of few vectors.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::decode::projections::{
    self, Activation, Form, GROUP, Input, Normalisation, Projection, Weight, reference,
};

use crate::support::*;

const EPSILON: f64 = 1e-5;

/// A projection on both backends.
#[derive(Clone)]
struct Both {
    weight: Values<2>,
    bias: Option<Values<1>>,
    form: Form,
    activation: Activation,
}

impl Both {
    fn random(random: &mut Random, d_out: usize, d_in: usize, dtype: DType, form: Form) -> Self {
        let bias = random.flag();
        Self {
            weight: random.values([d_out, d_in], 1.0, dtype),
            bias: bias.then(|| random.values([d_out], 1.0, dtype)),
            form,
            activation: random.of(&[Activation::Identity, Activation::GeluNew, Activation::Silu]),
        }
    }

    fn exact(&self) -> Projection<Exact> {
        Self::projection(
            self.weight.exact(),
            self.bias.as_ref().map(Values::exact),
            self.form,
        )
    }

    fn cube(&self) -> Projection<Cube> {
        Self::projection(
            self.weight.cube(),
            self.bias.as_ref().map(Values::cube),
            self.form,
        )
    }

    fn projection<B: KernelBackend>(
        weight: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
        form: Form,
    ) -> Projection<B> {
        let weight = Weight::Float(weight).to_form(form);
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
    let form = projections[0].form;
    let centred = beta.is_some();
    let name = format!("into b{b} {d} to {rows:?}, {form:?}, centred {centred}, {dtype:?}");
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
    let form = projections[0].form;
    let name = format!("out of b{b} {widths:?} to {d}, {form:?}, gated {gated:?}, {dtype:?}");
    check(&name, 1e-5, exact, run);
}

fn case(b: usize, d: usize, widths: &[usize], form: Form, dtype: DType, random: &mut Random) {
    let out = widths
        .iter()
        .map(|&width| Both::random(random, width, d, dtype, form));
    let out: Vec<_> = out.collect();
    check_into(b, d, &out, random, dtype);
    let back = widths
        .iter()
        .map(|&width| Both::random(random, d, width, dtype, form));
    let back: Vec<_> = back.collect();
    check_out_of(b, d, &back, random, dtype);
}

#[test]
fn projections_of_few_vectors_are_right() {
    with_device(|| {
        for dtype in dtypes() {
            for form in [Form::Float, Form::Int8] {
                let mut random = Random::new(3);
                case(1, 64, &[72, 256], form, dtype, &mut random);
                case(2, 192, &[193, 768, 33], form, dtype, &mut random);
                case(8, 256, &[520], form, dtype, &mut random);
                if has_tensor_cores() {
                    // More rows than a cube has at a time.
                    case(3, 512, &[9216, 512], form, dtype, &mut random);
                    // In 8 bits these are six steps for four planes.
                    case(5, 768, &[384], form, dtype, &mut random);
                }
                // SmolLM2's MLP and a part of its mixer.
                case(1, 576, &[1536, 1536], form, dtype, &mut random);
                case(4, 576, &[2313], form, dtype, &mut random);
            }
        }
    });
}

/// Many vectors are computed in parts, the last of which is smaller, or as one matrix product.
#[test]
fn projections_of_many_vectors_are_right() {
    with_device(|| {
        for form in [Form::Float, Form::Int8] {
            let mut random = Random::new(5);
            case(21, 64, &[72, 33], form, DType::F32, &mut random);
            case(65, 64, &[72, 33], form, DType::F32, &mut random);
        }
    });
}

/// Lengths of rows that units, or planes, share evenly and unevenly, and an odd number of groups.
#[test]
fn projections_in_four_bits_are_right() {
    with_device(|| {
        for dtype in dtypes() {
            let mut random = Random::new(5);
            case(1, 576, &[1536, 33 * GROUP], Form::Int4, dtype, &mut random);
            case(
                9,
                9 * GROUP,
                &[2080, 7 * GROUP],
                Form::Int4,
                dtype,
                &mut random,
            );
            if has_tensor_cores() {
                case(2, 1024, &[9216, 512], Form::Int4, dtype, &mut random);
                case(7, 1280, &[768], Form::Int4, dtype, &mut random);
            }
        }
    });
}

/// Inputs that are all large, all small or zero, or that are far apart.
#[test]
fn inputs_of_any_size_are_right() {
    let [b, d_in, d] = [3, 1024, 40];
    with_device(|| {
        for form in [Form::Float, Form::Int8, Form::Int4] {
            let mut random = Random::new(17);
            let both = Both::random(&mut random, d, d_in, DType::F32, form);
            let size = |i: usize| 10.0_f64.powi(i as i32 * 7 % 13 - 6);
            let kinds: [(&str, &dyn Fn(usize) -> f64); 4] = [
                ("large", &|_| 1e30),
                ("small", &|_| 1e-30),
                ("zero", &|_| 0.0),
                ("far apart", &size),
            ];
            for (kind, size) in kinds {
                let mut values = |n| {
                    let numbers = random.values([b, n], 1.0, DType::F32).exact();
                    let numbers = numbers.into_data();
                    let sized = numbers.iter::<f64>().enumerate();
                    let sized = sized.map(|(i, number)| number * size(i)).collect();
                    Values::new(sized, [b, n], DType::F32)
                };
                let (x, u) = (values(d), values(d_in));
                let weight = || Projection {
                    bias: None,
                    ..both.exact()
                };
                let exact = reference::out_of(x.exact(), vec![(u.exact().into(), weight())]);
                let weight = Projection {
                    bias: None,
                    ..both.cube()
                };
                let run = || {
                    let inputs = vec![(u.cube().into(), weight.clone())];
                    outputs(vec![projections::out_of(x.cube(), inputs)])
                };
                check(
                    &format!("{kind}, {form:?}"),
                    1e-5,
                    outputs(vec![exact]),
                    run,
                );
            }
        }
    });
}

/// A vector with a number that is infinite or NaN has no finite outputs; the others are what they are without it.
#[test]
fn no_number_is_made_of_none() {
    let [b, d_in, d] = [5, 1024, 40];
    with_device(|| {
        for form in [Form::Float, Form::Int8, Form::Int4] {
            let mut random = Random::new(19);
            let both = Both::random(&mut random, d, d_in, DType::F32, form);
            let u = random.values([b, d_in], 1.0, DType::F32);
            let out = |u: Tensor<Cube, 2>| {
                let x = Tensor::zeros([b, d], (&Default::default(), DType::F32));
                let y = projections::out_of(x, vec![(u.into(), both.cube())]);
                y.into_data().to_vec::<f32>().unwrap()
            };
            let finite = out(u.cube());
            assert!(finite.iter().all(|y| y.is_finite()));
            for none in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut numbers = u.cube().into_data().to_vec::<f32>().unwrap();
                numbers[3 * d_in + 700] = none;
                let data = TensorData::new(numbers, [b, d_in]);
                let found = out(Tensor::from_data(data, &Default::default()));
                let rows = found.chunks(d).zip(finite.chunks(d)).enumerate();
                for (row, (found, finite)) in rows {
                    if row == 3 {
                        assert!(!found.iter().any(|y| y.is_finite()), "{none} in {form:?}");
                    } else {
                        assert_eq!(found, finite, "{none} in {form:?}");
                    }
                }
            }
        }
    });
}

/// A packed weight as floats is what the definition says, to the rounding of its dtype.
#[test]
fn packed_weights_are_their_numbers() {
    with_device(|| {
        for dtype in dtypes() {
            for (form, d_out, d_in, size) in [
                (Form::Int8, 3, 4, 1.0),
                (Form::Int8, 65, 1036, 1.0),
                (Form::Int4, 1, GROUP, 1.0),
                (Form::Int4, 65, 33 * GROUP, 1.0),
                // Scales below the normal range of f16.
                (Form::Int4, 3, 3 * GROUP, 1e-5),
            ] {
                if size < 1.0 && dtype != DType::F32 {
                    continue;
                }
                let weight = Random::new(7).values([d_out, d_in], size, DType::F32);
                let packed = Weight::<Cube>::Float(weight.cube()).to_form(form);
                let exact = Weight::<Exact>::Float(weight.exact()).to_form(form);
                let name = format!("{d_out} of {d_in} from {form:?} to {dtype:?}");
                let exact = vec![output("numbers", exact.to_float(DType::F32))];
                let run = || vec![output("numbers", packed.to_float(dtype))];
                check(&name, tolerance(dtype), exact, run);
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
            let form = random.of(&[Form::Float, Form::Int8, Form::Int4]);
            let whole = |n: usize| match form {
                Form::Int4 => n.next_multiple_of(GROUP),
                _ => n,
            };
            let d = whole(d);
            let widths: Vec<_> = widths.into_iter().map(whole).collect();
            case(b, d, &widths, form, dtype, &mut random);
        }
    });
}

/// The bits of a row do not depend on the other rows.
#[test]
fn a_vector_alone_is_as_in_a_batch() {
    with_device(|| {
        let each = dtypes()
            .into_iter()
            .map(|dtype| (dtype, 256, 300, Form::Float));
        let mut packed = vec![
            (DType::F32, 256, 300, Form::Int8),
            (DType::F32, 320, 100, Form::Int4),
        ];
        if has_tensor_cores() {
            // More rows than all cubes of a large GPU have at a time.
            packed.push((DType::F32, 1024, 20_000, Form::Int8));
            packed.push((DType::F32, 1280, 5000, Form::Int4));
            // Few rows, which all planes share, so that several cubes share the digits of many vectors.
            packed.push((DType::F32, 1280, 300, Form::Int4));
        }
        for (dtype, d, d_out, form) in each.chain(packed) {
            let mut random = Random::new(11);
            let it = Both::random(&mut random, d_out, d, dtype, form);
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
