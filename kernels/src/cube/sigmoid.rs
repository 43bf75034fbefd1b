//! The logistic function.

use cubecl::prelude::*;

/// `1 / (1 + e^-x)`, for tensors of `F`.
///
/// If `F` is half precision, this uses the device's fast exponential and division. Their relative error is below 1e-5,
/// and they take a third of the instructions; many kernels that read and write half precision are limited by
/// instructions. For f32 the result is accurate to the precision of f32.
#[cube]
pub fn sigmoid<F: Float, N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let bytes = F::type_size().comptime();
    if comptime!(bytes < 4) {
        quick(x)
    } else {
        let one = Vector::<f32, N>::new(1.0f32);
        one / (one + Vector::exp(Vector::<f32, N>::new(0.0f32) - x))
    }
}

/// The fast form. Inputs below -88 are replaced by -88, so that no intermediate value is infinite, because fast
/// arithmetic does not handle infinities. There the result is 0 or below the smallest normal number.
#[cube(fast_math = FastMath::all())]
fn quick<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = max(x, Vector::<f32, N>::new(-88.0f32));
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + Vector::exp(Vector::<f32, N>::new(0.0f32) - x))
}
