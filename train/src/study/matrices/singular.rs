//! Singular values by Jacobi rotations of columns, in f64, and lower bounds that follow from them.

/// A matrix as its columns, which [`orthogonalise`](Self::orthogonalise) turns into `U S` of its singular value
/// decomposition.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    columns: Vec<Vec<f64>>,
}

/// Cosines between columns below this count as 0, and so do norms relative to the largest one.
const NOTHING: f64 = 1e-14;
/// If no cosine in a pass over all pairs exceeds this, the pass has left none above [`NOTHING`], since each pass
/// squares them.
const NEARLY: f64 = 1e-9;
/// The most passes over all pairs; usually eight are enough.
const PASSES: usize = 60;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Columns {
    /// Appends a column, as long as the others.
    pub(super) fn push(&mut self, column: Vec<f64>) {
        self.columns.push(column);
    }

    pub(super) fn drop_first_row(&mut self) {
        for column in &mut self.columns {
            column.remove(0);
        }
    }

    /// Rotates pairs of columns until all are orthogonal (Hestenes, 1958), sorts them by their norms, the singular
    /// values, and drops those that are 0.
    pub(super) fn orthogonalise(&mut self) {
        for _ in 0..PASSES {
            let mut largest = 0.0f64;
            for q in 1..self.columns.len() {
                let (before, from_q) = self.columns.split_at_mut(q);
                for p in before {
                    largest = largest.max(rotate(p, &mut from_q[0]));
                }
            }
            if largest <= NEARLY {
                break;
            }
        }
        let norms = self.columns.drain(..).map(|column| {
            let norm = dot(&column, &column).sqrt();
            (norm, column)
        });
        let mut sorted: Vec<_> = norms.collect();
        sorted.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let least = sorted.first().map_or(0.0, |(norm, _)| NOTHING * norm);
        let left = sorted.into_iter().filter(|(norm, _)| *norm > least);
        self.columns = left.map(|(_, column)| column).collect();
    }

    /// The first `n` columns, with their norms.
    pub(super) fn strongest(&self, n: usize) -> impl Iterator<Item = (&Vec<f64>, f64)> {
        let columns = self.columns.iter().take(n);
        columns.map(|column| (column, dot(column, column).sqrt()))
    }
}

/// Rotates two columns so that they are orthogonal, and returns the cosine that they had.
fn rotate(p: &mut [f64], q: &mut [f64]) -> f64 {
    let (pp, qq, pq) = (dot(p, p), dot(q, q), dot(p, q));
    let norms = (pp * qq).sqrt();
    if pq.abs() <= NOTHING * norms {
        return 0.0;
    }
    let zeta = (qq - pp) / (2.0 * pq);
    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (p, q) in p.iter_mut().zip(q) {
        (*p, *q) = (cosine * *p - sine * *q, sine * *p + cosine * *q);
    }
    pq.abs() / norms
}

/// A lower bound of the distance between the causal `matrix [l, l]` and any low-rank, state-space dual or general
/// semiseparable matrix of state `n`.
///
/// In such a matrix every block below the diagonal has a rank of at most `n`. So of each block of the target, the
/// singular values after the first `n` are part of the distance, and those of disjoint blocks add up. The blocks used
/// here are the lower left quarter, the lower left quarters of both halves on the diagonal, and so on.
pub(super) fn floor(matrix: &[f64], l: usize, n: usize) -> f64 {
    lost(matrix, l, 0..l, n).sqrt()
}

/// The lower bound of the squared distance within the tokens of `range`.
fn lost(matrix: &[f64], l: usize, range: std::ops::Range<usize>, n: usize) -> f64 {
    // A block has at most as many columns as rows, so its number of columns bounds its rank.
    if range.len() / 2 <= n {
        return 0.0;
    }
    let middle = range.start + range.len() / 2;
    let mut block = Columns::default();
    for j in range.start..middle {
        block.push((middle..range.end).map(|i| matrix[i * l + j]).collect());
    }
    block.orthogonalise();
    let all = block.strongest(usize::MAX);
    let own: f64 = all.skip(n).map(|(_, norm)| norm * norm).sum();
    own + lost(matrix, l, range.start..middle, n) + lost(matrix, l, middle..range.end, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are of the same partition, by another program's singular value decomposition; the recorded
    /// bounds are those of the best partition.
    #[test]
    fn floors_of_recorded_matrices() {
        let goldens = ::tests::Goldens::open("structured/expected");
        let path = ::tests::goldens_dir().join("structured/table.json");
        let table: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (name, state, expected) in [
            ("dense", 4, 0.5942130506829143),
            ("dense", 8, 0.22713876663021837),
            ("local", 4, 0.24279603741113573),
            ("sharp", 8, 0.16032674384765555),
        ] {
            let (_, matrix) = goldens.f64(&format!("attention.{name}"));
            let found = floor(&matrix, 32, state);
            assert!((found - expected).abs() < 1e-12, "{name}, {state}: {found}");
            let best = &table[name][format!("state_{state}")]["lower_bound"];
            assert!(found <= best.as_f64().unwrap(), "{name}, {state}: {found}");
        }
    }

    #[test]
    fn singular_values_of_a_small_matrix() {
        // [[3, 0], [4, 5]] has the singular values sqrt(45) and sqrt(5).
        let mut columns = Columns::default();
        columns.push(vec![3.0, 4.0]);
        columns.push(vec![0.0, 5.0]);
        columns.push(vec![0.0, 0.0]);
        columns.orthogonalise();
        let norms: Vec<f64> = columns.strongest(3).map(|(_, norm)| norm).collect();
        assert_eq!(norms.len(), 2);
        assert!((norms[0] - 45f64.sqrt()).abs() < 1e-12);
        assert!((norms[1] - 5f64.sqrt()).abs() < 1e-12);
    }
}
