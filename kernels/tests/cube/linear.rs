//! Products of matrices: layers, their gradients and what is done with their outputs.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Tensor};
use kernels::dense::linear::{Linear, reference};
use kernels::runtime::synchronise;
use kernels::{KernelBackend, gelu_new, linear, linear_gelu, linear_onto};

use crate::support::*;

/// The inputs of a layer with the gradient of its output.
struct Case {
    x: Values<2>,
    weight: Values<2>,
    bias: Option<Values<1>>,
    dy: Values<2>,
    residual: Values<2>,
}

/// One backend's of them.
struct Tensors<B: KernelBackend> {
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    dy: Tensor<B, 2>,
    residual: Tensor<B, 2>,
}

impl Case {
    fn new([t, i, o]: [usize; 3], dtype: DType, random: &mut Random) -> Self {
        // Outputs of a size where a GELU is neither 0 nor the identity.
        let scale = 2.0 / (i as f64).sqrt();
        Self {
            x: random.values([t, i], 1.0, dtype),
            weight: random.values([o, i], scale, dtype),
            bias: random.flag().then(|| random.values([o], 1.0, dtype)),
            dy: random.values([t, o], 1.0, dtype),
            residual: random.values([t, o], 1.0, dtype),
        }
    }

    fn exact(&self) -> Tensors<Exact> {
        Tensors {
            x: self.x.exact(),
            weight: self.weight.exact(),
            bias: self.bias.as_ref().map(Values::exact),
            dy: self.dy.exact(),
            residual: self.residual.exact(),
        }
    }

    fn cube(&self) -> Tensors<Cube> {
        Tensors {
            x: self.x.cube(),
            weight: self.weight.cube(),
            bias: self.bias.as_ref().map(Values::cube),
            dy: self.dy.cube(),
            residual: self.residual.cube(),
        }
    }

    /// As [`Case::cube`], each a slice along its rows.
    fn sliced(&self) -> Tensors<Cube> {
        Tensors {
            x: self.x.sliced(),
            weight: self.weight.sliced(),
            bias: self.bias.as_ref().map(Values::sliced),
            dy: self.dy.sliced(),
            residual: self.residual.sliced(),
        }
    }

    /// As [`Case::cube`], but each tensor is the transpose of its memory, or begins one row later in it.
    fn turned(&self) -> Tensors<Cube> {
        let turn = |it: &Values<2>| {
            let [rows, columns] = it.cube().dims();
            let turned = it.cube().transpose().reshape([rows * columns]);
            turned.reshape([columns, rows]).transpose()
        };
        let after_a_row = |it: &Values<2>| {
            let [rows, _] = it.cube().dims();
            let row = it.cube().narrow(0, 0, 1);
            Tensor::cat(vec![row, it.cube()], 0).narrow(0, 1, rows)
        };
        Tensors {
            x: turn(&self.x),
            weight: after_a_row(&self.weight),
            bias: self.bias.as_ref().map(Values::cube),
            dy: turn(&self.dy),
            residual: turn(&self.residual),
        }
    }
}

/// By the reference.
fn expected(case: &Case) -> Outputs {
    let Tensors {
        x,
        weight,
        bias,
        dy,
        residual,
    } = case.exact();
    let y = reference::forward(x.clone(), weight.clone(), bias);
    let (dx, dweight, dbias) = reference::backward(x, weight, dy, [true; 3]);
    vec![
        output("y", y.clone()),
        output("gelu", gelu_new(y.clone())),
        output("onto", residual.clone() + y.clone()),
        output("onto in place", residual + y),
        output("dx", dx.expect("wanted")),
        output("dweight", dweight.expect("wanted")),
        output("dbias", dbias.expect("wanted")),
    ]
}

fn actual(tensors: Tensors<Cube>) -> Outputs {
    let Tensors {
        x,
        weight,
        bias,
        dy,
        residual,
    } = tensors;
    let y = linear(x.clone(), weight.clone(), bias.clone());
    let gelu = linear_gelu(x.clone(), weight.clone(), bias.clone());
    let onto = linear_onto(residual.clone(), x.clone(), weight.clone(), bias.clone());
    // Nothing else holds this residual, so the output may take its memory.
    let lone = residual + 0.0;
    let in_place = linear_onto(lone, x.clone(), weight.clone(), bias);
    let all = Cube::linear_backward(x.clone(), weight.clone(), dy.clone(), [true; 3]);
    for alone in 0..3 {
        let wanted = [0, 1, 2].map(|i| i == alone);
        let (dx, dweight, dbias) =
            Cube::linear_backward(x.clone(), weight.clone(), dy.clone(), wanted);
        let got = [dx.is_some(), dweight.is_some(), dbias.is_some()];
        assert_eq!(got, wanted, "what was asked for and nothing else");
    }
    vec![
        output("y", y),
        output("gelu", gelu),
        output("onto", onto),
        output("onto in place", in_place),
        output("dx", all.0.expect("wanted")),
        output("dweight", all.1.expect("wanted")),
        output("dbias", all.2.expect("wanted")),
    ]
}

fn check_case(sizes: [usize; 3], dtype: DType, random: &mut Random) {
    let case = Case::new(sizes, dtype, random);
    let [t, i, o] = sizes;
    let name = format!("t{t} i{i} o{o}, bias {}, {dtype:?}", case.bias.is_some());
    let exact = expected(&case);
    check(&name, tolerance(dtype), exact, || actual(case.cube()));
}

/// One at a time: a failure on the device is returned to the first caller that asks.
static TURN: Mutex<()> = Mutex::new(());

fn in_turn(test: impl FnOnce()) {
    with_device(|| {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        test();
        synchronise::<Cube>(&Default::default()).expect("nothing that was queued has failed");
    });
}

#[test]
fn layers_and_gradients_are_right() {
    in_turn(|| {
        for dtype in dtypes() {
            let mut random = Random::new(5);
            let sizes = [
                [1, 1, 1],
                [1, 64, 128],
                [3, 5, 7],
                [129, 48, 72],
                [33, 128, 65],
            ];
            for sizes in sizes {
                check_case(sizes, dtype, &mut random);
            }
        }
    });
}

/// Burn's tuned kernels are wrong at some of these; each is contracted in one of the products.
#[test]
fn every_contracted_size_is_right() {
    in_turn(|| {
        for dtype in dtypes() {
            let mut random = Random::new(6);
            for k in [1, 32, 64, 96, 160, 192, 2080] {
                check_case([k, 64, 48], dtype, &mut random);
                check_case([40, k, 48], dtype, &mut random);
                check_case([40, 64, k], dtype, &mut random);
            }
        }
    });
}

#[test]
fn slices_and_transposes_are_read_where_they_lie() {
    in_turn(|| {
        for dtype in dtypes() {
            let mut random = Random::new(7);
            for sizes in [[24, 64, 40], [17, 33, 31], [1, 48, 9]] {
                let case = Case::new(sizes, dtype, &mut random);
                let exact = expected(&case);
                let name = format!("slices of {sizes:?}, {dtype:?}");
                check(&name, tolerance(dtype), exact, || actual(case.sliced()));
                let exact = expected(&case);
                let name = format!("transposes of {sizes:?}, {dtype:?}");
                check(&name, tolerance(dtype), exact, || actual(case.turned()));
            }
        }
    });
}

#[test]
fn random_layers_are_right() {
    in_turn(|| {
        for mut random in random_cases().step_by(4) {
            let dtype = random.of(&dtypes());
            let mut size = || random.size(1, 200);
            let sizes = [size(), size(), size()];
            check_case(sizes, dtype, &mut random);
        }
    });
}

#[test]
fn a_residual_that_is_held_is_left_alone() {
    in_turn(|| {
        for dtype in dtypes() {
            let case = Case::new([20, 32, 24], dtype, &mut Random::new(8));
            let Tensors {
                x,
                weight,
                bias,
                residual,
                ..
            } = case.cube();
            let before = residual.to_data();
            let sum = linear_onto(residual.clone(), x, weight, bias);
            assert_ne!(sum.into_data(), before);
            assert_eq!(residual.into_data(), before, "{dtype:?}");
        }
    });
}

/// Work that is queued before a product is complete when the product begins, and work that is queued after it sees its
/// result. A long chain of additions makes the input; the output is read and overwritten at once, in memory that the
/// next round uses again.
#[test]
fn products_come_in_order() {
    in_turn(|| {
        let device = Default::default();
        let long = if cfg!(feature = "cuda") {
            1 << 24
        } else {
            1 << 12
        };
        let rounds = if cfg!(feature = "cuda") { 200 } else { 5 };
        let (t, d) = (64, long / 64);
        let o = 16;
        let weight = Tensor::<Cube, 2>::ones([o, d], &device) / d as f32;
        for round in 0..rounds {
            let mut x = Tensor::<Cube, 2>::full([t, d], round as f32, &device);
            for _ in 0..20 {
                x = x + 1.0;
            }
            let y = linear(x.clone(), weight.clone(), None);
            // Over the input, if it were not still to be read; a power of two, whose sums are exact.
            let x = x * 0.0 - 4096.0;
            let twice = y.clone() + y;
            let again = linear_onto(twice, x.clone(), weight.clone(), None);
            drop(x);
            let noise = Tensor::<Cube, 2>::full([t, d], f32::NAN, &device);
            drop(noise);
            let got = (again + 4096.0).into_data();
            let exact = 2.0 * (round as f32 + 20.0);
            for value in got.iter::<f32>() {
                assert!(
                    (value - exact).abs() < 1.0,
                    "round {round}: {value}, not {exact}"
                );
            }
        }
    });
}
