//! Translates a product of row-major matrices for a library whose matrices are column-major.
//!
//! A row-major matrix is, read as column-major, its transpose. So `out [t, o] = left [t, k] right [k, o]` is to the
//! library `D [o, t] = A [o, k] B [k, t]`, where `A` is the right matrix and `B` is the left one. A row-major matrix
//! becomes a matrix with swapped sizes, whose columns are as far apart as the rows were. A matrix that is transposed in
//! memory becomes one that the library must transpose.

use burn::tensor::DType;

/// A matrix in rows, or transposed in memory: then its columns are what lies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    /// Elements from one row to the next, or from one column to the next where `transposed`.
    pub distance: usize,
    pub transposed: bool,
}

impl Matrix {
    /// That of a tensor with these strides; `None` where neither rows nor columns lie together.
    pub(super) fn of([rows, columns]: [usize; 2], strides: [usize; 2]) -> Option<Self> {
        // Of an axis of one element, the stride says nothing.
        let neighbours = |axis: usize, size: usize| size == 1 || strides[axis] == 1;
        let apart = |axis: usize, size: usize, width: usize| match size {
            1 => Some(width),
            _ => (strides[axis] >= width).then_some(strides[axis]),
        };
        let in_rows = neighbours(1, columns).then(|| apart(0, rows, columns));
        let in_columns = neighbours(0, rows).then(|| apart(1, columns, rows));
        let (distance, transposed) = match (in_rows.flatten(), in_columns.flatten()) {
            (Some(distance), _) => (distance, false),
            (None, Some(distance)) => (distance, true),
            (None, None) => return None,
        };
        Some(Self {
            rows,
            columns,
            distance,
            transposed,
        })
    }

    pub(super) fn transpose(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }
}

/// What is done to a product before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    None,
    /// Adds a number for each column of the output in rows.
    Bias,
    /// `gelu_new`.
    Gelu,
    /// [`Epilogue::Bias`], then [`Epilogue::Gelu`].
    BiasGelu,
    /// Writes the sums of the left matrix' rows besides: the product sums over the same axis.
    SumLeft,
}

impl Epilogue {
    /// Whether there is a vector that it reads or writes.
    pub(super) fn has_vector(self) -> bool {
        !matches!(self, Self::None | Self::Gelu)
    }
}

/// One of the library's factors: transposed or not, its columns so far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    pub transposed: bool,
    pub distance: usize,
}

/// A product as the library sees it: `D [m, n] = A [m, k] B [k, n] + C [m, n]` in columns, where `A` and
/// `B` are transposed first as they say. All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub dtype: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Factor,
    pub b: Factor,
    /// How far apart the columns of `C` are, where one is added.
    pub c: Option<usize>,
    /// How far apart the columns of `D` are.
    pub d: usize,
    pub epilogue: Epilogue,
    /// Bytes of which the addresses of A, B, C, D and the epilogue's vector are multiples.
    pub alignments: [u32; 5],
}

impl Problem {
    /// `out = left right + onto`, in rows; `out` and `onto` not transposed.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    pub(super) fn new(
        dtype: DType,
        left: Matrix,
        right: Matrix,
        onto: Option<Matrix>,
        out: Matrix,
        epilogue: Epilogue,
    ) -> Self {
        assert_eq!(left.columns, right.rows, "contracted sizes");
        for matrix in onto.iter().chain([&out]) {
            let sizes = [matrix.rows, matrix.columns];
            assert_eq!(sizes, [left.rows, right.columns]);
            assert!(!matrix.transposed, "the output lies in rows");
        }
        // In rows, `right [k, m]` is A as it is, and `left [n, k]` is B as it is.
        let factor = |of: Matrix| Factor {
            transposed: of.transposed,
            distance: of.distance,
        };
        Self {
            dtype,
            m: right.columns,
            n: left.rows,
            k: left.columns,
            a: factor(right),
            b: factor(left),
            c: onto.map(|onto| onto.distance),
            d: out.distance,
            epilogue,
            alignments: [256; 5],
        }
    }

    /// Rows and columns of A as it is stored, in columns.
    pub(super) fn stored_a(&self) -> [usize; 2] {
        if self.a.transposed {
            [self.k, self.m]
        } else {
            [self.m, self.k]
        }
    }

    /// Rows and columns of B as it is stored, in columns.
    pub(super) fn stored_b(&self) -> [usize; 2] {
        if self.b.transposed {
            [self.n, self.k]
        } else {
            [self.k, self.n]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of whole numbers with its memory.
    struct Stored {
        matrix: Matrix,
        memory: Vec<i64>,
    }

    impl Stored {
        /// As a tensor of these strides would be.
        fn new(shape: [usize; 2], strides: [usize; 2], seed: i64) -> Self {
            let matrix = Matrix::of(shape, strides).expect("a matrix");
            let len = (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] + 1;
            let number = |i: usize| (i as i64 * 37 + seed * 101) % 19 - 9;
            let memory = (0..len).map(number).collect();
            Self { matrix, memory }
        }

        fn at(&self, strides: [usize; 2], row: usize, column: usize) -> i64 {
            self.memory[row * strides[0] + column * strides[1]]
        }
    }

    /// As the library does it: in columns, from what the problem says and nothing else.
    fn multiply(problem: &Problem, a: &[i64], b: &[i64], c: &[i64], bias: &[i64]) -> Vec<i64> {
        let Problem { m, n, k, .. } = *problem;
        let mut d = vec![i64::MIN; problem.d * (n - 1) + m];
        let [a_rows, a_columns] = problem.stored_a();
        let [b_rows, b_columns] = problem.stored_b();
        let element = |of: Factor, [rows, columns]: [usize; 2], row: usize, column: usize| {
            let (row, column) = if of.transposed {
                (column, row)
            } else {
                (row, column)
            };
            assert!(row < rows && column < columns && rows <= of.distance);
            row + column * of.distance
        };
        for column in 0..n {
            for row in 0..m {
                let mut sum = match problem.c {
                    Some(distance) => c[row + column * distance],
                    None => 0,
                };
                for i in 0..k {
                    let left = element(problem.a, [a_rows, a_columns], row, i);
                    let right = element(problem.b, [b_rows, b_columns], i, column);
                    sum += a[left] * b[right];
                }
                if problem.epilogue == Epilogue::Bias {
                    sum += bias[row];
                }
                d[row + column * problem.d] = sum;
            }
        }
        d
    }

    #[test]
    fn products_in_rows_come_out_in_rows() {
        let padded = |columns: usize| [columns + 3, 1];
        let bias: Vec<i64> = (0..64).map(|i| i * i % 23).collect();
        for [t, k, o] in [
            [1, 1, 1],
            [1, 5, 3],
            [4, 1, 7],
            [6, 3, 1],
            [5, 4, 3],
            [2, 8, 9],
        ] {
            for left_strides in [[k, 1], padded(k), [1, t], [1, t + 2]] {
                for right_strides in [[o, 1], padded(o), [1, k], [1, k + 5]] {
                    for onto in [None, Some([o, 1]), Some(padded(o))] {
                        let left = Stored::new([t, k], left_strides, 1);
                        let right = Stored::new([k, o], right_strides, 2);
                        let added = onto.map(|strides| Stored::new([t, o], strides, 3));
                        let out = Matrix::of([t, o], [o, 1]).expect("contiguous");
                        let problem = Problem::new(
                            DType::F32,
                            left.matrix,
                            right.matrix,
                            added.as_ref().map(|added| added.matrix),
                            out,
                            Epilogue::Bias,
                        );
                        let c = added.as_ref().map_or(&[][..], |added| &added.memory);
                        let d = multiply(&problem, &right.memory, &left.memory, c, &bias);
                        for row in 0..t {
                            for column in 0..o {
                                let mut sum = bias[column];
                                if let (Some(added), Some(strides)) = (&added, onto) {
                                    sum += added.at(strides, row, column);
                                }
                                for i in 0..k {
                                    sum += left.at(left_strides, row, i)
                                        * right.at(right_strides, i, column);
                                }
                                assert_eq!(
                                    d[row * o + column],
                                    sum,
                                    "{t} x {k} x {o}, {left_strides:?} {right_strides:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_linear_layer_and_its_gradients_are_the_usual_three() {
        let (t, i, o) = (5, 3, 4);
        let rows = |rows, columns| Matrix::of([rows, columns], [columns, 1]).expect("in rows");
        let (x, weight, dy) = (rows(t, i), rows(o, i), rows(t, o));
        let problem =
            |left, right, out| Problem::new(DType::BF16, left, right, None, out, Epilogue::None);
        let sizes = |of: Problem| [of.m, of.n, of.k];
        let transposed = |of: Problem| [of.a.transposed, of.b.transposed];

        let forward = problem(x, weight.transpose(), rows(t, o));
        assert_eq!(sizes(forward), [o, t, i]);
        assert_eq!(transposed(forward), [true, false]);
        assert_eq!(
            [forward.a.distance, forward.b.distance, forward.d],
            [i, i, o]
        );

        let dx = problem(dy, weight, rows(t, i));
        assert_eq!(sizes(dx), [i, t, o]);
        assert_eq!(transposed(dx), [false, false]);
        assert_eq!([dx.a.distance, dx.b.distance, dx.d], [i, o, i]);

        // Its `n` are the outputs, over whose tokens `k` the bias' gradient sums B.
        let dweight = problem(dy.transpose(), x, rows(o, i));
        assert_eq!(sizes(dweight), [i, o, t]);
        assert_eq!(transposed(dweight), [false, true]);
        assert_eq!(
            [dweight.a.distance, dweight.b.distance, dweight.d],
            [i, o, i]
        );
    }

    #[test]
    fn what_overlaps_or_is_scattered_is_no_matrix() {
        assert_eq!(Matrix::of([3, 4], [0, 1]), None, "a row repeated");
        assert_eq!(Matrix::of([3, 4], [8, 2]), None, "every other element");
        assert_eq!(Matrix::of([3, 4], [1, 0]), None, "a column repeated");
        assert!(Matrix::of([1, 4], [0, 1]).is_some(), "one row");
        let column = Matrix::of([4, 1], [7, 0]).expect("one column of a wider matrix");
        assert_eq!((column.distance, column.transposed), (7, false));
    }
}
