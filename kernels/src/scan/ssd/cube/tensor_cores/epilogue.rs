//! What the outputs pass through where they are, in a product's registers.

use cubecl::prelude::*;

use super::product::{Eight, Matrix, Pair, Product};
use crate::cube::sigmoid::sigmoid;

/// Adds `d` of the head times the rows of `x`.
#[cube]
pub fn skip<E: Float>(
    product: &mut Product,
    x: &Matrix<E, Eight>,
    d_h: &ComptimeOption<Tensor<f32>>,
    head: usize,
) {
    #[comptime]
    match d_h {
        ComptimeOption::Some(d) => {
            let d = Vector::<f32, Pair>::new(d[head]);
            // An idle plane's rows are beyond the matrix.
            if product.busy {
                #[unroll]
                for i in 0..product.pairs() {
                    let x = x.pair(product.row(i), product.column(i));
                    let sum = product.get(i) + d * Vector::<f32, Pair>::cast_from(x);
                    product.set(i, sum);
                }
            }
        }
        ComptimeOption::None => {}
    }
}

/// A head's bias of the gate, in shared memory; zeros where there is none.
#[cube]
pub fn load_bias(
    to: &mut SharedMemory<f32>,
    bias_c: &ComptimeOption<Tensor<f32>>,
    first_channel: usize,
    #[comptime] p: usize,
) {
    let unit = UNIT_POS as usize;
    if unit < p {
        let mut value = 0.0f32;
        #[comptime]
        match bias_c {
            ComptimeOption::Some(bias) => {
                value = bias[first_channel + unit];
            }
            ComptimeOption::None => {}
        }
        to[unit] = value;
    }
}

/// A pair of outputs times `silu(z + bias)`, in the columns from `column` on.
#[cube]
pub fn gated<E: Float>(
    value: Vector<f32, Pair>,
    z: Vector<E, Pair>,
    bias: &SharedMemory<f32>,
    column: usize,
) -> Vector<f32, Pair> {
    let mut v = Vector::<f32, Pair>::cast_from(z);
    v[0] += bias[column];
    v[1] += bias[column + 1];
    value * v * sigmoid::<E, Pair>(v)
}

/// Multiplies by `silu(z + bias)`.
#[cube]
pub fn gate<E: Float>(product: &mut Product, z: &Matrix<E, Eight>, bias: &SharedMemory<f32>) {
    if product.busy {
        #[unroll]
        for i in 0..product.pairs() {
            let column = product.column(i);
            let z = z.pair(product.row(i), column);
            product.set(i, gated::<E>(product.get(i), z, bias, column));
        }
    }
}
