//! Values with standard errors.

/// A value, and its standard error due to the choice of documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error; `None` for a single document.
    pub stderr: Option<f64>,
}

impl Estimate {
    /// The sum of `totals` divided by the sum of `weights`; each document has one of each. `None` if all weights are 0.
    /// Documents with weight 0 do not count.
    ///
    /// The error is that of a ratio estimator, by linearisation: the standard error of `total - value * weight`, whose
    /// sum is 0. If all weights are 1, it is the standard error of a mean.
    pub fn ratio(totals: &[f64], weights: &[f64]) -> Option<Self> {
        let sum: f64 = weights.iter().sum();
        if sum == 0.0 {
            return None;
        }
        let value = totals.iter().sum::<f64>() / sum;
        let n = weights.iter().filter(|weight| **weight != 0.0).count() as f64;
        let both = totals.iter().zip(weights);
        let squares = both.map(|(total, weight)| (total - value * weight).powi(2));
        let squares: f64 = squares.sum();
        let stderr = (n > 1.0).then(|| (squares * n / (n - 1.0)).sqrt() / sum.abs());
        Some(Self { value, stderr })
    }

    /// The mean of estimates from different documents; `None` if there are none.
    pub fn mean(estimates: &[Self]) -> Option<Self> {
        if estimates.is_empty() {
            return None;
        }
        let n = estimates.len() as f64;
        let variances = estimates.iter().map(|e| Some(e.stderr?.powi(2)));
        let variance: Option<f64> = variances.sum();
        Some(Self {
            value: estimates.iter().map(|e| e.value).sum::<f64>() / n,
            stderr: variance.map(|variance| variance.sqrt() / n),
        })
    }

    /// The estimate of `f(value)`; `slope` is the derivative of `f` there.
    pub fn map(self, f: impl Fn(f64) -> f64, slope: f64) -> Self {
        Self {
            value: f(self.value),
            stderr: self.stderr.map(|stderr| stderr * slope.abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_one_give_a_mean_and_its_error() {
        // Mean 0.5, deviation sqrt(1/3), of four.
        let of = Estimate::ratio(&[0.0, 1.0, 1.0, 0.0], &[1.0; 4]).unwrap();
        assert_eq!(of.value, 0.5);
        assert!((of.stderr.unwrap() - (1.0 / 12.0_f64).sqrt()).abs() < 1e-12);
        let one = Estimate::ratio(&[3.0], &[2.0]).unwrap();
        assert_eq!((one.value, one.stderr), (1.5, None));
        assert_eq!(Estimate::ratio(&[0.0, 0.0], &[0.0, 0.0]), None);
    }

    /// Three of four items in one document, one of two in the other: 4 of 6.
    #[test]
    fn items_count_alike_in_documents_of_any_size() {
        let of = Estimate::ratio(&[3.0, 1.0, 0.0], &[4.0, 2.0, 0.0]).unwrap();
        assert!((of.value - 4.0 / 6.0).abs() < 1e-12);
        // Residuals 1/3 and -1/3; sqrt(2 * 2/9) / 6.
        assert!((of.stderr.unwrap() - (4.0 / 9.0_f64).sqrt() / 6.0).abs() < 1e-12);
    }

    #[test]
    fn errors_of_different_documents_add_up() {
        let of = |value, stderr| Estimate { value, stderr };
        let mean = Estimate::mean(&[of(1.0, Some(0.3)), of(2.0, Some(0.4))]).unwrap();
        assert_eq!(mean.value, 1.5);
        assert!((mean.stderr.unwrap() - 0.25).abs() < 1e-12);
        let unknown = Estimate::mean(&[of(1.0, Some(0.3)), of(2.0, None)]);
        assert_eq!(unknown.unwrap().stderr, None);
        assert_eq!(Estimate::mean(&[]), None);
    }
}
