//! The sum of a matrix' rows, in f32: blocks of rows first, then what those give, each in one order.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::{address_type, empty, vector_size};

/// Units of a cube along the columns: neighbours in memory for neighbouring units.
const LANES: u32 = 32;
/// Units of a cube along the rows.
const ROWS: u32 = 8;
/// Rows of a block at least, and blocks at most: the blocks' sums are a small share of the matrix.
const BLOCK: usize = 64;
const BLOCKS: usize = 256;

/// `out [blocks, c]`: the sums of `rows` rows each of `x [t, c]`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sums_kernel<F: Float, O: Float, N: Size>(
    x_tc: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<O, N>>,
    rows: usize,
    #[define(F)] _dtype: StorageType,
    #[define(O)] _out_dtype: StorageType,
) {
    let (t, c) = (x_tc.shape(0), x_tc.shape(1));
    let column = ABSOLUTE_POS_X as usize * N::value();
    let block = CUBE_POS_Y as usize;
    let mut total = Vector::<f32, N>::new(0.0f32);
    if column < c {
        let end = clamp_max((block + 1) * rows, t);
        let mut row = block * rows + UNIT_POS_Y as usize;
        while row < end {
            total += Vector::cast_from(x_tc[(row * x_tc.stride(0) + column) / N::value()]);
            row += ROWS as usize;
        }
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new((LANES * ROWS) as usize);
    shared[UNIT_POS as usize] = total;
    sync_cube();
    if UNIT_POS_Y == 0 && column < c {
        #[unroll]
        for row in 1..ROWS {
            total += shared[(row * LANES + UNIT_POS_X) as usize];
        }
        out[(block * c + column) / N::value()] = Vector::cast_from(total);
    }
}

/// `[t, c]` to `[c]` of the same dtype; `t` is not 0.
pub(super) fn column_sums<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = x.dtype;
    let x = match x.meta.strides()[1] {
        1 => x,
        _ => into_contiguous(x),
    };
    let [t, c] = x.meta.shape().dims();
    let rows = t.div_ceil(BLOCKS).max(BLOCK);
    let blocks = t.div_ceil(rows);
    let sums = match blocks {
        1 => launch(x, rows, 1, dtype),
        _ => {
            let shares = launch(x, rows, blocks, DType::F32);
            launch(shares, blocks, 1, dtype)
        }
    };
    let (client, device) = (sums.client.clone(), sums.device.clone());
    CubeTensor::new_contiguous(client, device, [c].into(), sums.handle, dtype)
}

fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    rows: usize,
    blocks: usize,
    out_dtype: DType,
) -> CubeTensor<R> {
    let [_, c] = x.meta.shape().dims();
    let out = empty(&x, [blocks, c], out_dtype);
    let n = vector_size(&[&x, &out]);
    let across = (c / n).div_ceil(LANES as usize) as u32;
    let width = address_type(&[&x, &out]);
    let dtype = x.dtype;
    // SAFETY: a unit reads rows below `t` and columns below `c`, whose elements lie together; a block's
    // first units write its sums, in a row of their own.
    unsafe {
        sums_kernel::launch_unchecked::<R>(
            &out.client,
            CubeCount::Static(across, blocks as u32, 1),
            CubeDim::new_2d(LANES, ROWS),
            width,
            n,
            x.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            rows,
            dtype.into(),
            out_dtype.into(),
        );
    }
    out
}
