//! The sum of every column of a matrix, as CubeCL kernels: blocks of rows by cubes side by side, whose
//! partial sums a second launch adds up. All in f32, in an order that depends on the shape alone.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::with_rows;
use crate::cube::{address_type, empty, vector_size};

/// Units of a cube along the columns, and along the rows.
const ACROSS: usize = 32;
const DOWN: usize = 8;
/// The same where partial sums are added up, which are few: more units for a column.
const FEW_ACROSS: usize = 16;
const FEW_DOWN: usize = 16;
/// Rows that a unit reads before it adds any of them up, so that several reads are under way.
const AHEAD: usize = 4;
/// Cubes that keep a device busy, and rows that a cube has at least.
const CUBES: usize = 1024;
const ROWS: usize = 64;

/// The sums of `rows` rows a cube to `shares [blocks of rows, o]`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_kernel<F: Float, N: Size, P: Size>(
    x_to: &Tensor<Vector<F, N>>,
    shares_so: &mut Tensor<Vector<f32, P>>,
    rows: u32,
    #[comptime] n: usize,
    #[comptime] p: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (t, o, stride) = (x_to.shape(0), x_to.shape(1), x_to.stride(0));
    let vectors = o / n;
    let column = CUBE_POS_X as usize * ACROSS + UNIT_POS_X as usize;
    let first = CUBE_POS_Y as usize * rows as usize;
    let last = clamp_max(first + rows as usize, t);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if column < vectors {
        for row in range_stepped(first + UNIT_POS_Y as usize, last, DOWN * AHEAD) {
            let mut read = Array::<Vector<F, N>>::new(AHEAD);
            #[unroll]
            for i in 0..AHEAD {
                let row = clamp_max(row + i * DOWN, last - 1);
                read[i] = x_to[row * stride / n + column];
            }
            #[unroll]
            for i in 0..AHEAD {
                if row + i * DOWN < last {
                    sum += Vector::<f32, N>::cast_from(read[i]);
                }
            }
        }
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new(ACROSS * DOWN);
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < vectors {
        let mut total = shared[UNIT_POS_X as usize];
        #[unroll]
        for i in 1..DOWN {
            total += shared[i * ACROSS + UNIT_POS_X as usize];
        }
        let pieces = comptime!(n / p);
        let at = (CUBE_POS_Y as usize * vectors + column) * pieces;
        #[unroll]
        for piece in 0..pieces {
            let mut share = Vector::<f32, P>::new(0.0f32);
            #[unroll]
            for i in 0..p {
                share[i] = total[comptime!(piece * p + i)];
            }
            shares_so[at + piece] = share;
        }
    }
}

/// Adds up `count` shares of `first`, and of `second` behind it.
#[cube(launch_unchecked, address_type = "dynamic")]
fn add_kernel<W: Float>(
    shares_sc: &Array<f32>,
    first: &mut Array<W>,
    second: &mut ComptimeOption<Array<W>>,
    count: u32,
    d: u32,
    #[comptime] outputs: usize,
    #[define(W)] _dtype: StorageType,
) {
    let (count, d) = (count as usize, d as usize);
    let c = d * outputs;
    let column = CUBE_POS_X as usize * FEW_ACROSS + UNIT_POS_X as usize;
    let mut sum = 0.0f32;
    if column < c {
        for row in range_stepped(UNIT_POS_Y as usize, count, FEW_DOWN * AHEAD) {
            let mut read = Array::<f32>::new(AHEAD);
            #[unroll]
            for i in 0..AHEAD {
                read[i] = shares_sc[clamp_max(row + i * FEW_DOWN, count - 1) * c + column];
            }
            #[unroll]
            for i in 0..AHEAD {
                if row + i * FEW_DOWN < count {
                    sum += read[i];
                }
            }
        }
    }
    let mut shared = SharedMemory::<f32>::new(FEW_ACROSS * FEW_DOWN);
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < c {
        let mut total = shared[UNIT_POS_X as usize];
        #[unroll]
        for i in 1..FEW_DOWN {
            total += shared[i * FEW_ACROSS + UNIT_POS_X as usize];
        }
        if column < d {
            first[column] = W::cast_from(total);
        } else {
            #[comptime]
            match second {
                ComptimeOption::Some(second) => {
                    second[column - d] = W::cast_from(total);
                }
                ComptimeOption::None => {}
            }
        }
    }
}

/// The sums over the first dimension of `shares [s, k, d]` in f32 without gaps, `k` 1 or 2, as `k` tensors
/// `[d]` of `dtype`.
pub(crate) fn add_shares<R: CubeRuntime>(
    shares: CubeTensor<R>,
    dtype: DType,
) -> Vec<CubeTensor<R>> {
    let [s, k, d] = shares.meta.shape().dims();
    let sums: Vec<_> = (0..k).map(|_| empty(&shares, [d], dtype)).collect();
    let client = shares.client.clone();
    // SAFETY: units beyond the `k * d` columns neither read nor write, and rows are read below `s`.
    unsafe {
        add_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static((k * d).div_ceil(FEW_ACROSS) as u32, 1, 1),
            CubeDim::new_2d(FEW_ACROSS as u32, FEW_DOWN as u32),
            address_type(&[&shares]),
            shares.into_array_arg(),
            sums[0].clone().into_array_arg(),
            sums.get(1).map(|sums| sums.clone().into_array_arg()).into(),
            s as u32,
            d as u32,
            k,
            dtype.into(),
        );
    }
    sums
}

/// The sum over the rows of `x [t, o]` of f32, f16 or bf16, neither dimension 0, as `[o]` of `dtype`.
pub(crate) fn column_sums<R: CubeRuntime>(x: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let x = with_rows(x);
    let [t, o] = x.meta.shape().dims();
    let n = vector_size(&[&x]);
    let across = (o / n).div_ceil(ACROSS);
    let blocks = (CUBES / across).clamp(1, t.div_ceil(ROWS));
    let rows = t.div_ceil(blocks);
    let blocks = t.div_ceil(rows);
    let shares = empty(&x, [blocks, 1, o], DType::F32);
    let p = vector_size(&[&shares]).min(n);
    let (client, own) = (x.client.clone(), x.dtype);
    // SAFETY: units beyond the columns neither read nor write, rows are read below `t`, and no two cubes
    // write the same columns of one share.
    unsafe {
        partial_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across as u32, blocks as u32, 1),
            CubeDim::new_2d(ACROSS as u32, DOWN as u32),
            address_type(&[&x, &shares]),
            n,
            p,
            x.into_tensor_arg(),
            shares.clone().into_tensor_arg(),
            rows as u32,
            n,
            p,
            own.into(),
        );
    }
    add_shares(shares, dtype).swap_remove(0)
}
