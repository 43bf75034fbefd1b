//! On slices: time steps in blocks, channels side by side in vectors.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{Activation, CausalConv, ConvGradients, ConvInputs, reference};
use crate::flex::math::{sigmoid, vectorised};
use crate::flex::products::{add_up, column_sums};
use crate::flex::{Values, is_f32, rows_per_task, starts, tensor};

impl CausalConv for Flex {
    fn causal_conv_forward(inputs: ConvInputs<Self>) -> Tensor<Self, 3> {
        if fits(&inputs) {
            forward(inputs)
        } else {
            reference::forward(inputs)
        }
    }

    fn causal_conv_backward(
        inputs: ConvInputs<Self>,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        // Where a model trains there is no history.
        if !fits(&inputs) || !is_f32(&dy) || inputs.history.is_some() {
            return reference::backward(inputs, dy, wanted);
        }
        let dy = match inputs.activation {
            Activation::Identity => dy,
            Activation::Silu => {
                let sums = forward(ConvInputs {
                    activation: Activation::Identity,
                    ..inputs.clone()
                });
                reference::through_silu(sums, dy)
            }
        };
        backward(inputs, dy, wanted)
    }
}

fn fits(inputs: &ConvInputs<Flex>) -> bool {
    is_f32(&inputs.x)
        && is_f32(&inputs.weight)
        && inputs.bias.iter().all(is_f32)
        && inputs.history.iter().all(is_f32)
}

/// `[c, w]` to `[w, c]`, so that a tap's channels are neighbours.
fn taps(weight: Tensor<Flex, 2>) -> Vec<f32> {
    let [c, w] = weight.dims();
    let weight = Values::of(weight);
    (0..w * c).map(|i| weight[i % c * w + i / c]).collect()
}

fn forward(inputs: ConvInputs<Flex>) -> Tensor<Flex, 3> {
    let ConvInputs {
        x,
        weight,
        bias,
        history,
        activation,
        documents,
    } = inputs;
    let [b, l, c] = x.dims();
    let [_, w] = weight.dims();
    let taps = taps(weight);
    let x = Values::of(x);
    let history = history.filter(|_| w > 1).map(Values::of);
    let starts = starts(documents);
    let mut y = match bias {
        Some(bias) => Values::of(bias).repeat(b * l),
        None => vec![0.0; b * l * c],
    };
    y.par_chunks_mut(c)
        .enumerate()
        .with_min_len(rows_per_task(c))
        .for_each(|(token, y)| {
            let (batch, t) = (token / l, token % l);
            let start = starts.as_ref().map_or(0, |starts| starts[token]);
            vectorised(
                #[inline(always)]
                || {
                    for k in 0..w {
                        // The input k taps into the window that ends at t, counted from the history.
                        let at = t + k;
                        if start > 0 && at < start + (w - 1) {
                            continue;
                        }
                        let input = match at.checked_sub(w - 1) {
                            Some(t) => &x[(batch * l + t) * c..][..c],
                            None => match &history {
                                Some(history) => &history[(batch * (w - 1) + at) * c..][..c],
                                None => continue,
                            },
                        };
                        let tap = &taps[k * c..][..c];
                        for i in 0..c {
                            y[i] += tap[i] * input[i];
                        }
                    }
                    if activation == Activation::Silu {
                        for y in &mut *y {
                            *y *= sigmoid(*y);
                        }
                    }
                },
            )
        });
    tensor(y, [b, l, c])
}

/// Without a history or an activation.
fn backward(
    inputs: ConvInputs<Flex>,
    dy: Tensor<Flex, 3>,
    wanted: [bool; 4],
) -> ConvGradients<Flex> {
    let ConvInputs {
        x,
        weight,
        documents,
        ..
    } = inputs;
    let starts = starts(documents);
    let [b, l, c] = x.dims();
    let [_, w] = weight.dims();
    let taps = taps(weight);
    let (x, dy) = (Values::of(x), Values::of(dy));
    let mut dx = vec![0.0; b * l * c];
    let rows = rows_per_task(c).min(l);
    let blocks: Vec<Vec<f32>> = dx
        .par_chunks_mut(rows * c)
        .enumerate()
        .map(|(block, dx)| {
            let mut dtaps = vec![0.0; w * c];
            vectorised(
                #[inline(always)]
                || {
                    for (r, dx) in dx.chunks_exact_mut(c).enumerate() {
                        let token = block * rows + r;
                        let (batch, t) = (token / l, token % l);
                        for k in 0..w {
                            // This input met, through tap k, the output w - 1 - k steps later.
                            let later = t + (w - 1 - k);
                            if later >= l {
                                continue;
                            }
                            let start =
                                (starts.as_ref()).map_or(0, |starts| starts[batch * l + later]);
                            if t < start {
                                continue;
                            }
                            let dy = &dy[(batch * l + later) * c..][..c];
                            let x = &x[token * c..][..c];
                            let tap = &taps[k * c..][..c];
                            let dtap = &mut dtaps[k * c..][..c];
                            for i in 0..c {
                                dx[i] += tap[i] * dy[i];
                                dtap[i] += x[i] * dy[i];
                            }
                        }
                    }
                },
            );
            dtaps
        })
        .collect();
    let dtaps = add_up(blocks, w * c);
    let dweight = (0..c * w).map(|i| dtaps[i % w * c + i / w]).collect();
    ConvGradients {
        x: wanted[0].then(|| tensor(dx, [b, l, c])),
        weight: wanted[1].then(|| tensor(dweight, [c, w])),
        bias: wanted[2].then(|| tensor(column_sums(&dy, c), [c])),
        history: None,
    }
}
