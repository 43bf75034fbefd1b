//! A packed weight as floats: a vector of numbers at a time, so that units write side by side. For products with many
//! rows, by the same library as those of float weights.

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
/// Vectors of numbers that a unit reads before it writes the first, so that many bytes are under way.
const TURNS: usize = 4;

/// `pieces` times `N` numbers, in rows of `d_in`, each from `M` words or a part of one.
#[cube(launch_unchecked, address_type = "dynamic")]
fn to_float<F: Float, M: Size, N: Size>(
    packed: &Array<Vector<u32, M>>,
    scales: &Array<u32>,
    floats: &mut Array<Vector<F, N>>,
    pieces: u32,
    #[comptime] d_in: usize,
    #[comptime] together: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: StorageType,
) {
    let first = CUBE_POS * comptime!(UNITS * TURNS) + UNIT_POS as usize;
    let parts = comptime!((form.in_element() / together).max(1));
    let mut read = Array::<Vector<u32, M>>::new(TURNS);
    #[unroll]
    for turn in 0..TURNS {
        let at = clamp_max(first + comptime!(turn * UNITS), pieces as usize - 1);
        read[turn] = packed[at / parts];
    }
    #[unroll]
    for turn in 0..TURNS {
        let at = first + comptime!(turn * UNITS);
        if at < pieces as usize {
            let scale = if comptime!(form == Form::Int8) {
                f32::reinterpret(scales[at / comptime!(d_in / together)])
            } else {
                half(half_bits(scales, at / comptime!(GROUP / together)))
            };
            // The part of a word that the piece is begins with the lowest bit.
            let part = (at % parts * comptime!(together * 32 / form.in_element())) as u32;
            let in_half = comptime!(form.in_element() / 2);
            let mut numbers = Vector::<F, N>::empty();
            #[unroll]
            for j in 0..together {
                let word = read[turn][comptime!(j / (2 * in_half))];
                let word = if comptime!(parts > 1) {
                    word >> part
                } else {
                    word >> comptime!(16 * (j / in_half % 2) as u32)
                };
                let number = number_of_half(word, comptime!(j % in_half), form);
                numbers[j] = F::cast_from(number * scale);
            }
            floats[at] = numbers;
        }
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
    let pieces = packed.shape().num_elements() * 8;
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
    // Rows of a scale each are whole pieces.
    let sizes = packed.client.io_optimized_vector_sizes(dtype.size());
    let fits = |size: &usize| d_in.is_multiple_of(*size) && GROUP.is_multiple_of(*size);
    let together = sizes.filter(fits).max().unwrap_or(1);
    let pieces = d_out * d_in / together;
    let (packed, scales) = (into_contiguous(packed), into_contiguous(scales));
    let floats = empty(&packed, [d_out, d_in], dtype);
    let [across, down] = cubes(pieces.div_ceil(UNITS * TURNS));
    recording::launches();
    // SAFETY: a unit reads the words and the scale of its own numbers, which are fewer than those of the tensors, and
    // writes these.
    unsafe {
        to_float::launch_unchecked::<R>(
            &packed.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&packed, &floats]),
            together.div_ceil(form.in_element()),
            together,
            launch_cache::array(&packed),
            launch_cache::array(&scales),
            launch_cache::array(&floats),
            pieces as u32,
            d_in,
            together,
            form,
            dtype.into(),
        );
    }
    floats
}
