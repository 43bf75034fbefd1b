//! Causal attention of whole passes.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::dense::attention::{Attention, Gradients, reference};
use kernels::{Window, attention};

use crate::support::*;

struct Case {
    b: usize,
    /// Queries and positions.
    l: usize,
    t: usize,
    h: usize,
    g: usize,
    p: usize,
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
            range: random.of(&[0.5, 2.0, 30.0]),
            sliced: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let &Self {
            b,
            l,
            t,
            h,
            g,
            p,
            range,
            sliced,
            dtype,
        } = self;
        let q = random.values([b, l, h, p], range, dtype);
        let k = random.values([b, t, g, p], range, dtype);
        let v = random.values([b, t, g, p], 1.0, dtype);
        let exact = reference::forward(q.exact(), k.exact(), v.exact());
        let exact = vec![output("y", exact)];
        let read = |values: &Values<4>| {
            if sliced {
                values.sliced()
            } else {
                values.cube()
            }
        };
        let run = || {
            let (q, k, v) = (read(&q), read(&k), read(&v));
            poison();
            let y = attention(q, k, v);
            assert_eq!(y.dtype(), dtype);
            vec![output("y", y)]
        };
        let name = format!(
            "attention b{b} l{l} t{t} h{h} g{g} p{p}, range {range}, sliced {sliced}, {dtype:?}"
        );
        // Scores of thousands are off by 1e-4 in f32, and so are their exponentials.
        let tolerance = match dtype {
            DType::F32 if range > 10.0 => 3e-4,
            _ => tolerance(dtype),
        };
        check(&name, tolerance, exact, run);
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
                for p in [16, 32, 64, 80] {
                    let (b, h, g) = [(2, 4, 2), (1, 3, 1), (2, 2, 2)][i % 3];
                    let case = Case {
                        b,
                        l,
                        t,
                        h,
                        g,
                        p,
                        range: if p == 32 { 30.0 } else { 2.0 },
                        sliced: p == 64,
                        dtype,
                    };
                    case.check(&mut Random::new((l + t + p) as u64));
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

/// The backward pass is in tensor operations, which only hybrids train through.
#[test]
fn the_gradients_of_attention_are_right() {
    with_device(|| {
        // On CUDA Burn's products round f32 to TF32, which keeps 11 bits.
        let exactness = if cfg!(feature = "cuda") { 2e-3 } else { 2e-6 };
        for (b, l, h, g, p) in [(2, 33, 4, 2, 16), (1, 70, 2, 2, 32), (3, 1, 2, 1, 8)] {
            let mut random = Random::new((l + p) as u64);
            let mut values = |h| random.values([b, l, h, p], 1.0, DType::F32);
            let (q, k, v, dy) = (values(h), values(g), values(g), values(h));
            let exact = reference::backward(q.exact(), k.exact(), v.exact(), dy.exact());
            let name = format!("attention's gradients, b{b} l{l} h{h} g{g} p{p}");
            check(&name, exactness, gradients(exact), || {
                let (q, k, v) = (q.cube(), k.sliced(), v.sliced());
                gradients(Cube::attention_backward(q, k, v, dy.cube()))
            });
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
                let exact = reference::forward(q.exact(), k.exact(), v.exact());
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

/// The window's attention, by tensor operations here too: forward and backward, of whole sequences and of their last
/// tokens.
#[test]
fn windowed_attention_is_right() {
    with_device(|| {
        // As of the gradients above.
        let exactness = if cfg!(feature = "cuda") { 2e-3 } else { 2e-6 };
        for dtype in dtypes() {
            for (l, t, window, sinks) in [(90, 90, 8, 2), (200, 200, 70, 4), (33, 130, 40, 0)] {
                let window = Window { window, sinks };
                let [b, h, g, p] = [2, 4, 2, 16];
                let mut random = Random::new(l as u64);
                let q = random.values([b, l, h, p], 2.0, dtype);
                let k = random.values([b, t, g, p], 2.0, dtype);
                let v = random.values([b, t, g, p], 1.0, dtype);
                let dy = random.values([b, l, h, p], 1.0, dtype);
                let exact = windowed([&q, &k, &v, &dy].map(Values::exact), window);
                let run = || windowed([&q, &k, &v, &dy].map(Values::cube), window);
                let name = format!("attention l{l} t{t} within {window:?}, {dtype:?}");
                check(&name, tolerance(dtype).max(exactness), exact, run);
            }
        }
    });
}

fn windowed<B: Attention>([q, k, v, dy]: [Tensor<B, 4>; 4], window: Window) -> Outputs {
    let y = B::windowed_attention_forward(q.clone(), k.clone(), v.clone(), window);
    let (dq, dk, dv) = B::windowed_attention_backward(q, k, v, dy, window);
    let named = [("y", y), ("dq", dq), ("dk", dk), ("dv", dv)];
    named.into_iter().map(|(name, x)| output(name, x)).collect()
}
