//! A packed weight as floats: four numbers a unit, so that units write side by side. For products with many rows, by
//! the same library as those of float weights.

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::numbers::{half, half_bits, number_of_half};
use crate::cube::each_row::cubes;
use crate::cube::{address_type, computes_in_f32, empty, launch_cache, recording};
use crate::decode::projections::{Form, GROUP};

const UNITS: usize = 256;
/// Numbers that a unit writes together.
const TOGETHER: usize = 4;

/// `pieces` times [`TOGETHER`] numbers, in rows of `d_in`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn to_float<F: Float, N: Size>(
    packed: &Array<u32>,
    scales: &Array<u32>,
    floats: &mut Array<Vector<F, N>>,
    pieces: u32,
    #[comptime] d_in: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: StorageType,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < pieces as usize {
        let mut numbers = Vector::<F, N>::empty();
        if comptime!(form == Form::Int8) {
            let word = packed[at];
            let scale = f32::reinterpret(scales[at / comptime!(d_in / TOGETHER)]);
            #[unroll]
            for j in 0..TOGETHER {
                let half = word >> comptime!(16 * (j / 2) as u32);
                let number = number_of_half(half, comptime!(j % 2), form);
                numbers[j] = F::cast_from(number * scale);
            }
        } else {
            let half_word = packed[at / 2] >> (at % 2 * 16) as u32;
            let scale = half(half_bits(scales, at / comptime!(GROUP / TOGETHER)));
            #[unroll]
            for j in 0..TOGETHER {
                let number = number_of_half(half_word, j, form);
                numbers[j] = F::cast_from(number * scale);
            }
        }
        floats[at] = numbers;
    }
}

/// Whether there is a kernel for these words, as floats of `dtype`.
pub(super) fn has_kernel<R, F, I, T>(
    packed: &Tensor<CubeBackend<R, F, I, T>, 2, Int>,
    dtype: DType,
) -> bool
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    let pieces = packed.shape().num_elements() * 2;
    computes_in_f32(dtype)
        && packed.dtype() == DType::I32
        && (1..u32::MAX as usize).contains(&pieces)
}

/// The numbers of `packed [d_out, words]` in `dtype`: `[d_out, d_in]`.
pub(super) fn floats<R: CubeRuntime>(
    packed: CubeTensor<R>,
    scales: CubeTensor<R>,
    form: Form,
    dtype: DType,
) -> CubeTensor<R> {
    let [d_out, words]: [usize; 2] = packed.meta.shape().dims();
    let d_in = words * form.in_element();
    let pieces = d_out * d_in / TOGETHER;
    let (packed, scales) = (into_contiguous(packed), into_contiguous(scales));
    let floats = empty(&packed, [d_out, d_in], dtype);
    let [across, down] = cubes(pieces.div_ceil(UNITS));
    recording::launches();
    // SAFETY: a unit reads the words and the scale of its own numbers, which are fewer than those of the tensors, and
    // writes these.
    unsafe {
        to_float::launch_unchecked::<R>(
            &packed.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&packed, &floats]),
            TOGETHER,
            launch_cache::array(&packed),
            launch_cache::array(&scales),
            launch_cache::array(&floats),
            pieces as u32,
            d_in,
            form,
            dtype.into(),
        );
    }
    floats
}
