//! The decays of a chunk, as products along its rows.

use super::heads::Head;
use crate::flex::math::{flushed, sigmoid, vectorised};

/// The decays of one chunk, of `q` tokens.
pub(super) struct Decays {
    pub(super) q: usize,
    /// `L[l, s]`, the product of the decays in `(s, l]`, 0 above the diagonal: `[q, q]`.
    pub(super) inside: Vec<f32>,
    /// The product of the decays from the chunk's start through `l`: `[q]`.
    pub(super) into: Vec<f32>,
}

impl Decays {
    pub(super) fn of(head: &Head, start: usize, q: usize) -> Self {
        let mut inside = vec![0.0; q * q];
        let mut into = vec![1.0; q];
        vectorised(
            #[inline(always)]
            || {
                for l in 0..q {
                    let a = sigmoid(-head.a_log(start + l));
                    into[l] = flushed(a * if l > 0 { into[l - 1] } else { 1.0 });
                    let (above, row) = inside.split_at_mut(l * q);
                    if l > 0 {
                        for (value, previous) in row[..l].iter_mut().zip(&above[(l - 1) * q..]) {
                            *value = flushed(a * previous);
                        }
                    }
                    row[l] = 1.0;
                }
            },
        );
        Self { q, inside, into }
    }

    /// The decay of the whole chunk.
    pub(super) fn whole(&self) -> f32 {
        self.into[self.q - 1]
    }

    /// The product of the decays after each token to the chunk's end: `[q]`.
    pub(super) fn out(&self) -> &[f32] {
        &self.inside[(self.q - 1) * self.q..]
    }
}
