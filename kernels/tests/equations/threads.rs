//! Gradients while other threads compute theirs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use burn::tensor::Tensor;
use kernels::scan::causal_conv::Activation;

use crate::support::{Exact, values};

type B = Exact;

/// Enough passes that some of them hit the moment at which no tensor holds a node.
const PASSES: usize = 20_000;

/// After each backward pass, a thread removes from all graphs the nodes that no tensor holds. While an op is put on the
/// graph, a slice of a weight that it consumes is such a node, from the weight's second pass on, because its graph does
/// not contain the weight.
#[test]
fn gradients_do_not_depend_on_other_threads() {
    let done = AtomicBool::new(false);
    let device = Default::default();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let x = Tensor::<B, 1>::ones([1], &device).require_grad();
                    (x * 2.0).backward();
                }
            });
        }
        let weight = Tensor::<B, 2>::ones([4, 2], &device).require_grad();
        let mut lost = 0;
        for _ in 0..PASSES {
            let x = Tensor::<B, 3>::ones([1, 3, 2], &device);
            let taps = weight.clone().narrow(0, 1, 2);
            let y = kernels::causal_conv(x, taps, None, None, Activation::Identity);
            let gradients = y.sum().backward();
            // Rows 1 and 2 meet 2 and 3 inputs.
            let found = weight.grad(&gradients);
            let found: Vec<f64> = found.map_or(vec![], |found| values(found).1);
            let expected = [0.0, 0.0, 2.0, 3.0, 2.0, 3.0, 0.0, 0.0];
            lost += usize::from(found != expected);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "wrong gradients of {PASSES}");
    });
}
