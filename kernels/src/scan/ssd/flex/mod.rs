//! On slices: one task a batch and group of heads, one chunk after the other, each step of the scan
//! a small matrix product on strided rows, so that nothing but the results is copied.
//!
//! The decays inside a chunk come from products along its rows, without a logarithm or an
//! exponential: exact for any decay, and cheaper.

mod backward;
mod decays;
mod forward;
mod heads;
mod rows;

use burn::tensor::Tensor;
use burn_flex::Flex;

use self::backward::backward;
use self::forward::forward;
use super::{ScanInputs, SsdGradients, SsdScan, reference};
use crate::flex::is_f32;

impl SsdScan for Flex {
    fn ssd_scan_forward(
        scan: ScanInputs<Self>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        if fits(&scan) {
            forward(scan, chunk)
        } else {
            reference::forward(scan, chunk)
        }
    }

    fn ssd_scan_backward(
        scan: ScanInputs<Self>,
        dy: Tensor<Self, 4>,
        chunk: usize,
    ) -> SsdGradients<Self> {
        if fits(&scan) && is_f32(&dy) {
            backward(scan, dy, chunk)
        } else {
            reference::backward(scan, dy, chunk)
        }
    }
}

fn fits(scan: &ScanInputs<Flex>) -> bool {
    is_f32(&scan.x)
        && is_f32(&scan.a_log)
        && is_f32(&scan.b)
        && is_f32(&scan.c)
        && scan.initial_state.iter().all(is_f32)
}
