//! How each op's analytic backward pass is registered with Burn's autodiff.
//!
//! Burn 0.21 gives a custom op one differentiable output, any number of inputs, and no nested
//! backward pass. So each op's `autodiff.rs` saves what the backward pass needs and calls [`record`]; the
//! backward pass itself is written out by hand in the op's `reference.rs`, and again, faster, where a
//! backend has its own kernel.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

/// Returns the value of `x` as a tensor of the inner backend, without its graph.
pub(crate) fn value<B: Backend, C: CheckpointStrategy, const D: usize>(
    x: &Tensor<Autodiff<B, C>, D>,
) -> Tensor<B, D> {
    x.clone().inner()
}

/// [`value`] of an optional tensor.
pub(crate) fn values<B: Backend, C: CheckpointStrategy, const D: usize>(
    x: &Option<Tensor<Autodiff<B, C>, D>>,
) -> Option<Tensor<B, D>> {
    x.as_ref().map(value)
}

/// The primitive of `x`, as the gradients of [`record`] are given.
pub(crate) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// The autodiff tensor behind `x`, as [`record`] takes it.
pub(crate) fn input<B: Backend, C: CheckpointStrategy, const D: usize>(
    x: &Tensor<Autodiff<B, C>, D>,
) -> Option<FloatTensor<Autodiff<B, C>>> {
    Some(x.clone().into_primitive().tensor())
}

/// [`input`] of an optional tensor: `None` where it is absent.
pub(crate) fn optional<B: Backend, C: CheckpointStrategy, const D: usize>(
    x: &Option<Tensor<Autodiff<B, C>, D>>,
) -> Option<FloatTensor<Autodiff<B, C>>> {
    x.as_ref().and_then(input)
}

/// A backward pass. It gets the saved state, the gradient of the output, and for each input whether it needs a
/// gradient; it returns the gradients of the inputs.
pub(crate) type BackwardFn<B, S, const N: usize, const D: usize> =
    fn(S, Tensor<B, D>, [bool; N]) -> [Option<FloatTensor<B>>; N];

struct Analytic<B: Backend, S, const N: usize, const D: usize>(BackwardFn<B, S, N, D>);

impl<B: Backend, S, const N: usize, const D: usize> std::fmt::Debug for Analytic<B, S, N, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Analytic")
    }
}

impl<B, S, const N: usize, const D: usize> Backward<B, N> for Analytic<B, S, N, D>
where
    B: Backend,
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
pub(crate) fn record<B, C, S, const N: usize, const D: usize>(
    inputs: [Option<FloatTensor<Autodiff<B, C>>>; N],
    output: Tensor<B, D>,
    saved: S,
    backward: BackwardFn<B, S, N, D>,
) -> Tensor<Autodiff<B, C>, D>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    let output = primitive(output);
    // An absent optional input is a constant: a fresh node that asks for no gradient.
    let nodes = inputs.each_ref().map(|x| match x {
        Some(x) => x.node.clone(),
        None => Autodiff::<B, C>::from_inner(output.clone()).node,
    });
    let prepared = Analytic(backward).prepare::<C>(nodes).compute_bound();
    let tracked = match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    // The inputs must live until here. After a backward pass, each thread removes from the graphs of all threads
    // every node that no tensor holds (burn-autodiff 0.21, `cleanup_orphaned_entries`). If an input were dropped
    // before its output is on the graph, its node could be removed in between, and the gradient would silently stop
    // there.
    drop(inputs);
    Tensor::from_primitive(TensorPrimitive::Float(tracked))
}
