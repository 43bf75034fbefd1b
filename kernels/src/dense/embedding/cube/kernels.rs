//! The kernels and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, with_rows};
use crate::cube::reduce::{Fold, of_cube};
use crate::cube::{address_type, vector_size};

const UNITS: usize = 256;
/// Ids that a unit looks at before all add the rows that they have found.
const EACH: usize = 16;
/// Rows that are read before the first of them is added.
const AHEAD: usize = 8;

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradient_kernel<F: Float, N: Size>(
    ids_t: &Array<i32>,
    dy_td: &Tensor<Vector<F, N>>,
    table_vd: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: StorageType,
) {
    let (t, vectors) = (dy_td.shape(0), dy_td.shape(1) / N::value());
    let token = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    if token >= t {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let mut counts = SharedMemory::<u32>::new(UNITS);
    let mut places = SharedMemory::<u32>::new(UNITS * EACH);
    let id = ids_t[token];

    let mut earlier = 0u32;
    let mut i = unit;
    while i < token && earlier == 0u32 {
        if ids_t[i] == id {
            earlier = 1u32;
        }
        i += UNITS;
    }
    let earlier = of_cube(earlier, &mut counts, Fold::Largest, UNITS);
    if earlier == 0u32 {
        let column = CUBE_POS_Z as usize * UNITS + unit;
        // Units beyond the last column read it and write nothing.
        let read = clamp_max(column, vectors - 1);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        let mut first = token;
        while first < t {
            let mut found = 0u32;
            let mut count = 0u32;
            #[unroll]
            for j in 0..EACH {
                let at = first + j * UNITS + unit;
                // Both sides of a condition are computed: no read may be beyond the end.
                let other = ids_t[clamp_max(at, t - 1)];
                if at < t && other == id {
                    found |= comptime!(1u32 << j as u32);
                    count += 1u32;
                }
            }
            // The running sum of the counts says where a unit's places go.
            counts[unit] = count;
            sync_cube();
            let mut distance = 1usize.runtime();
            while distance < UNITS {
                let mut before = 0u32;
                if unit >= distance {
                    before = counts[unit - distance];
                }
                sync_cube();
                counts[unit] += before;
                sync_cube();
                distance *= 2;
            }
            let total = counts[UNITS - 1] as usize;
            let mut place = (counts[unit] - count) as usize;
            #[unroll]
            for j in 0..EACH {
                if (found & comptime!(1u32 << j as u32)) != 0u32 {
                    places[place] = (first + j * UNITS + unit) as u32;
                    place += 1;
                }
            }
            sync_cube();

            let mut k = 0usize.runtime();
            while k < total {
                let mut rows = Array::<Vector<F, N>>::new(AHEAD);
                #[unroll]
                for j in 0..AHEAD {
                    let at = places[clamp_max(k + j, total - 1)] as usize;
                    rows[j] = dy_td[at * dy_td.stride(0) / N::value() + read];
                }
                #[unroll]
                for j in 0..AHEAD {
                    if k + j < total {
                        sum += Vector::cast_from(rows[j]);
                    }
                }
                k += AHEAD;
            }
            sync_cube();
            first += comptime!(UNITS * EACH);
        }
        let row = u32::cast_from(id) as usize;
        if column < vectors && row < table_vd.shape(0) {
            table_vd[row * table_vd.stride(0) / N::value() + column] = Vector::cast_from(sum);
        }
    }
}

/// Writes the sums of `dy [t, d]` by `ids` of `t` elements to the rows of `table`, which is zeros in the
/// dtype of `dy` and nothing else holds.
pub(super) fn write_row_sums<R: CubeRuntime>(
    ids: CubeTensor<R>,
    dy: CubeTensor<R>,
    table: CubeTensor<R>,
) -> CubeTensor<R> {
    let dy = with_rows(dy);
    let [t, d]: [usize; 2] = dy.meta.shape().dims();
    let lanes = vector_size(&[&dy, &table]);
    let [across, down] = cubes(t);
    let deep = (d / lanes).div_ceil(UNITS) as u32;
    let (width, dtype) = (address_type(&[&dy, &table]), dy.dtype);
    // SAFETY: cubes read below the lengths of `ids` and `dy`; the one cube of an id and its columns writes
    // them, and only those of a row that the table has.
    unsafe {
        gradient_kernel::launch_unchecked::<R>(
            &table.client,
            CubeCount::Static(across, down, deep),
            CubeDim::new_1d(UNITS as u32),
            width,
            lanes,
            into_contiguous(ids).into_array_arg(),
            dy.into_tensor_arg(),
            table.clone().into_tensor_arg(),
            dtype.into(),
        );
    }
    table
}
