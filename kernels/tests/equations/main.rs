//! Every op on the CPU (the scan is in `recorded_scan`): the analytic backward against Burn's autodiff of the reference in
//! f64, the fast CPU path against the reference, and equations written out.

/// Compares `$op` on both backends, and with `$definition` left to Burn's autodiff.
macro_rules! check {
    ($name:expr, $op:ident, $definition:ident, $($argument:expr),*) => {
        let exact = $op::<$crate::support::Exact>($($argument),*);
        $crate::support::agree(&format!("{} in f64", $name), exact.clone(), $definition::<$crate::support::Exact>($($argument),*), $crate::support::F64_TOLERANCE);
        $crate::support::agree(&format!("{} on flex", $name), $op::<$crate::support::Fast>($($argument),*), exact, $crate::support::F32_TOLERANCE);
    };
}

mod adamw;
mod attention;
mod bias;
mod causal_conv;
mod columns;
mod divergence;
mod documents;
mod dtypes;
mod gelu;
mod layer_norm;
mod likeliest;
mod linear;
mod mixing_matrices;
mod predictions;
mod projections;
mod recorded_scan;
mod recurrent_step;
mod rms_norm;
mod rotary;
mod skip_gate;
mod support;
mod swiglu;
mod threads;

#[path = "../support/scan.rs"]
mod scan;
