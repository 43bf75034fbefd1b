//! The numbers of a GGUF file: blocks of quantised numbers, and what each stands for.
//!
//! The formats are ggml's (`ggml-common.h`, `ggml-quants.c`). Every value is computed in f32 as written here, each
//! multiplication and addition rounded, which gives the values of the Python package `gguf` bit for bit.

use half::{bf16, f16};

/// One type of numbers.
pub(super) struct BlockType {
    /// Its number in a file.
    id: u32,
    pub(super) name: &'static str,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Numbers of a block.
    pub(super) elements: usize,
    /// The values of whole blocks.
    pub(super) decode: fn(&[u8], &mut [f32]),
}

macro_rules! types {
    ($($id:literal $name:literal $bytes:literal / $elements:literal = $decode:expr;)*) => {
        &[$(BlockType {
            id: $id,
            name: $name,
            bytes: $bytes,
            elements: $elements,
            decode: |blocks, values| each::<$bytes, $elements>(blocks, values, $decode),
        }),*]
    };
}

/// Those that are read.
const TYPES: &[BlockType] = types! {
    0 "F32" 4 / 1 = |block, values| values[0] = f32::from_le_bytes(*block);
    1 "F16" 2 / 1 = |block, values| values[0] = f16::from_le_bytes(*block).to_f32();
    30 "BF16" 2 / 1 = |block, values| values[0] = bf16::from_le_bytes(*block).to_f32();
    2 "Q4_0" 18 / 32 = q4_0;
    3 "Q4_1" 20 / 32 = q4_1;
    6 "Q5_0" 22 / 32 = q5_0;
    7 "Q5_1" 24 / 32 = q5_1;
    8 "Q8_0" 34 / 32 = q8_0;
    10 "Q2_K" 84 / 256 = q2_k;
    11 "Q3_K" 110 / 256 = q3_k;
    12 "Q4_K" 144 / 256 = q4_k;
    13 "Q5_K" 176 / 256 = q5_k;
    14 "Q6_K" 210 / 256 = q6_k;
};

/// The names of others.
const UNREAD: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl BlockType {
    /// The type with the number `id`; or, if it is not read, what messages call it.
    pub(super) fn of(id: u32) -> Result<&'static Self, String> {
        let unread = || match UNREAD.iter().find(|(other, _)| *other == id) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("type {id}"),
        };
        TYPES.iter().find(|kind| kind.id == id).ok_or_else(unread)
    }

    /// The names of all types that are read.
    pub(super) fn names() -> String {
        let names: Vec<&str> = TYPES.iter().map(|kind| kind.name).collect();
        names.join(", ")
    }
}

/// Decodes block after block.
fn each<const BYTES: usize, const ELEMENTS: usize>(
    blocks: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let values = values.as_chunks_mut::<ELEMENTS>().0;
    for (block, values) in blocks.as_chunks::<BYTES>().0.iter().zip(values) {
        decode(block, values);
    }
}

/// The f16 at the byte `at`.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The two numbers of four bits in byte `i` of `nibbles`: of the elements `i` and `i + 16`.
fn pair(nibbles: &[u8], i: usize) -> [u8; 2] {
    [nibbles[i] & 15, nibbles[i] >> 4]
}

fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = scale(block, 0);
    for i in 0..16 {
        let [low, high] = pair(&block[2..], i);
        values[i] = d * (f32::from(low) - 8.0);
        values[i + 16] = d * (f32::from(high) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for i in 0..16 {
        let [low, high] = pair(&block[4..], i);
        values[i] = d * f32::from(low) + m;
        values[i + 16] = d * f32::from(high) + m;
    }
}

/// The numbers of five bits of the elements `i` and `i + 16`: their fifth bits are in `bits`.
fn pair_of_five(bits: [u8; 4], nibbles: &[u8], i: usize) -> [f32; 2] {
    let bits = u32::from_le_bytes(bits);
    let [low, high] = pair(nibbles, i);
    let fifth = |i: usize| ((bits >> i & 1) << 4) as u8;
    [f32::from(low | fifth(i)), f32::from(high | fifth(i + 16))]
}

fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let d = scale(block, 0);
    let bits = [block[2], block[3], block[4], block[5]];
    for i in 0..16 {
        let [low, high] = pair_of_five(bits, &block[6..], i);
        values[i] = d * (low - 16.0);
        values[i + 16] = d * (high - 16.0);
    }
}

fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let bits = [block[4], block[5], block[6], block[7]];
    for i in 0..16 {
        let [low, high] = pair_of_five(bits, &block[8..], i);
        values[i] = d * low + m;
        values[i + 16] = d * high + m;
    }
}

fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (value, byte) in values.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(*byte as i8);
    }
}

/// 16 scales and minima of four bits each, two bits a number in four layers of 32 bytes, d, dmin.
fn q2_k(block: &[u8; 84], values: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 80), scale(block, 82));
    for (sub, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (factor, minimum) = (
            d * f32::from(block[sub] & 15),
            dmin * f32::from(block[sub] >> 4),
        );
        let (half, layer, part) = (sub / 8, sub / 2 % 4, sub % 2);
        let bytes = &block[16 + 32 * half + 16 * part..];
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = factor * f32::from(byte >> (2 * layer) & 3) - minimum;
        }
    }
}

/// 32 bytes of third bits, two bits a number as in `q2_k`, 16 scales of six bits in 12 bytes, d.
fn q3_k(block: &[u8; 110], values: &mut [f32; 256]) {
    let d = scale(block, 108);
    let scales = &block[96..];
    for (sub, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[sub % 8] >> (4 * (sub / 8)) & 15;
        let high = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let factor = d * (f32::from(low | high << 4) - 32.0);
        let (half, layer, part) = (sub / 8, sub / 2 % 4, sub % 2);
        let bytes = &block[32 + 32 * half + 16 * part..];
        let thirds = &block[16 * part..];
        for (i, value) in values.iter_mut().enumerate() {
            let two = f32::from(bytes[i] >> (2 * layer) & 3);
            let third = f32::from(thirds[i] >> (4 * half + layer) & 1);
            *value = factor * (two + 4.0 * third - 4.0);
        }
    }
}

/// The scale and the minimum, of six bits each, of the 32 numbers `sub` of eight times 32.
fn scale_and_minimum(scales: &[u8], sub: usize) -> [f32; 2] {
    let [scale, minimum] = if sub < 4 {
        [scales[sub] & 63, scales[sub + 4] & 63]
    } else {
        [
            scales[sub + 4] & 15 | scales[sub - 4] >> 6 << 4,
            scales[sub + 4] >> 4 | scales[sub] >> 6 << 4,
        ]
    };
    [f32::from(scale), f32::from(minimum)]
}

fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (sub, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let [factor, minimum] = scale_and_minimum(&block[4..16], sub);
        let (factor, minimum) = (d * factor, dmin * minimum);
        let bytes = &block[16 + 32 * (sub / 2)..];
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = factor * f32::from(byte >> (4 * (sub % 2)) & 15) - minimum;
        }
    }
}

/// As `q4_k`, with 32 bytes of fifth bits before the others.
fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (sub, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let [factor, minimum] = scale_and_minimum(&block[4..16], sub);
        let (factor, minimum) = (d * factor, dmin * minimum);
        let fifths = &block[16..48];
        let bytes = &block[48 + 32 * (sub / 2)..];
        for (i, value) in values.iter_mut().enumerate() {
            let four = bytes[i] >> (4 * (sub % 2)) & 15;
            *value = factor * f32::from(four | (fifths[i] >> sub & 1) << 4) - minimum;
        }
    }
}

/// 128 bytes of four bits a number, 64 of two more bits, 16 scales, d.
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let d = scale(block, 208);
    for (sub, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let factor = d * f32::from(block[192 + sub] as i8);
        let (half, quarter, part) = (sub / 8, sub / 2 % 4, sub % 2);
        let fours = &block[64 * half + 32 * (quarter & 1) + 16 * part..];
        let twos = &block[128 + 32 * half + 16 * part..];
        for (i, value) in values.iter_mut().enumerate() {
            let four = fours[i] >> (4 * (quarter / 2)) & 15;
            let two = twos[i] >> (2 * quarter) & 3;
            *value = factor * (f32::from(four | two << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Bit for bit the values of the Python package, of every type, from normal numbers, arbitrary bytes and
    /// published files.
    #[test]
    fn values_are_those_of_the_gguf_package() {
        let path = ::tests::goldens_dir().join("gguf-blocks/blocks.safetensors");
        let bytes = std::fs::read(path).expect("the vectors");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut seen = Vec::new();
        for (name, raw) in file.tensors() {
            let Some(case) = name.strip_suffix(".raw") else {
                continue;
            };
            let (_, type_name) = case.rsplit_once('.').expect("KIND.TYPE");
            let kind = TYPES.iter().find(|kind| kind.name == type_name);
            let kind = kind.unwrap_or_else(|| panic!("{name}: no such type"));
            let expected = file.tensor(&format!("{case}.values")).expect("values");
            let expected = expected.data().as_chunks().0.iter();
            let expected: Vec<u32> = expected.map(|value| u32::from_le_bytes(*value)).collect();
            let blocks = raw.data().len() / kind.bytes;
            assert_eq!(blocks * kind.elements, expected.len(), "{case}");
            let mut values = vec![f32::NAN; expected.len()];
            (kind.decode)(raw.data(), &mut values);
            for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
                let bits = value.to_bits();
                assert_eq!(bits, *expected, "{case}: element {i} is {value}");
            }
            seen.push(kind.name);
        }
        let is_missing = |kind: &&BlockType| !seen.contains(&kind.name) && kind.name != "F32";
        let missing: Vec<_> = TYPES.iter().filter(is_missing).map(|t| t.name).collect();
        assert_eq!(missing, Vec::<&str>::new(), "types without vectors");
    }
}
