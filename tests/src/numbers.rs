//! The tests' numbers: from a seed, the same on every machine.

use crate::Values;

/// A rough sequence of numbers, by Marsaglia's xorshift (Journal of Statistical Software, 2003).
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 53 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// In -1 to 1.
    pub fn number(&mut self) -> f64 {
        self.bits() as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// The first numbers of `seed`, in `-scale` to `scale`.
pub fn random(seed: u64, shape: &[usize], scale: f64) -> Values {
    let mut numbers = Numbers::new(seed);
    let count = shape.iter().product();
    let values = (0..count).map(|_| scale * numbers.number()).collect();
    (shape.to_vec(), values)
}
