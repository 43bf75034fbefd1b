//! The kernels and their launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::each_row::{cubes, mean, with_rows};
use crate::cube::reduce::{Fold, of_cube};
use crate::cube::{address_type, empty, vector_size};

/// Units of a cube at most.
pub(super) const UNITS: usize = 256;
/// Numbers of a row that a unit keeps at most.
pub(super) const KEPT: usize = 64;

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<A: Float, O: Float, N: Size>(
    a_nd: &Tensor<Vector<A, N>>,
    b_nd: &Tensor<Vector<O, N>>,
    distances_n: &mut Array<f32>,
    gradient_nd: &mut ComptimeOption<Tensor<Vector<A, N>>>,
    #[comptime] units: usize,
    #[comptime] turns: usize,
    #[define(A)] _dtype: StorageType,
    #[define(O)] _other_dtype: StorageType,
) {
    let (n, vectors) = (a_nd.shape(0), a_nd.shape(1) / N::value());
    let row = CUBE_POS;
    if row >= n {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(units);
    let a = row * a_nd.stride(0) / N::value();
    let b = row * b_nd.stride(0) / N::value();
    let mut kept = Array::<Vector<f32, N>>::new(turns);
    #[unroll]
    for turn in 0..turns {
        let at = turn * units + unit;
        kept[turn] = Vector::<f32, N>::new(0.0f32);
        if at < vectors {
            kept[turn] = Vector::<f32, N>::cast_from(a_nd[a + at])
                - Vector::<f32, N>::cast_from(b_nd[b + at]);
        }
    }
    let mut squares = 0.0f32;
    #[unroll]
    for turn in 0..turns {
        #[unroll]
        for lane in 0..N::value() {
            squares += kept[turn][lane] * kept[turn][lane];
        }
    }
    let distance = of_cube(squares, &mut shared, Fold::Sum, units).sqrt();
    if unit == 0 {
        distances_n[row] = distance;
    }
    #[comptime]
    match gradient_nd {
        ComptimeOption::Some(gradient_nd) => {
            let mut by = 0.0f32;
            if distance > 0.0f32 {
                by = 1.0f32 / (f32::cast_from(n) * distance);
            }
            let first = row * gradient_nd.stride(0) / N::value();
            #[unroll]
            for turn in 0..turns {
                let at = turn * units + unit;
                if at < vectors {
                    gradient_nd[first + at] =
                        Vector::cast_from(kept[turn] * Vector::<f32, N>::new(by));
                }
            }
        }
        ComptimeOption::None => {}
    }
}

/// See [`rows_distance`](super::super::rows_distance()); with the gradient to `a` in its dtype if it is `wanted`.
pub(super) fn distance<R: CubeRuntime>(
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    wanted: bool,
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    let (a, b) = (with_rows(a), with_rows(b));
    let [n, d]: [usize; 2] = a.meta.shape().dims();
    let distances = empty(&a, [n], DType::F32);
    let gradient = wanted.then(|| empty(&a, [n, d], a.dtype));
    let mut tensors = vec![&a, &b];
    tensors.extend(&gradient);
    let lanes = vector_size(&tensors);
    let width = address_type(&tensors);
    // Halved by the sum.
    let units = (d / lanes).next_power_of_two().clamp(32, UNITS);
    let turns = (d / lanes).div_ceil(units);
    let (client, dtype, other) = (a.client.clone(), a.dtype, b.dtype);
    let [across, down] = cubes(n);
    // SAFETY: a cube reads and writes the rows of its number, which have the shapes that `rows_distance` has
    // checked, and a unit's places in them are below their length.
    unsafe {
        rows_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(units as u32),
            width,
            lanes,
            a.into_tensor_arg(),
            b.into_tensor_arg(),
            distances.clone().into_array_arg(),
            gradient.clone().map(CubeTensor::into_tensor_arg).into(),
            units,
            turns,
            dtype.into(),
            other.into(),
        );
    }
    (mean(distances, n), gradient)
}
