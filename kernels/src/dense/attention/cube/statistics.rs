//! Two numbers for each query that the backward pass needs before it begins.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::cubes;
use crate::cube::rows::{View, rows_of, view};
use crate::cube::{address_type, empty, vector_size};

/// Units of a query, and queries of a cube.
const ACROSS: usize = 8;
const DOWN: usize = 32;

#[cube(launch_unchecked, address_type = "dynamic")]
fn statistics_kernel<F: Float, N: Size>(
    y_blhp: &Array<Vector<F, N>>,
    dy_blhp: &Array<Vector<F, N>>,
    lse_bhl: &Array<f32>,
    statistics: &mut Array<f32>,
    factor: f32,
    queries: usize,
    y_view: View,
    dy_view: View,
    #[comptime] p: usize,
    #[comptime] n: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (l, h) = (y_view.count, y_view.groups);
    let (unit_x, unit_y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let own = CUBE_POS * DOWN + unit_y;
    // Units beyond the last query compute the same as the last, and do not write.
    let place = clamp_max(own, queries - 1);
    let (head, token) = (place % h, place / h % l);
    let batch = place / h / l;
    let y_rows = rows_of(&y_view, batch, head, h);
    let dy_rows = rows_of(&dy_view, batch, head, h);
    let (y_row, dy_row) = (
        y_rows.base + token * y_rows.step,
        dy_rows.base + token * dy_rows.step,
    );
    let mut products = Vector::<f32, N>::new(0.0f32);
    for vector in range_stepped(unit_x, comptime!(p / n).runtime(), ACROSS) {
        let column = vector * n;
        let y = y_blhp[(y_row + column * y_rows.column) / n];
        let dy = dy_blhp[(dy_row + column * dy_rows.column) / n];
        products += Vector::<f32, N>::cast_from(y) * Vector::<f32, N>::cast_from(dy);
    }
    let mut sum = products[0];
    #[unroll]
    for i in 1..n {
        sum += products[i];
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(ACROSS * DOWN));
    shared[unit_y * ACROSS + unit_x] = sum;
    sync_cube();
    if unit_x == 0 && own < queries {
        let mut along = 0.0f32;
        #[unroll]
        for i in 0..ACROSS {
            along += shared[unit_y * ACROSS + i];
        }
        let at = (batch * h + head) * l + token;
        statistics[2 * at] = lse_bhl[at] * factor;
        statistics[2 * at + 1] = along;
    }
}

/// Of each query the logarithm of the sum of its scores' exponentials, times `factor`, and the sum of its output
/// times its output's gradient, which is that of its weights times theirs: `[b, h, l, 2]` in f32.
pub(super) fn statistics<R: CubeRuntime>(
    y_blhp: CubeTensor<R>,
    dy_blhp: CubeTensor<R>,
    lse_bhl: CubeTensor<R>,
    factor: f32,
) -> CubeTensor<R> {
    let [b, l, h, p] = y_blhp.meta.shape().dims();
    let statistics = empty(&lse_bhl, [b, h, l, 2], DType::F32);
    let width = address_type(&[&y_blhp, &dy_blhp, &statistics]);
    let vector = vector_size(&[&y_blhp, &dy_blhp]);
    let (y_view, dy_view) = (view(&y_blhp), view(&dy_blhp));
    let queries = b * l * h;
    let [across, down] = cubes(queries.div_ceil(DOWN));
    let (client, dtype) = (y_blhp.client.clone(), y_blhp.dtype.into());
    // SAFETY: rows are those of the tensors, and what lies beyond them is neither read nor written.
    unsafe {
        statistics_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_2d(ACROSS as u32, DOWN as u32),
            width,
            vector,
            y_blhp.into_array_arg(),
            dy_blhp.into_array_arg(),
            lse_bhl.into_array_arg(),
            statistics.clone().into_array_arg(),
            factor,
            queries,
            y_view,
            dy_view,
            p,
            vector,
            dtype,
        );
    }
    statistics
}
