//! How each op's analytic backward pass is registered with Burn's autodiff.
//!
//! Burn 0.21 gives a custom op one differentiable output, any number of inputs, and no nested
//! backward pass, so every op here saves what its backward needs, and the backward is written out
//! by hand in the op's `reference.rs` (and again, faster, where a backend has its own kernel).

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorPrimitive};

use crate::conv::Activation;
use crate::meter::{Kind, timed};
use crate::{AttentionParts, DistillationWeights, TransferParts};
use crate::{Epilogue, GatedScan, KernelBackend, ScanInputs};

/// A tensor of the inner backend: the value without its graph.
fn value<B: KernelBackend, C: CheckpointStrategy, const D: usize>(
    x: &Tensor<Autodiff<B, C>, D>,
) -> Tensor<B, D> {
    x.clone().inner()
}

fn values<B: KernelBackend, C: CheckpointStrategy, const D: usize>(
    x: &Option<Tensor<Autodiff<B, C>, D>>,
) -> Option<Tensor<B, D>> {
    x.as_ref().map(value)
}

fn primitive<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// The autodiff tensor behind `x`, or `None` for an optional input that is absent.
fn input<B: KernelBackend, C: CheckpointStrategy, const D: usize>(
    x: &Tensor<Autodiff<B, C>, D>,
) -> Option<FloatTensor<Autodiff<B, C>>> {
    Some(x.clone().into_primitive().tensor())
}

/// From what was saved, the output's gradient and which inputs want one: the inputs' gradients.
type BackwardFn<B, S, const N: usize, const D: usize> =
    fn(S, Tensor<B, D>, [bool; N]) -> [Option<FloatTensor<B>>; N];

struct Analytic<B: KernelBackend, S, const N: usize, const D: usize>(BackwardFn<B, S, N, D>);

impl<B: KernelBackend, S, const N: usize, const D: usize> std::fmt::Debug for Analytic<B, S, N, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Analytic")
    }
}

impl<B, S, const N: usize, const D: usize> Backward<B, N> for Analytic<B, S, N, D>
where
    B: KernelBackend,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Tensor::from_primitive(TensorPrimitive::Float(grads.consume::<B>(&ops.node)));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = (self.0)(ops.state, dy, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Puts `output` on the graph as a function of `inputs`, with `backward` to go back.
fn record<B, C, S, const N: usize, const D: usize>(
    inputs: [Option<FloatTensor<Autodiff<B, C>>>; N],
    output: Tensor<B, D>,
    saved: S,
    backward: BackwardFn<B, S, N, D>,
) -> Tensor<Autodiff<B, C>, D>
where
    B: KernelBackend,
    C: CheckpointStrategy,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let output = primitive(output);
    // An absent optional input is a constant: a fresh node that asks for no gradient.
    let nodes = inputs.map(|x| match x {
        Some(x) => x.node,
        None => Autodiff::<B, C>::from_inner(output.clone()).node,
    });
    let prepared = Analytic(backward).prepare::<C>(nodes).compute_bound();
    let tracked = match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive(TensorPrimitive::Float(tracked))
}

impl<B: KernelBackend, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn lanes() -> usize {
        B::lanes()
    }

    fn queues() -> bool {
        B::queues()
    }

    fn holds(device: &Self::Device, dtype: DType) -> bool {
        B::holds(device, dtype)
    }

    #[cfg(any(
        feature = "cuda",
        feature = "wgpu",
        feature = "flex",
        feature = "ndarray"
    ))]
    fn memory(device: &Self::Device) -> Option<crate::devices::Memory> {
        B::memory(device)
    }

    fn linear_forward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&weight));
        let y = B::linear_forward(saved.0.clone(), saved.1.clone(), values(&bias));
        let inputs = [input(&x), input(&weight), bias.as_ref().and_then(input)];
        record(inputs, y, saved, |(x, weight), dy, wanted| {
            let (dx, dweight, dbias) =
                timed(Kind::Products, || B::linear_backward(x, weight, dy, wanted));
            [
                dx.map(primitive),
                dweight.map(primitive),
                dbias.map(primitive),
            ]
        })
    }

    fn linear_onto(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&weight));
        let (x_, weight_) = saved.clone();
        let y = B::linear_onto(value(&residual), x_, weight_, values(&bias));
        let inputs = [
            input(&residual),
            input(&x),
            input(&weight),
            bias.as_ref().and_then(input),
        ];
        record(inputs, y, saved, |(x, weight), dy, wanted| {
            let [onto, wanted @ ..] = wanted;
            let dresidual = onto.then(|| dy.clone());
            let (dx, dweight, dbias) =
                timed(Kind::Products, || B::linear_backward(x, weight, dy, wanted));
            [
                dresidual.map(primitive),
                dx.map(primitive),
                dweight.map(primitive),
                dbias.map(primitive),
            ]
        })
    }

    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&gamma), epsilon);
        let y = B::layer_norm_forward(saved.0.clone(), saved.1.clone(), value(&beta), epsilon);
        let inputs = [input(&x), input(&gamma), input(&beta)];
        record(inputs, y, saved, |(x, gamma, epsilon), dy, wanted| {
            let (dx, dgamma, dbeta) = timed(Kind::Elementwise, || {
                B::layer_norm_backward(x, gamma, dy, epsilon, wanted)
            });
            [
                dx.map(primitive),
                dgamma.map(primitive),
                dbeta.map(primitive),
            ]
        })
    }

    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let saved = value(&x);
        let y = B::gelu_new_forward(saved.clone());
        record([input(&x)], y, saved, |x, dy, _| {
            [Some(primitive(timed(Kind::Elementwise, || {
                B::gelu_new_backward(x, dy)
            })))]
        })
    }

    fn gated_skip_forward(
        y: Tensor<Self, 4>,
        x: Tensor<Self, 4>,
        d: Tensor<Self, 1>,
        z: Tensor<Self, 3>,
        z_bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 3> {
        let saved = (value(&y), value(&x), value(&d), value(&z), values(&z_bias));
        let (y_, x_, d_, z_, z_bias_) = saved.clone();
        let output = B::gated_skip_forward(y_, x_, d_, z_, z_bias_);
        let inputs = [
            input(&y),
            input(&x),
            input(&d),
            input(&z),
            z_bias.as_ref().and_then(input),
        ];
        record(inputs, output, saved, |(y, x, d, z, z_bias), dout, _| {
            let g = timed(Kind::Elementwise, || {
                B::gated_skip_backward(y, x, d, z, z_bias, dout)
            });
            [
                Some(primitive(g.y)),
                Some(primitive(g.x)),
                Some(primitive(g.d)),
                Some(primitive(g.z)),
                Some(primitive(g.z_bias)),
            ]
        })
    }

    fn causal_conv_forward(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        history: Option<Tensor<Self, 3>>,
        activation: Activation,
    ) -> Tensor<Self, 3> {
        let saved = (
            value(&x),
            value(&weight),
            values(&bias),
            values(&history),
            activation,
        );
        let (x_, weight_, bias_, history_, _) = saved.clone();
        let y = B::causal_conv_forward(x_, weight_, bias_, history_, activation);
        let inputs = [
            input(&x),
            input(&weight),
            bias.as_ref().and_then(input),
            history.as_ref().and_then(input),
        ];
        record(inputs, y, saved, |saved, dy, wanted| {
            let (x, weight, bias, history, activation) = saved;
            let g = timed(Kind::Convolution, || {
                B::causal_conv_backward(x, weight, bias, history, activation, dy, wanted)
            });
            [
                g.x.map(primitive),
                g.weight.map(primitive),
                g.bias.map(primitive),
                g.history.map(primitive),
            ]
        })
    }

    fn ssd_scan_forward(
        x: Tensor<Self, 4>,
        a_log: Tensor<Self, 3>,
        b: Tensor<Self, 4>,
        c: Tensor<Self, 4>,
        initial_state: Option<Tensor<Self, 4>>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let saved = (
            [value(&x), value(&b), value(&c)],
            value(&a_log),
            values(&initial_state),
            chunk,
        );
        let [x_, b_, c_] = saved.0.clone();
        let (y, state) = B::ssd_scan_forward(x_, saved.1.clone(), b_, c_, saved.2.clone(), chunk);
        let inputs = [
            input(&x),
            input(&a_log),
            input(&b),
            input(&c),
            initial_state.as_ref().and_then(input),
        ];
        let y = record(
            inputs,
            y,
            saved,
            |([x, b, c], a_log, initial_state, chunk), dy, _| {
                let g = timed(Kind::Scan, || {
                    B::ssd_scan_backward(x, a_log, b, c, initial_state, dy, chunk)
                });
                [
                    Some(primitive(g.x)),
                    Some(primitive(g.a_log)),
                    Some(primitive(g.b)),
                    Some(primitive(g.c)),
                    Some(primitive(g.initial_state)),
                ]
            },
        );
        (y, Tensor::from_inner(state))
    }

    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        chunk: usize,
    ) -> GatedScan<Self> {
        let inputs = [
            input(&scan.x),
            input(&scan.a_log),
            input(&scan.b),
            input(&scan.c),
            scan.initial_state.as_ref().and_then(input),
            epilogue.d.as_ref().and_then(input),
            epilogue.z.as_ref().and_then(input),
            epilogue.z_bias.as_ref().and_then(input),
        ];
        let scan = ScanInputs {
            x: scan.x.inner(),
            a_log: scan.a_log.inner(),
            b: scan.b.inner(),
            c: scan.c.inner(),
            initial_state: scan.initial_state.map(Tensor::inner),
        };
        let epilogue = Epilogue {
            d: epilogue.d.map(Tensor::inner),
            z: epilogue.z.map(Tensor::inner),
            z_bias: epilogue.z_bias.map(Tensor::inner),
        };
        let GatedScan { out, state, y } =
            B::gated_scan_forward(scan.clone(), epilogue.clone(), chunk);
        let saved = (scan, epilogue, y, chunk);
        let out = record(inputs, out, saved, |(scan, epilogue, y, chunk), dout, _| {
            let g = timed(Kind::Scan, || {
                B::gated_scan_backward(scan, epilogue, y, dout, chunk)
            });
            [
                Some(primitive(g.scan.x)),
                Some(primitive(g.scan.a_log)),
                Some(primitive(g.scan.b)),
                Some(primitive(g.scan.c)),
                Some(primitive(g.scan.initial_state)),
                g.d.map(primitive),
                g.z.map(primitive),
                g.z_bias.map(primitive),
            ]
        });
        GatedScan {
            out,
            state: Tensor::from_inner(state),
            // It is on this node, and not the caller's.
            y: None,
        }
    }

    fn distillation_loss_forward(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
    ) -> Tensor<Self, 1> {
        let labels = labels.map(Tensor::inner);
        let (loss, gradient) =
            B::distillation_loss_with_gradient(value(&student), value(&teacher), labels, weights);
        // The teacher is a constant of the loss: only the student's logits are an input.
        record([input(&student)], loss, gradient, |gradient, dloss, _| {
            [Some(primitive(B::scaled(gradient, dloss)))]
        })
    }

    fn with_gradient<const D: usize>(y: Tensor<Self, D>, dy: Tensor<Self, D>) -> Tensor<Self, 1> {
        let dy = dy.inner();
        let nothing = Tensor::<B, 1>::zeros([1], (&dy.device(), dy.dtype()));
        record([input(&y)], nothing, dy, |dy, _, _| [Some(primitive(dy))])
    }

    fn distillation_block(
        student: Tensor<Self, 2>,
        teacher: Tensor<Self, 2>,
        labels: Option<Tensor<Self, 1, Int>>,
        weights: DistillationWeights,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let (student, teacher, labels) =
            (student.inner(), teacher.inner(), labels.map(Tensor::inner));
        let (loss, gradient) = B::distillation_block(student, teacher, labels, weights, tokens);
        (Tensor::from_inner(loss), Tensor::from_inner(gradient))
    }

    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let (loss, gradient) = B::rows_distance_with_gradient(value(&a), value(&b));
        record([input(&a)], loss, gradient, |gradient, dloss, _| {
            [Some(primitive(B::scaled(gradient, dloss)))]
        })
    }

    fn embedding_forward(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        let saved = (ids.inner(), table.dims()[0]);
        let y = B::embedding_forward(value(&table), saved.0.clone());
        record([input(&table)], y, saved, |(ids, v), dy, _| {
            let gradient = timed(Kind::Embedding, || B::embedding_gradient(ids, dy, v));
            [Some(primitive(gradient))]
        })
    }

    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        let saved = (value(&cos), value(&sin));
        let y = B::rotary_forward(value(&x), saved.0.clone(), saved.1.clone());
        record([input(&x)], y, saved, |(cos, sin), dy, _| {
            let dx = timed(Kind::Elementwise, || B::rotary_forward(dy, cos, -sin));
            [Some(primitive(dx))]
        })
    }

    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        let saved = [value(&q), value(&k), value(&v)];
        let [q_, k_, v_] = saved.clone();
        let y = B::attention_forward(q_, k_, v_);
        let inputs = [input(&q), input(&k), input(&v)];
        record(inputs, y, saved, |[q, k, v], dy, _| {
            let (dq, dk, dv) = timed(Kind::Attention, || B::attention_backward(q, k, v, dy));
            [dq, dk, dv].map(|gradient| Some(primitive(gradient)))
        })
    }

    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        let inputs = [
            input(&student.a_log),
            input(&student.b),
            input(&student.c),
            input(&student.d),
        ];
        let student = TransferParts {
            a_log: student.a_log.inner(),
            b: student.b.inner(),
            c: student.c.inner(),
            d: student.d.inner(),
        };
        let teacher = AttentionParts {
            q: teacher.q.inner(),
            k: teacher.k.inner(),
        };
        let (loss, gradients) = B::mixing_distance_with_gradients(student, teacher);
        record(inputs, loss, gradients, |gradients, dloss, _| {
            let a_log = B::scaled(gradients.a_log, dloss.clone());
            let b = B::scaled(gradients.b, dloss.clone());
            let c = B::scaled(gradients.c, dloss.clone());
            let d = B::scaled(gradients.d, dloss);
            [
                Some(primitive(a_log)),
                Some(primitive(b)),
                Some(primitive(c)),
                Some(primitive(d)),
            ]
        })
    }
}
