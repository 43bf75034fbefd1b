//! Reads that are queued.

use burn::tensor::{Int, Tensor};
use kernels::decode::queued_read::queue_read;

use crate::support::*;

#[test]
fn a_read_gives_what_was_there_when_it_was_queued() {
    with_device(|| {
        let device = Default::default();
        let mut ids = Tensor::<Cube, 1, Int>::from_ints([3, -1, 70000], &device);
        let mut reads = vec![];
        for _ in 0..100 {
            reads.push(queue_read(ids.clone()));
            // In place, because nothing but the queued read holds it.
            ids = ids.add_scalar(1);
        }
        for (i, read) in (0..).zip(reads) {
            // Some are dropped.
            if i % 3 > 0 {
                let read: Vec<i64> = read.wait().unwrap().iter::<i64>().collect();
                assert_eq!(read, [3 + i, i - 1, 70000 + i]);
            }
        }
    });
}
