//! The numbers in the words of a packed weight, and its scales.

use cubecl::prelude::*;

use crate::decode::projections::Form;

/// A number of a weight's vector; of 8 and of 4 bits, without its scale.
#[cube]
pub(super) fn number<W: Numeric, N: Size>(
    vector: Vector<W, N>,
    #[comptime] element: usize,
    #[comptime] form: Form,
) -> f32 {
    if comptime!(form == Form::Float) {
        f32::cast_from(vector[element])
    } else {
        let in_half = comptime!(form.in_element() / 2);
        let word = u32::cast_from(vector[comptime!(element / (2 * in_half))]);
        let upper = comptime!(element / in_half % 2);
        number_of_half(
            word >> comptime!(16 * upper as u32),
            comptime!(element % in_half),
            form,
        )
    }
}

/// The number at a place in the lower half of a word.
///
/// Its bits are those of a float whose last digits they are, where they lie: of 2^23, 2^19 and so on. What the float
/// is more than the number is taken off, which takes a processor less than a conversion.
#[cube]
pub(super) fn number_of_half(word: u32, #[comptime] place: usize, #[comptime] form: Form) -> f32 {
    let bits = comptime!(16 / (form.in_element() / 2));
    let first = comptime!((place * bits) as u32);
    let mask = comptime!(((1 << bits) - 1) << first);
    let float = comptime!(2.0_f32.powi(23 - first as i32));
    // A byte is in two's complement, of which the first bit is turned; half a byte has 8 added already.
    let sign = comptime!(if form == Form::Int8 { 0x80 << first } else { 0 });
    let more = comptime!(float + (1 << (bits - 1)) as f32);
    f32::reinterpret((word & mask) ^ comptime!(float.to_bits() | sign)) - more
}

/// The bits of the scale `at` of those that lie in pairs.
#[cube]
pub(super) fn half_bits(pairs: &Array<u32>, at: usize) -> u32 {
    (pairs[at / 2] >> (at % 2 * 16) as u32) & 0xffffu32
}

/// The f16 number of these bits, which are not those of an infinite one: not every device reads f16.
#[cube]
pub(super) fn half(bits: u32) -> f32 {
    let exponent = (bits >> 10u32) & 31u32;
    let digits = bits & 1023u32;
    // The exponents of f32 begin 112 before those of f16, and end 112 behind them.
    let more = select(exponent == 31u32, 224u32, 112u32);
    let normal = f32::reinterpret(((exponent + more) << 23u32) | (digits << 13u32));
    // A device may take f32 numbers of the least exponent for zeros, so that they are no way to these.
    let size = select(
        exponent == 0u32,
        f32::cast_from(digits) * comptime!(2.0_f32.powi(-24)),
        normal,
    );
    f32::reinterpret(u32::reinterpret(size) | ((bits & 0x8000u32) << 16u32))
}
