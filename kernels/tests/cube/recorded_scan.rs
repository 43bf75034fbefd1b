//! The scan against the recorded vectors, and at extremes.

use burn::backend::Autodiff;

use crate::device::{Cube, with_device};

// The tests on the CPU use all of it.
#[allow(dead_code)]
#[path = "../support/scan.rs"]
mod checks;

/// 32-bit arithmetic over sums of up to 131 terms.
const TOLERANCE: f64 = 2e-4;

#[test]
fn scan_equals_the_recording() {
    with_device(|| checks::scan_equals_the_recording::<Autodiff<Cube>>(TOLERANCE));
}

#[test]
fn extreme_decays_stay_finite() {
    with_device(checks::extreme_decays_stay_finite::<Autodiff<Cube>>);
}
