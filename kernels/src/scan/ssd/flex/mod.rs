//! The scan on CPU slices. There is one task for each sequence and group of heads. It goes through the chunks one after
//! the other, and each step of the scan is a small matrix product on strided rows, so that only results are copied.
//!
//! The decays inside a chunk are computed as products along its rows, without logarithms and exponentials. This is
//! accurate for every decay, and faster.

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
