//! Toeplitz matrices from their taps.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// The last `l` rows of the causal Toeplitz matrices of `all` tokens: `taps [h, k]` to `T [h, l, all]`, with
/// `T[i, j] = taps[m + i - j]` for `m = all - l`, and 0 where there is no such tap.
///
/// Differentiable, without an index: the rows of a Toeplitz matrix are one row again and again, each shifted by one.
///
/// # Panics
/// If `l` is 0 or greater than `all`.
pub fn toeplitz_matrix<B: Backend>(taps: Tensor<B, 2>, l: usize, all: usize) -> Tensor<B, 3> {
    assert!((1..=all).contains(&l), "toeplitz_matrix: {l} rows of {all}");
    let [h, k] = taps.dims();
    let like = (&taps.device(), taps.dtype());
    let zeros = |n: usize| Tensor::zeros([h, n], like);
    let taps = if k >= all {
        taps.narrow(1, 0, all)
    } else {
        Tensor::cat(vec![taps, zeros(all - k)], 1)
    };
    // One period of `v[(j - i) mod (all + l)] = T[i, j]`: from the tap of the first row's first column down to that of
    // the token itself, zeros for the tokens after it, and the taps of the rows below.
    let backwards = taps.flip([1]);
    let mut period = vec![backwards.clone().narrow(1, l - 1, all - l + 1), zeros(l)];
    if l > 1 {
        period.push(backwards.narrow(1, 0, l - 1));
    }
    let n = all + l;
    // Not `repeat_dim`: in Burn 0.21 its gradient is that of other elements.
    let repeated = Tensor::cat(period, 1).unsqueeze_dim::<3>(1);
    let repeated = repeated.expand([h, l, n]).reshape([h, l * n]);
    // Rows that are one shorter than the period begin one later in it each time.
    let rows = repeated.narrow(1, 0, l * (n - 1)).reshape([h, l, n - 1]);
    rows.narrow(2, 0, all)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn the_rows_of_small_matrices() {
        let taps = Tensor::<Flex, 2>::from_data([[1.0, 2.0, 3.0]], &Default::default());
        let rows = |l, all| -> Vec<f32> {
            let matrix = toeplitz_matrix(taps.clone(), l, all);
            assert_eq!(matrix.dims(), [1, l, all]);
            matrix.into_data().to_vec().unwrap()
        };
        assert_eq!(rows(1, 1), [1.0]);
        assert_eq!(rows(2, 2), [1.0, 0.0, 2.0, 1.0]);
        // Longer than the taps: what lies further back has no weight.
        let (first, last) = ([1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 2.0, 1.0]);
        let between = [2.0, 1.0, 0.0, 0.0, 3.0, 2.0, 1.0, 0.0];
        let all = [&first[..], &between, &last].concat();
        assert_eq!(rows(4, 4), all);
        assert_eq!(rows(2, 4), all[8..]);
        assert_eq!(rows(1, 4), last);
    }

    /// The gradient of a tap is the sum over its diagonal.
    #[test]
    fn gradients_are_sums_over_diagonals() {
        type B = Autodiff<Flex>;
        let device = Default::default();
        let taps = Tensor::<B, 2>::from_data([[0.5, 0.25]], &device).require_grad();
        let weights = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]];
        let weights = Tensor::<B, 3>::from_data([weights], &device);
        let loss = (toeplitz_matrix(taps.clone(), 3, 3) * weights).sum();
        let gradient = taps.grad(&loss.backward()).expect("a gradient");
        let found: Vec<f32> = gradient.into_data().to_vec().unwrap();
        assert_eq!(found, [1.0 + 5.0 + 9.0, 4.0 + 8.0]);
    }
}
