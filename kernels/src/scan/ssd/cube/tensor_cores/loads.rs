//! Matrices on their way from device memory to shared memory.

use cubecl::prelude::*;

use super::super::decay::Decays;
use super::product::{Eight, Matrix, PLANE};
use crate::cube::sigmoid::sigmoid;

/// Vectors that a unit fetches of a matrix.
fn vectors(rows: usize, width: usize, planes: usize) -> usize {
    (rows * width / 8).div_ceil(planes * PLANE)
}

/// A matrix on its way from device memory: in registers, so that the loads of all of a chunk's matrices are
/// under way before any is waited for.
#[derive(CubeType)]
pub struct Fetched<E: Float> {
    values: Array<Vector<E, Eight>>,
    #[cube(comptime)]
    rows: usize,
    #[cube(comptime)]
    width: usize,
    #[cube(comptime)]
    planes: usize,
    /// Whether a matrix of which all rows are present is read by separate code.
    #[cube(comptime)]
    whole: bool,
}

#[cube]
impl<E: Float> Fetched<E> {
    pub fn new(
        #[comptime] rows: usize,
        #[comptime] width: usize,
        #[comptime] planes: usize,
        #[comptime] whole: bool,
    ) -> Fetched<E> {
        Fetched::<E> {
            values: Array::<Vector<E, Eight>>::new(comptime!(vectors(rows, width, planes))),
            rows,
            width,
            planes,
            whole,
        }
    }

    /// Starts to read rows from the element `first` on, of which `present` exist; the others are 0.
    ///
    /// Where all exist nothing is asked for each of them: to zero a vector of 16-bit numbers takes more
    /// instructions than to read it.
    pub fn fetch(
        &mut self,
        from: &Tensor<Vector<E, Eight>>,
        first: usize,
        row_stride: usize,
        present: usize,
    ) {
        let all = comptime!(
            self.whole && (self.rows * self.width / 8).is_multiple_of(self.planes * PLANE)
        );
        if comptime!(all) {
            if present >= self.rows {
                self.fetch_all(from, first, row_stride);
            } else {
                self.fetch_some(from, first, row_stride, present);
            }
        } else {
            self.fetch_some(from, first, row_stride, present);
        }
    }

    fn fetch_all(&mut self, from: &Tensor<Vector<E, Eight>>, first: usize, row_stride: usize) {
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            let at = UNIT_POS as usize + comptime!(i * self.planes * PLANE);
            let row = at / comptime!(self.width / 8);
            let column = at % comptime!(self.width / 8);
            self.values[i] = from[first / 8 + row * (row_stride / 8) + column];
        }
    }

    fn fetch_some(
        &mut self,
        from: &Tensor<Vector<E, Eight>>,
        first: usize,
        row_stride: usize,
        present: usize,
    ) {
        // Of a small matrix the last units have rows beyond it.
        let end = min(present, self.rows.runtime());
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            let at = UNIT_POS as usize + comptime!(i * self.planes * PLANE);
            let row = at / comptime!(self.width / 8);
            let column = at % comptime!(self.width / 8);
            let mut value = Vector::<E, Eight>::new(E::new(0.0));
            if row < end {
                value = from[first / 8 + row * (row_stride / 8) + column];
            }
            self.values[i] = value;
        }
    }

    /// Writes what came to shared memory.
    pub fn store(&self, to: &mut Matrix<E, Eight>) {
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            let at = UNIT_POS as usize + comptime!(i * self.planes * PLANE);
            let row = at / comptime!(self.width / 8);
            let column = at % comptime!(self.width / 8) * 8;
            if row < self.rows {
                to.set(row, column, self.values[i]);
            }
        }
    }

    /// [`Fetched::store`] with row `t` times the decays from its token to the chunk's end, or, backwards,
    /// from the chunk's start.
    pub fn store_decayed(
        &self,
        to: &mut Matrix<E, Eight>,
        decays: &Decays,
        #[comptime] backwards: bool,
    ) {
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            let at = UNIT_POS as usize + comptime!(i * self.planes * PLANE);
            let row = at / comptime!(self.width / 8);
            let column = at % comptime!(self.width / 8) * 8;
            if row < self.rows {
                let decay = decays.towards(row, backwards);
                let value = Vector::<f32, Eight>::cast_from(self.values[i]);
                to.set(row, column, Vector::cast_from(value * Vector::new(decay)));
            }
        }
    }

    /// Of gradients of gated outputs, makes those of the outputs before the gate `silu(z + bias)`; and of
    /// `z` the gradients of the gate's input, but for a factor, the output before the gate. Gives this
    /// unit's part of the sum of the former times `x`, before they are rounded.
    pub fn ungate(
        &mut self,
        z: &mut Fetched<E>,
        bias_c: &ComptimeOption<Tensor<f32>>,
        first_channel: usize,
        x: &Fetched<E>,
    ) -> f32 {
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            let at = UNIT_POS as usize + comptime!(i * self.planes * PLANE);
            let column = at % comptime!(self.width / 8) * 8;
            let mut v = Vector::<f32, Eight>::cast_from(z.values[i]);
            #[comptime]
            match bias_c {
                ComptimeOption::Some(bias) =>
                {
                    #[unroll]
                    for j in 0..8usize {
                        v[j] += bias[first_channel + column + j];
                    }
                }
                ComptimeOption::None => {}
            }
            let one = Vector::<f32, Eight>::new(1.0f32);
            let s = sigmoid::<E, Eight>(v);
            let gradient = Vector::<f32, Eight>::cast_from(self.values[i]);
            let before = gradient * v * s;
            sum += dot(before, Vector::cast_from(x.values[i]));
            self.values[i] = Vector::cast_from(before);
            z.values[i] = Vector::cast_from(gradient * s * (one + v * (one - s)));
        }
        sum
    }

    /// This unit's part of the sum of the elements times those of `other`.
    pub fn times(&self, other: &Fetched<E>) -> f32 {
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..comptime!(vectors(self.rows, self.width, self.planes)) {
            sum += dot(
                Vector::cast_from(self.values[i]),
                Vector::cast_from(other.values[i]),
            );
        }
        sum
    }
}

#[cube]
fn dot(a: Vector<f32, Eight>, b: Vector<f32, Eight>) -> f32 {
    let products = a * b;
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..8usize {
        sum += products[i];
    }
    sum
}
