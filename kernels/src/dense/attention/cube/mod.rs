//! CubeCL kernels that hold only one tile of the attention weights at a time (arXiv 2307.08691). Forward (algorithm 1):
//! for each block of queries of a head, one cube goes over the keys and values that these queries see, and keeps the
//! running sums of the softmax. Backward (algorithm 2): the weights of a tile are computed again from its scores and
//! the logarithms of those sums, once for the gradients of the queries and once for those of the keys and values. Each
//! number of a gradient is summed by one cube, in a fixed order.

mod backward;
mod forward;
mod mma;
mod portable;
mod reach;
mod statistics;
mod variant;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::reach::{ReachLaunch, Rule};
use super::{Attention, Gradients, Saved, Visible, Window, reference};
use crate::cube::documents::{read, starts};
use crate::cube::{computes_in_f32, inner, tensor};

impl<R, F, I, T> Attention for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        if q.shape().num_elements() == 0 {
            // The output has its shape.
            q
        } else if computes_in_f32(q.dtype()) && read(&visible.documents) {
            let hides = (visible.window, starts(visible.documents));
            tensor(forward::forward(inner(q), inner(k), inner(v), hides, None))
        } else {
            reference::forward(q, k, v, visible)
        }
    }

    fn attention_forward_saving(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> (Tensor<Self, 4>, Option<Saved<Self>>) {
        let fits = computes_in_f32(q.dtype()) && read(&visible.documents);
        if q.shape().num_elements() == 0 || !fits {
            return (Self::attention_forward(q, k, v, visible), None);
        }
        let hides = (visible.window, starts(visible.documents));
        let (q, k, v) = (inner(q), inner(k), inner(v));
        let lse = forward::lse(&q);
        let y = forward::forward(q, k, v, hides, Some(lse.clone()));
        let (y, lse) = (tensor(y), tensor(lse));
        (y.clone(), Some(Saved { y, lse }))
    }

    fn attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        saved: Option<Saved<Self>>,
        dy: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Gradients<Self> {
        let Some(Saved { y, lse }) = saved else {
            return reference::backward(q, k, v, dy, visible);
        };
        let inputs = [inner(q), inner(k), inner(v)];
        let hides = (visible.window, starts(visible.documents));
        let [dq, dk, dv] = backward::backward(inputs, inner(y), inner(lse), inner(dy), hides);
        (tensor(dq), tensor(dk), tensor(dv))
    }
}

/// `window` for kernels that read `t` keys.
fn reach<R: CubeRuntime>(window: Option<Window>, t: usize) -> ReachLaunch<R> {
    let window = window.unwrap_or(Window {
        window: t,
        sinks: 0,
    });
    ReachLaunch::new(window.window.min(t), window.sinks.min(t))
}

/// What kernels are compiled for.
fn rule<R: CubeRuntime>(window: Option<Window>, starts: &Option<CubeTensor<R>>) -> Rule {
    Rule {
        windowed: window.is_some(),
        packed: starts.is_some(),
    }
}
