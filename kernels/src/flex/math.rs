//! Functions of one f32 without branches or calls, so that loops over them vectorise.

/// The lanes over which sums are kept apart, so that they vectorise; one AVX-512 register.
pub(crate) const LANES: usize = 16;

/// Runs `f` compiled for the widest vectors of this processor.
///
/// The loops in `f` must be inlined into it, or they are compiled for the build's baseline.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x` to about one unit in the last place; clamped so that it is never 0, infinite or subnormal.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that its product with the exponent is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let exponent = shifted - ROUND;
    let r = exponent.mul_add(-LN2_LOW, exponent.mul_add(-LN2_HIGH, x));
    // Taylor's series on |r| <= ln(2) / 2: the first term left out is below 6e-9.
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(power)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, to about 1e-7 absolutely.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The sum of `f(x)` over a slice, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for k in 0..LANES {
            lanes[k] += f(block[k]);
        }
    }
    let rest: f32 = rest.iter().map(|&x| f(x)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The sum of `f(x, y)` over two slices, as far as both go, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let n = x.len().min(y.len());
    let (x_blocks, x_rest) = x[..n].as_chunks::<LANES>();
    let (y_blocks, y_rest) = y[..n].as_chunks::<LANES>();
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for k in 0..LANES {
            lanes[k] += f(x[k], y[k]);
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(&x, &y)| f(x, y)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The dot product, as far as both go.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_pairs(x, y, |x, y| x * y)
}

/// The largest `x`.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// The largest `|x|`, of those that are numbers.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            let size = value.abs();
            *lane = if size > *lane { size } else { *lane };
        }
    }
    let sizes = lanes.iter().copied().chain(rest.iter().map(|x| x.abs()));
    sizes.fold(0.0, f32::max)
}

/// `x`, a product of decays, or 0 if it is below the smallest normal number: arithmetic with subnormal numbers is slow.
#[inline(always)]
pub(crate) fn flushed(x: f32) -> f32 {
    if x < f32::MIN_POSITIVE { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_the_last_places() {
        for k in -860_000..870_000 {
            let x = k as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 1.2e-7, "exp({x}) is off by {error:e} of itself");
        }
    }

    #[test]
    fn tanh_and_sigmoid_saturate() {
        for (x, y) in [(-1e9, -1.0), (1e9, 1.0), (0.0, 0.0)] {
            assert!((tanh(x) - y).abs() < 1e-7);
            assert!((sigmoid(x) - (y + 1.0) / 2.0).abs() < 1e-7);
        }
        assert!(exp(f32::NAN).is_nan(), "a fault must stay visible");
    }

    #[test]
    fn sum_and_max_take_every_element() {
        let x: Vec<f32> = (0..37).map(|i| (i * 7 % 37) as f32).collect();
        assert_eq!(sum(&x, |x| x), 666.0);
        assert_eq!(dot(&x, &[2.0; 40]), 1332.0);
        assert_eq!(max(&x), 36.0);
        assert_eq!(max(&x[..3]), 14.0);
        let x: Vec<f32> = x.iter().map(|x| 1.0 - x).collect();
        assert_eq!(largest(&x), 35.0);
        assert_eq!(largest(&x[..3]), 13.0);
        assert_eq!(largest(&[f32::NAN, -2.0]), 2.0);
    }
}
