//! On slices, token by token.

use burn::tensor::Tensor;
use burn_flex::Flex;
use rayon::prelude::*;

use super::{SkipGate, SkipGateGradients, SkipGateInputs, reference};
use crate::flex::math::{sigmoid, vectorised};
use crate::flex::products::add_up;
use crate::flex::{Values, is_f32, rows_per_task, tensor};

impl SkipGate for Flex {
    fn skip_gate_forward(inputs: SkipGateInputs<Self>) -> Tensor<Self, 3> {
        if fits(&inputs) {
            forward(inputs)
        } else {
            reference::forward(inputs)
        }
    }

    fn skip_gate_backward(
        inputs: SkipGateInputs<Self>,
        dout: Tensor<Self, 3>,
    ) -> SkipGateGradients<Self> {
        if fits(&inputs) && is_f32(&dout) {
            backward(inputs, dout)
        } else {
            reference::backward(inputs, dout)
        }
    }
}

fn fits(inputs: &SkipGateInputs<Flex>) -> bool {
    is_f32(&inputs.y)
        && is_f32(&inputs.x)
        && is_f32(&inputs.d)
        && is_f32(&inputs.z)
        && inputs.z_bias.iter().all(is_f32)
}

/// One element a channel: `d` repeated over each head's dimensions, and the gate's bias.
fn per_channel(
    d: Tensor<Flex, 1>,
    z_bias: Option<Tensor<Flex, 1>>,
    p: usize,
) -> (Vec<f32>, Vec<f32>) {
    let d = Values::of(d);
    let d: Vec<f32> = d.iter().flat_map(|&d| std::iter::repeat_n(d, p)).collect();
    let bias = match z_bias {
        Some(bias) => Values::of(bias).to_vec(),
        None => vec![0.0; d.len()],
    };
    (d, bias)
}

fn forward(inputs: SkipGateInputs<Flex>) -> Tensor<Flex, 3> {
    let SkipGateInputs { y, x, d, z, z_bias } = inputs;
    let [b, l, h, p] = y.dims();
    let width = h * p;
    let (d, bias) = per_channel(d, z_bias, p);
    let (y, x, z) = (Values::of(y), Values::of(x), Values::of(z));
    let mut out = vec![0.0; y.len()];
    let task = rows_per_task(width) * width;
    out.par_chunks_mut(task)
        .zip(
            y.par_chunks(task)
                .zip(x.par_chunks(task).zip(z.par_chunks(task))),
        )
        .for_each(|(out, (y, (x, z)))| {
            vectorised(
                #[inline(always)]
                || {
                    for r in 0..out.len() / width {
                        let row = r * width..(r + 1) * width;
                        let (out, y) = (&mut out[row.clone()], &y[row.clone()]);
                        let (x, z) = (&x[row.clone()], &z[row]);
                        let (d, bias) = (&d[..width], &bias[..width]);
                        for i in 0..width {
                            let v = z[i] + bias[i];
                            out[i] = (y[i] + d[i] * x[i]) * v * sigmoid(v);
                        }
                    }
                },
            )
        });
    tensor(out, [b, l, width])
}

fn backward(inputs: SkipGateInputs<Flex>, dout: Tensor<Flex, 3>) -> SkipGateGradients<Flex> {
    let SkipGateInputs { y, x, d, z, z_bias } = inputs;
    let [b, l, h, p] = y.dims();
    let width = h * p;
    let (d, bias) = per_channel(d, z_bias, p);
    let (y, x, z, dout) = (
        Values::of(y),
        Values::of(x),
        Values::of(z),
        Values::of(dout),
    );
    let (mut dy, mut dx, mut dz) = (vec![0.0; y.len()], vec![0.0; y.len()], vec![0.0; y.len()]);
    let task = rows_per_task(width) * width;
    let outputs = dy
        .par_chunks_mut(task)
        .zip(dx.par_chunks_mut(task).zip(dz.par_chunks_mut(task)));
    let inputs = y.par_chunks(task).zip(x.par_chunks(task));
    let inputs = inputs.zip(z.par_chunks(task).zip(dout.par_chunks(task)));
    let blocks: Vec<(Vec<f32>, Vec<f32>)> = outputs
        .zip(inputs)
        .map(|((dy, (dx, dz)), ((y, x), (z, dout)))| {
            let (mut dd, mut dbias) = (vec![0.0; width], vec![0.0; width]);
            vectorised(
                #[inline(always)]
                || {
                    let (dd, dbias) = (&mut dd[..width], &mut dbias[..width]);
                    for r in 0..y.len() / width {
                        let row = r * width..(r + 1) * width;
                        let (dy, dx) = (&mut dy[row.clone()], &mut dx[row.clone()]);
                        let (dz, y, x) = (&mut dz[row.clone()], &y[row.clone()], &x[row.clone()]);
                        let (z, dout) = (&z[row.clone()], &dout[row]);
                        let (d, bias) = (&d[..width], &bias[..width]);
                        for i in 0..width {
                            let v = z[i] + bias[i];
                            let s = sigmoid(v);
                            dy[i] = dout[i] * v * s;
                            dx[i] = dy[i] * d[i];
                            dz[i] = dout[i] * (y[i] + d[i] * x[i]) * s * (1.0 + v * (1.0 - s));
                            dd[i] += dy[i] * x[i];
                            dbias[i] += dz[i];
                        }
                    }
                },
            );
            (dd, dbias)
        })
        .collect();
    let (dd, dbias) = blocks.into_iter().unzip();
    let dd = add_up(dd, width);
    SkipGateGradients {
        y: tensor(dy, [b, l, h, p]),
        x: tensor(dx, [b, l, h, p]),
        d: tensor(
            dd.chunks_exact(p).map(|head| head.iter().sum()).collect(),
            [h],
        ),
        z: tensor(dz, [b, l, width]),
        z_bias: tensor(add_up(dbias, width), [width]),
    }
}
