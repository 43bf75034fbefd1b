//! Matrix products in full f32, as every reference makes them.
//!
//! On NVIDIA GPUs Burn's own product rounds f32 factors to TF32, which keeps 11 of their 24 bits. There a factor is
//! split into two numbers that TF32 holds, and three products of those are added: all but the last two bits.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// A factor times this (infinite for factors above 4e34, whose product is then NaN), without what the factor itself adds, has 11 bits: Veltkamp's splitting, 2^13 + 1.
const SPLIT: f32 = 8193.0;

/// `a [.., m, k]` times `b [.., k, n]`, in f32 where both are; other dtypes are Burn's product.
///
/// If Burn differentiates it, the gradients on an NVIDIA GPU are products in TF32.
pub(crate) fn product<B: Backend, const D: usize>(
    a: Tensor<B, D>,
    b: Tensor<B, D>,
) -> Tensor<B, D> {
    if a.dtype() == DType::F32 && B::name(&a.device()).contains("cuda") {
        in_three(a, b)
    } else {
        a.matmul(b)
    }
}

/// The product, as a sum of products of numbers of 11 bits. The product of the two rests is below f32's
/// precision.
fn in_three<B: Backend, const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) -> Tensor<B, D> {
    let ([a, a_rest], [b, b_rest]) = (split(a), split(b));
    let small = a.clone().matmul(b_rest) + a_rest.matmul(b.clone());
    small + a.matmul(b)
}

/// `x` as a number of 11 bits and the rest. The rest is a constant to the gradient, which would lose its digits on
/// the way through the differences.
fn split<B: Backend, const D: usize>(x: Tensor<B, D>) -> [Tensor<B, D>; 2] {
    let exact = x.clone().detach();
    let scaled = exact.clone() * SPLIT;
    let first = scaled.clone() - (scaled - exact.clone());
    let rest = exact - first;
    [x - rest.clone(), rest]
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;

    use super::*;

    fn random(shape: [usize; 2]) -> Tensor<Flex, 2> {
        let device = Default::default();
        Flex::seed(&device, 3);
        Tensor::random(shape, Distribution::Normal(0.0, 10.0), &device)
    }

    fn values(x: Tensor<Flex, 2>) -> Vec<f32> {
        x.into_data().to_vec().unwrap()
    }

    #[test]
    fn factors_are_split_into_what_tf32_holds() {
        let x = random([16, 16]);
        let [first, rest] = split(x.clone());
        for ((x, first), rest) in values(x).into_iter().zip(values(first)).zip(values(rest)) {
            assert_eq!(first + rest, x);
            // TF32 has the upper 19 of f32's 32 bits.
            assert_eq!(first.to_bits() & 0x1fff, 0, "{first}");
            assert!(rest.abs() <= x.abs() / 2048.0, "{rest} of {x}");
        }
    }

    #[test]
    fn three_products_are_the_product() {
        let (a, b) = (random([9, 33]), random([33, 5]));
        let expected = values(a.clone().matmul(b.clone()));
        let found = values(in_three(a, b));
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 1e-6 * largest,
                "{found} {expected}"
            );
        }
    }
}
