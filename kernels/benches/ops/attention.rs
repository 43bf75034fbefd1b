//! Causal attention of whole passes, at the sizes of Phi-1.5 and of SmolLM2, and within a window.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::Window;
use kernels::dense::attention::reference;

use crate::clock::random;
use crate::table::{Bench, Row};

struct Shape {
    b: usize,
    /// Queries and positions.
    l: usize,
    t: usize,
    h: usize,
    g: usize,
    p: usize,
    window: Option<Window>,
}

impl Shape {
    fn whole([b, l, t, h, g, p]: [usize; 6]) -> Self {
        Self {
            b,
            l,
            t,
            h,
            g,
            p,
            window: None,
        }
    }

    fn windowed([b, l, h, g, p]: [usize; 5]) -> Self {
        Self {
            window: Some(Window {
                window: 64,
                sinks: 4,
            }),
            ..Self::whole([b, l, l, h, g, p])
        }
    }

    /// Pairs of a query and a key that it sees, of one head.
    fn scores(&self) -> usize {
        let most = self.window.map_or(self.t, Window::tokens);
        let first = self.t - self.l + 1;
        (first..=self.t).map(|keys| keys.min(most)).sum()
    }

    fn name(&self) -> String {
        let Self {
            b, l, t, h, g, p, ..
        } = self;
        let mut name = format!("b{b} l{l}");
        if l != t {
            name += &format!(" t{t}");
        }
        name += &format!(" h{h}");
        if g != h {
            name += &format!(" g{g}");
        }
        name += &format!(" p{p}");
        if let Some(Window { window, sinks }) = self.window {
            name += &format!(" within {window}+{sinks}");
        }
        name
    }
}

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("attention") {
        return;
    }
    let shapes = if bench.small {
        vec![
            Shape::whole([1, 256, 256, 3, 3, 64]),
            Shape::windowed([1, 512, 3, 1, 64]),
        ]
    } else {
        vec![
            Shape::whole([4, 2048, 2048, 32, 32, 64]),
            Shape::whole([1, 16384, 16384, 32, 32, 64]),
            Shape::whole([1, 512, 16384, 32, 32, 64]),
            Shape::whole([4, 2048, 2048, 16, 16, 128]),
            Shape::whole([16, 1024, 1024, 9, 3, 64]),
            Shape::windowed([16, 1024, 9, 3, 64]),
            Shape::windowed([4, 16384, 9, 3, 64]),
        ]
    };
    for &dtype in &bench.dtypes {
        for shape in &shapes {
            // In f32 a long sequence takes long.
            if dtype == DType::F32 && shape.scores() > 1 << 23 {
                continue;
            }
            row(bench, shape, dtype);
        }
    }
}

fn row<B: KernelBackend>(bench: &Bench<B>, shape: &Shape, dtype: DType) {
    let &Shape {
        b,
        l,
        t,
        h,
        g,
        p,
        window,
    } = shape;
    let q: Tensor<B, 4> = random([b, l, h, p], dtype);
    let k: Tensor<B, 4> = random([b, t, g, p], dtype);
    let v: Tensor<B, 4> = random([b, t, g, p], dtype);
    let dy: Tensor<B, 4> = random([b, l, h, p], dtype);
    let given = || (q.clone(), k.clone(), v.clone());
    let forward = bench.clock.time(|_| {
        let (q, k, v) = given();
        B::attention_forward(q, k, v, window.into())
    });
    let both = bench.clock.time(|_| {
        let (q, k, v) = given();
        let (_, saved) = B::attention_forward_saving(q, k, v, window.into());
        let (q, k, v) = given();
        B::attention_backward(q, k, v, saved, dy.clone(), window.into())
    });
    let composed = bench.small.then(|| {
        let forward = bench.clock.time(|_| {
            let (q, k, v) = given();
            reference::forward(q, k, v, window)
        });
        let both = bench.clock.time(|_| {
            let (q, k, v) = given();
            drop(reference::forward(q, k, v, window));
            let (q, k, v) = given();
            reference::backward(q, k, v, dy.clone(), window)
        });
        [forward, both]
    });
    bench.row(Row {
        op: "attention",
        shape: shape.name(),
        dtype,
        seconds: [Some(forward), Some(both)],
        // Queries, outputs and their gradients; keys, values and theirs, read twice.
        bytes: b * (6 * l * h + 6 * t * g) * p * dtype.size(),
        // Two products of the scores that there are with p each, and five backward.
        operations: 14 * b * h * p * shape.scores(),
        composed: [0, 1].map(|i| composed.map(|times| times[i])),
    });
}
