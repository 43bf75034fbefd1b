//! Small systems of linear equations, in 64 bits.

use rayon::prelude::*;

/// The solutions `x` of `(a + ridge I) x = b`, for `a` symmetric and not negative, `[n, n]`, and `b [n, m]`, both
/// row-major: by Cholesky's decomposition. `ridge` must be positive unless `a` is.
pub(super) fn solve(a: &[f64], b: &[f64], n: usize, ridge: f64) -> Vec<f64> {
    let m = b.len() / n;
    // Row by row of the lower triangle.
    let mut l = vec![0.0; n * n];
    for j in 0..n {
        let (above, below) = l.split_at_mut(j * n);
        let own = &mut below[..n];
        for k in 0..j {
            let other = &above[k * n..][..n];
            own[k] = (a[j * n + k] - dot(&own[..k], &other[..k])) / other[k];
        }
        let squares = dot(&own[..j], &own[..j]);
        own[j] = (a[j * n + j] + ridge - squares)
            .max(f64::MIN_POSITIVE)
            .sqrt();
    }
    // Column by column of `b`, each forward and back.
    let column = |c: usize| {
        let mut x: Vec<f64> = (0..n).map(|i| b[i * m + c]).collect();
        for i in 0..n {
            let row = &l[i * n..][..n];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..n).rev() {
            let value = x[i] / l[i * n + i];
            x[i] = value;
            for k in 0..i {
                x[k] -= l[i * n + k] * value;
            }
        }
        x
    };
    let columns: Vec<Vec<f64>> = (0..m).into_par_iter().map(column).collect();
    let mut x = vec![0.0; n * m];
    for (c, column) in columns.into_iter().enumerate() {
        for (i, value) in column.into_iter().enumerate() {
            x[i * m + c] = value;
        }
    }
    x
}

/// The sum of the products, in several sums beside each other: a single one waits for each addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (of_a, of_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = of_a.remainder().iter().zip(of_b.remainder());
    let rest: f64 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in of_a.zip(of_b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// The product of `a [n, n]` and `x [n, m]`, row-major.
pub(super) fn product(a: &[f64], x: &[f64], n: usize) -> Vec<f64> {
    let m = x.len() / n;
    let row = |(i, sums): (usize, &mut [f64])| {
        for (of_row, x) in a[i * n..][..n].iter().zip(x.chunks(m)) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += of_row * x;
            }
        }
    };
    let mut products = vec![0.0; n * m];
    products.par_chunks_mut(m).enumerate().for_each(row);
    products
}

/// `sums += values`, number by number.
pub(super) fn add(sums: &mut Vec<f64>, values: Vec<f64>) {
    sums.resize(values.len(), 0.0);
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// The mean of the diagonal of `a [n, n]`.
pub(super) fn mean_of_diagonal(a: &[f64], n: usize) -> f64 {
    (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fewer numbers than are added up beside each other, and more.
    #[test]
    fn solutions_solve() {
        let number = |i: usize| ((i * 37 % 19) as f64 - 9.0) / 7.0;
        for (n, m) in [(5, 3), (40, 2)] {
            let root: Vec<f64> = (0..n * n).map(number).collect();
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    a[i * n + j] = (0..n).map(|k| root[i * n + k] * root[j * n + k]).sum();
                }
            }
            let b: Vec<f64> = (0..n * m).map(|i| number(i + 40)).collect();
            let x = solve(&a, &b, n, 0.25);
            for i in 0..n {
                for c in 0..m {
                    let sum: f64 = (0..n).map(|k| a[i * n + k] * x[k * m + c]).sum();
                    let left = sum + 0.25 * x[i * m + c];
                    assert!((product(&a, &x, n)[i * m + c] - sum).abs() < 1e-12 * n as f64);
                    assert!((left - b[i * m + c]).abs() < 1e-10, "{n}: {i}, {c}");
                }
            }
        }
        assert_eq!(mean_of_diagonal(&[1.0, 9.0, 9.0, 3.0], 2), 2.0);
    }
}
