//! What happens to a product's sums before they are written: bias, GELU, residual, and one rounding.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::factor::Four;
use crate::cube::address_type;
use crate::cube::each_row::cubes;
use crate::dense::gelu::cube::gelu;

/// Units of a cube that adds up shares.
const UNITS: usize = 256;

/// What follows the bias.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Epilogue {
    pub gelu: bool,
    /// Whether what the output's memory holds is added.
    pub onto: bool,
}

impl Epilogue {
    pub const NONE: Self = Self {
        gelu: false,
        onto: false,
    };
}

/// Writes the output's vector `at`, in the columns of the bias' vector `column`.
#[cube]
fn write<F: Float, O: Float, N: Size>(
    sum: Vector<f32, N>,
    bias: &ComptimeOption<Array<Vector<F, N>>>,
    out: &mut Array<Vector<O, N>>,
    at: usize,
    column: usize,
    #[comptime] epilogue: Epilogue,
) {
    let mut value = sum;
    #[comptime]
    match bias {
        ComptimeOption::Some(bias) => {
            value += Vector::<f32, N>::cast_from(bias[column]);
        }
        ComptimeOption::None => {}
    }
    if comptime!(epilogue.gelu) {
        value = gelu(value);
    }
    if comptime!(epilogue.onto) {
        value += Vector::<f32, N>::cast_from(out[at]);
    }
    out[at] = Vector::<O, N>::cast_from(value);
}

/// Writes the sums of `row` from `column` on, as many as the output `[shares, rows, columns]` has, to this cube's share.
#[cube]
pub(super) fn put<F: Float, O: Float, N: Size>(
    sums: Vector<f32, Four>,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
    bias: &ComptimeOption<Array<Vector<F, N>>>,
    out: &mut Array<Vector<O, N>>,
    #[comptime] n: usize,
    #[comptime] epilogue: Epilogue,
) {
    if row < rows {
        let at = (CUBE_POS_Z as usize * rows + row) * columns + column;
        if comptime!(n == 4) {
            if column < columns {
                let sums = Vector::<f32, N>::cast_from(sums);
                write(sums, bias, out, at / 4, column / 4, epilogue);
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                if column + i < columns {
                    let sum = Vector::<f32, N>::new(sums[i]);
                    write(sum, bias, out, at + i, column + i, epilogue);
                }
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_kernel<F: Float, N: Size>(
    shares: &Array<Vector<f32, N>>,
    bias: &ComptimeOption<Array<Vector<F, N>>>,
    out: &mut Array<Vector<F, N>>,
    count: usize,
    vectors: usize,
    columns: usize,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let mut sum = shares[at];
        for share in 1..count {
            sum += shares[share * vectors + at];
        }
        write(sum, bias, out, at, at % columns, epilogue);
    }
}

/// Adds up `shares [s, rows, columns]` in f32 in their order and writes the output, in vectors of `n`.
pub(super) fn add_shares<R: CubeRuntime>(
    shares: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    out: CubeTensor<R>,
    n: usize,
    epilogue: Epilogue,
) {
    let [count, rows, columns] = shares.meta.shape().dims();
    let vectors = rows * columns / n;
    let [x, y] = cubes(vectors.div_ceil(UNITS));
    let (client, dtype): (_, DType) = (out.client.clone(), out.dtype);
    // SAFETY: units beyond the output's vectors neither read nor write.
    unsafe {
        add_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(x, y, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&shares, &out]),
            n,
            shares.into_array_arg(),
            bias.map(|bias| bias.into_array_arg()).into(),
            out.into_array_arg(),
            count,
            vectors,
            columns / n,
            epilogue,
            dtype.into(),
        );
    }
}
