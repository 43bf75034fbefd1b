//! Causal attention of whole passes.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::dense::attention::{Attention, Gradients, reference};
use kernels::{Window, attention, attention_within};

use crate::support::*;

/// Windows shorter and longer than a tile, without sinks, with some, and with more than a tile of them.
const WINDOWS: [Option<Window>; 8] = [
    None,
    window(1, 0),
    window(1, 3),
    window(8, 2),
    window(40, 0),
    window(64, 4),
    window(70, 70),
    window(150, 4),
];

const fn window(window: usize, sinks: usize) -> Option<Window> {
    Some(Window { window, sinks })
}

struct Case {
    b: usize,
    /// Queries and positions.
    l: usize,
    t: usize,
    h: usize,
    g: usize,
    p: usize,
    window: Option<Window>,
    /// The range of queries and keys: at 30 a softmax without its maximum overflows.
    range: f64,
    /// Slices of something wider.
    sliced: bool,
    dtype: DType,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let (h, g) = random.of(&[(1, 1), (2, 1), (3, 3), (4, 2), (6, 3)]);
        let l = random.of(&[1, 2, 15, 16, 17, 48, 63, 64, 65, 127, 128, 129, 200, 300]);
        Self {
            b: random.size(1, 3),
            l,
            t: l + random.of(&[0, 0, 1, 47, 64, 100, 257]),
            h,
            g,
            p: random.of(&[2, 16, 33, 48, 64, 80, 96, 128]),
            window: random.of(&WINDOWS),
            range: random.of(&[0.5, 2.0, 30.0]),
            sliced: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn name(&self) -> String {
        let Self {
            b,
            l,
            t,
            h,
            g,
            p,
            window,
            range,
            sliced,
            dtype,
        } = self;
        format!(
            "attention b{b} l{l} t{t} h{h} g{g} p{p} within {window:?}, range {range}, sliced {sliced}, {dtype:?}"
        )
    }

    /// Queries, keys, values and the outputs' gradients.
    fn values(&self, random: &mut Random) -> [Values<4>; 4] {
        let &Self {
            b,
            l,
            t,
            h,
            g,
            p,
            range,
            dtype,
            ..
        } = self;
        [
            random.values([b, l, h, p], range, dtype),
            random.values([b, t, g, p], range, dtype),
            random.values([b, t, g, p], 1.0, dtype),
            random.values([b, l, h, p], 1.0, dtype),
        ]
    }

    fn read(&self, values: &Values<4>) -> Tensor<Cube, 4> {
        if self.sliced {
            values.sliced()
        } else {
            values.cube()
        }
    }

    fn check(&self, random: &mut Random) {
        let [q, k, v, _] = self.values(random);
        let exact = reference::forward(q.exact(), k.exact(), v.exact(), self.window);
        let exact = vec![output("y", exact)];
        let run = || {
            let [q, k, v] = [&q, &k, &v].map(|values| self.read(values));
            poison();
            let y = attention_within(q, k, v, self.window);
            assert_eq!(y.dtype(), self.dtype);
            vec![output("y", y)]
        };
        // Scores of thousands are off by 1e-4 in f32, and so are their exponentials.
        let tolerance = match self.dtype {
            DType::F32 if self.range > 10.0 => 3e-4,
            _ => tolerance(self.dtype),
        };
        check(&self.name(), tolerance, exact, run);
    }

    fn check_gradients(&self, random: &mut Random) {
        let values = self.values(random);
        let [q, k, v, dy] = values.each_ref().map(Values::exact);
        let y = reference::forward(q.clone(), k.clone(), v.clone(), self.window);
        let exact = self.outputs(y, reference::backward(q, k, v, dy, self.window));
        let run = || {
            let [q, k, v, dy] = values.each_ref().map(|values| self.read(values));
            poison();
            let (y, saved) =
                Cube::attention_forward_saving(q.clone(), k.clone(), v.clone(), self.window.into());
            assert!(saved.is_some(), "the kernels are not taken");
            poison();
            let gradients = Cube::attention_backward(q, k, v, saved, dy, self.window.into());
            assert_eq!(gradients.0.dtype(), self.dtype);
            self.outputs(y, gradients)
        };
        check(&self.name(), tolerance(self.dtype), exact, run);
    }

    fn outputs<B: Backend>(&self, y: Tensor<B, 4>, (dq, dk, dv): Gradients<B>) -> Outputs {
        if self.t > 1 && self.window != window(1, 0) {
            let named = [("y", y), ("dq", dq), ("dk", dk), ("dv", dv)];
            return named.map(|(name, x)| output(name, x)).into();
        }
        // Each query sees one key, whose weight does not change: the gradients to queries and keys are 0, but
        // the difference of two equal sums is not quite.
        let all = [dq, dk, dv.clone()].map(|x| x.flatten::<1>(0, 3));
        vec![
            output("y", y),
            output("dv", dv),
            output("all", Tensor::cat(all.into(), 0)),
        ]
    }
}

#[test]
fn attention_is_right() {
    with_device(|| {
        let sizes = [
            (1, 1),
            (1, 77),
            (5, 5),
            (64, 64),
            (65, 130),
            (200, 200),
            (130, 331),
        ];
        for dtype in dtypes() {
            for (i, (l, t)) in sizes.into_iter().enumerate() {
                for (j, p) in [16, 32, 64, 80].into_iter().enumerate() {
                    let (b, h, g) = [(2, 4, 2), (1, 3, 1), (2, 2, 2)][i % 3];
                    for window in [None, WINDOWS[(i + 2 * j) % 8]] {
                        let case = Case {
                            b,
                            l,
                            t,
                            h,
                            g,
                            p,
                            window,
                            range: if p == 32 { 30.0 } else { 2.0 },
                            sliced: p == 64,
                            dtype,
                        };
                        case.check(&mut Random::new((l + t + p) as u64));
                    }
                }
            }
        }
    });
}

#[test]
fn attention_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

#[test]
fn the_gradients_of_attention_are_right() {
    with_device(|| {
        // Each head dimension compiles kernels of its own.
        let sizes = [
            (64, 64, 16),
            (70, 70, 64),
            (200, 200, 64),
            (65, 130, 80),
            (130, 331, 128),
        ];
        for dtype in dtypes() {
            for (i, (l, t, p)) in sizes.into_iter().enumerate() {
                let (b, h, g) = [(2, 4, 2), (1, 3, 1), (2, 2, 2)][i % 3];
                for window in [None, WINDOWS[1 + 2 * i % 7]] {
                    let case = Case {
                        b,
                        l,
                        t,
                        h,
                        g,
                        p,
                        window,
                        range: 2.0,
                        sliced: p == 64,
                        dtype,
                    };
                    case.check_gradients(&mut Random::new((l + t + p) as u64));
                }
            }
        }
    });
}

#[test]
fn the_gradients_of_attention_are_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            let mut case = Case::random(&mut random);
            // If one weight of a softmax is almost 1, the gradients of its scores are small differences of larger
            // numbers.
            case.range = case.range.min(2.0);
            if case.dtype != DType::F32 {
                // With only a few queries, the gradients may by chance also be small compared with the rounding errors
                // of the outputs.
                case.l += 48;
                case.t += 48;
            }
            case.check_gradients(&mut random);
        }
    });
}

/// The values that the forward pass saves reach the backward pass on Burn's graph.
#[test]
fn the_gradients_on_the_graph_are_right() {
    with_device(|| {
        let dims = [2, 70, 2, 16];
        for window in [None, window(20, 3)] {
            let mut random = Random::new(3);
            let values = [0; 4].map(|_| random.values(dims, 1.0, DType::F32));
            let [q, k, v, dy] = values.each_ref().map(Values::exact);
            let exact = gradients(reference::backward(q, k, v, dy, window));
            let run = || {
                let [q, k, v, dy] = values
                    .each_ref()
                    .map(|values| Tensor::<Autodiff<Cube>, 4>::from_inner(values.cube()));
                let inputs = [q, k, v].map(Tensor::require_grad);
                let [q, k, v] = inputs.clone();
                let y = attention_within(q, k, v, window);
                let found = (y * dy).sum().backward();
                let [dq, dk, dv] = inputs.map(|input| input.grad(&found).expect("a gradient"));
                gradients((dq, dk, dv))
            };
            let name = format!("attention's gradients on the graph, within {window:?}");
            check(&name, tolerance(DType::F32), exact, run);
        }
    });
}

fn gradients<B: Backend>((dq, dk, dv): Gradients<B>) -> Outputs {
    vec![output("dq", dq), output("dk", dk), output("dv", dv)]
}

/// Scores that grow from key to key, so that every tile has a new maximum; and that fall, so that none has.
#[test]
fn the_maximum_may_move() {
    with_device(|| {
        for dtype in dtypes() {
            let (l, h, p) = (330, 1, 32);
            for slope in [1.0, -1.0] {
                let at = |i: usize| slope * (i / p) as f64;
                let values = |of: &dyn Fn(usize) -> f64| {
                    let values = (0..l * p).map(of).collect();
                    Values::new(values, [1, l, h, p], dtype)
                };
                let q = values(&|_| 1.0);
                // Of integers up to 330 the half precisions hold those that differ by two.
                let k = values(&|i| {
                    if i % p == 0 {
                        (at(i) / 2.0).floor() * 2.0
                    } else {
                        0.0
                    }
                });
                let v = values(&|i| ((i / p * 7 + i % p) % 11) as f64 - 5.0);
                let exact = reference::forward(q.exact(), k.exact(), v.exact(), None::<Window>);
                let name = format!("attention with slope {slope}, {dtype:?}");
                check(&name, tolerance(dtype), vec![output("y", exact)], || {
                    vec![output("y", attention(q.cube(), k.cube(), v.cube()))]
                });
            }
        }
    });
}

/// Keys after a query do not reach it, whatever they are.
#[test]
fn the_future_is_not_seen() {
    with_device(|| {
        for dtype in dtypes() {
            let mut random = Random::new(5);
            let (l, seen) = (150, 70);
            let mut values = || random.values([1, l, 2, 64], 1.0, dtype).cube();
            let (q, k, v) = (values(), values(), values());
            let other = |x: &Tensor<Cube, 4>| {
                let past = x.clone().narrow(1, 0, seen);
                let future = x.clone().narrow(1, seen, l - seen).mul_scalar(-100.0);
                Tensor::cat(vec![past, future], 1)
            };
            let y = attention(q.clone(), k.clone(), v.clone()).narrow(1, 0, seen);
            let z = attention(q, other(&k), other(&v)).narrow(1, 0, seen);
            let same = y.into_data().as_bytes() == z.into_data().as_bytes();
            assert!(same, "the future was seen in {dtype:?}");
        }
    });
}

/// Keys before the window do not affect a query either.
#[test]
fn what_lies_before_a_window_is_not_seen() {
    with_device(|| {
        for dtype in dtypes() {
            let mut random = Random::new(6);
            let (l, window, sinks) = (300, 40, 5);
            let (hidden, end) = (sinks, 100);
            let mut values = || random.values([1, l, 2, 64], 1.0, dtype).cube();
            let (q, k, v, dy) = (values(), values(), values(), values());
            let other = |x: &Tensor<Cube, 4>| {
                let first = x.clone().narrow(1, 0, hidden);
                let left = x.clone().narrow(1, hidden, end - hidden).mul_scalar(-100.0);
                let last = x.clone().narrow(1, end, l - end);
                Tensor::cat(vec![first, left, last], 1)
            };
            let last = |k: Tensor<Cube, 4>, v: Tensor<Cube, 4>| {
                let window = Some(Window { window, sinks });
                let (y, saved) =
                    Cube::attention_forward_saving(q.clone(), k.clone(), v.clone(), window.into());
                let (dq, _, _) =
                    Cube::attention_backward(q.clone(), k, v, saved, dy.clone(), window.into());
                let from = end + window.map_or(0, |window| window.window);
                [y, dq].map(|x| x.narrow(1, from, l - from).into_data())
            };
            let (one, two) = (last(k.clone(), v.clone()), last(other(&k), other(&v)));
            for (one, two) in one.into_iter().zip(two) {
                let same = one.as_bytes() == two.as_bytes();
                assert!(same, "what lies before the window was seen in {dtype:?}");
            }
        }
    });
}
