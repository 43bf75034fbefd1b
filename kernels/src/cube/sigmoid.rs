//! The logistic function.

use cubecl::prelude::*;

/// `1 / (1 + e^-x)`, for tensors of `F`.
///
/// Where these are of half precision it is made by the device's quick exponential and quotient, which are off by less than
/// 1e-5 of the value and take a third of the instructions; many kernels that read and write half precision are
/// limited by their instructions. In f32 it is exact to f32's digits.
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

/// The quick form. What is below -88 counts as that, so that nothing here is infinite, which quick arithmetic may not meet;
/// there the value is 0, or below the smallest normal number.
#[cube(fast_math = FastMath::all())]
fn quick<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = max(x, Vector::<f32, N>::new(-88.0f32));
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + Vector::exp(Vector::<f32, N>::new(0.0f32) - x))
}
