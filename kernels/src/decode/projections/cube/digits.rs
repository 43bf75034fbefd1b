//! Vectors in four digits of 8 bits, for the whole-number products of the tensor cores.
//!
//! The numbers of a vector lie in chunks. Those of a chunk are multiples of one unit, a power of two: the largest is
//! less than 2^30 units, and each is rounded to whole units. So a number is wrong by less than 2^-29 of the largest
//! of its chunk; numbers above a 64th of that are as they were. The digits, to the base 256, are from -128 to 127, and
//! those of four numbers at the same place lie in one word, as a fragment has them.
//!
//! A chunk with a number that is infinite or NaN has NaN as its unit, and so every product with it is NaN.

use cubecl::prelude::*;

use crate::decode::projections::Form;

/// Numbers that share a unit: four for each unit of a plane.
pub(super) const CHUNK: usize = 128;
/// Vectors of four numbers in a chunk.
pub(super) const QUADS: usize = CHUNK / 4;
/// The exponent of the power of two that no number of a chunk reaches, in units.
const BITS: u32 = 30;
/// Added to a number, it adds 128 to each digit but the last, so that a byte has it without a sign.
const OFFSET: u32 = 0x0080_8080;
/// Takes 128 off again of four digits: it turns their first bits.
const SIGNS: u32 = 0x8080_8080;

/// What a unit has of a chunk.
#[derive(CubeType)]
pub(super) struct Digits<X: Size> {
    /// The bits of one word a digit, the lowest first.
    pub(super) words: Vector<f32, X>,
    /// Of the whole chunk.
    pub(super) unit: f32,
}

/// The digits of a chunk, of which every unit of the plane has its four numbers: in 4 bits every second one of eight.
#[cube]
pub(super) fn digits<X: Size>(numbers: Vector<f32, X>, #[comptime] form: Form) -> Digits<X> {
    let numbers = if comptime!(form == Form::Int4) {
        evens_and_odds(numbers)
    } else {
        numbers
    };
    // As whole numbers, NaN is larger than an infinite number, and that than others.
    let mut largest = 0u32;
    #[unroll]
    for j in 0..4usize {
        largest = max(largest, u32::reinterpret(numbers[j]) & 0x7fff_ffffu32);
    }
    let found = plane_max(largest) >> 23u32;
    // Units have to be numbers of the normal range.
    let exponent = max(found, comptime!(BITS));
    let steps = f32::reinterpret((comptime!(253 + BITS) - exponent) << 23u32);
    let unit = (exponent - comptime!(BITS - 1)) << 23u32;
    let unit = f32::reinterpret(select(found == 255u32, 0x7fff_ffffu32, unit));
    let mut units = Array::<u32>::new(4usize);
    #[unroll]
    for j in 0..4usize {
        units[j] = u32::reinterpret(i32::cast_from(numbers[j] * steps)) + comptime!(OFFSET);
    }
    Digits::<X> {
        words: by_digit::<X>(&units),
        unit,
    }
}

/// The digits of four numbers, a word for each place.
#[cube]
fn by_digit<X: Size>(words: &Array<u32>) -> Vector<f32, X> {
    let (first, second) = (two(words[0], words[1]), two(words[2], words[3]));
    let (first_odd, second_odd) = (
        two(words[0] >> 8u32, words[1] >> 8u32),
        two(words[2] >> 8u32, words[3] >> 8u32),
    );
    let mut digits = Vector::<f32, X>::empty();
    digits[0] = f32::reinterpret(((first & 0xffffu32) | (second << 16u32)) ^ SIGNS);
    digits[1] = f32::reinterpret(((first_odd & 0xffffu32) | (second_odd << 16u32)) ^ SIGNS);
    digits[2] = f32::reinterpret(((first >> 16u32) | (second & 0xffff_0000u32)) ^ SIGNS);
    digits[3] = f32::reinterpret((first_odd >> 16u32) | (second_odd & 0xffff_0000u32));
    digits
}

/// The bytes 0 and 2 of two words, those of `b` behind those of `a`.
#[cube]
fn two(a: u32, b: u32) -> u32 {
    (a & 0x00ff_00ffu32) | ((b & 0x00ff_00ffu32) << 8u32)
}

/// Of eight numbers that two neighbouring units have: the first unit gets numbers 0, 2, 4 and 6, the second 1, 3, 5
/// and 7, as half of a byte lies in a word in 4 bits.
#[cube]
fn evens_and_odds<X: Size>(own: Vector<f32, X>) -> Vector<f32, X> {
    let odd = UNIT_POS_PLANE % 2 == 1;
    let mut sorted = Vector::<f32, X>::empty();
    #[unroll]
    for i in 0..2usize {
        let (even_one, odd_one) = (own[comptime!(2 * i)], own[comptime!(2 * i + 1)]);
        let kept = select(odd, odd_one, even_one);
        let other = plane_shuffle_xor(select(odd, even_one, odd_one), 1u32);
        sorted[i] = select(odd, other, kept);
        sorted[comptime!(i + 2)] = select(odd, kept, other);
    }
    sorted
}

/// Where a plane's unit puts its digits of a chunk of the vector `vector`. Units that write, and those that read, side
/// by side find different banks.
#[cube]
pub(super) fn place_of_unit(vector: usize, #[comptime] form: Form) -> usize {
    let unit = UNIT_POS_PLANE as usize;
    if comptime!(form == Form::Int4) {
        place(unit / 8, unit / 2 % 4, unit % 2, vector, form)
    } else {
        place(unit / 16, unit / 4 % 4, unit % 4, vector, form)
    }
}

/// Where the digits are of four numbers of which the unit `sharer` of a row has those of the weight. In 8 bits they are
/// the word `piece` of its vector in the turn `turn` of two; in 4 bits the even or odd numbers of its word of the group
/// `turn` of four.
#[cube]
pub(super) fn place(
    turn: usize,
    sharer: usize,
    piece: usize,
    vector: usize,
    #[comptime] form: Form,
) -> usize {
    let half = vector % 2 * 4;
    if comptime!(form == Form::Int4) {
        turn * 8 + ((piece * 4 + sharer) ^ half)
    } else {
        piece * 8 + ((turn * 4 + sharer) ^ (piece * 2) ^ half)
    }
}
