//! What the cubes of the backward pass leave to be added up.

use cubecl::prelude::*;

/// Adds up the shares, in their order.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sum_shares_kernel<W: Float>(
    shares_skc: &Tensor<f32>,
    dweight_cw: &mut Tensor<W>,
    dbias_c: &mut Tensor<W>,
    #[comptime] w: usize,
    #[define(W)] _weight_dtype: StorageType,
) {
    let c = dbias_c.shape(0);
    let row = (w + 1) * c;
    if ABSOLUTE_POS >= row {
        terminate!();
    }
    let mut total = 0.0f32;
    for share in 0..shares_skc.shape(0) {
        total += shares_skc[share * row + ABSOLUTE_POS];
    }
    let (k, channel) = (ABSOLUTE_POS / c, ABSOLUTE_POS % c);
    if k < w {
        dweight_cw[channel * w + k] = W::cast_from(total);
    } else {
        dbias_c[channel] = W::cast_from(total);
    }
}
