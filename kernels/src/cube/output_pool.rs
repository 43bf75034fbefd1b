//! A pool that reuses the memory of the outputs of decoding's ops.
//!
//! To reserve memory, CubeCL 0.10 searches all reservations of the same page and records a backtrace for an error that
//! does not occur. This takes about 30 us, and a decoding step would do it seventy times. Here each thread keeps the
//! memory of its last outputs, and uses it again when nothing else holds it. Queued work still reads the old content
//! correctly, because all launches of a thread go to one stream, in order.

use std::any::TypeId;
use std::cell::RefCell;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;

use super::{empty, recording};

/// Bytes of what is kept, at most.
const LARGEST: usize = 4 << 20;
/// Outputs of one size that are kept.
const KEPT: usize = 8;

/// How an op allocates an output `[b, d]`, on the device of a tensor.
pub(crate) type Allocate<R> = fn(&CubeTensor<R>, [usize; 2], DType) -> CubeTensor<R>;

type Key = (TypeId, DeviceId, usize);

thread_local! {
    /// There are only a few sizes, so a linear search is faster than a hash table.
    static OUTPUTS: RefCell<Vec<(Key, Vec<Handle>)>> = RefCell::default();
}

/// A tensor to be written, in rows without padding, on the device of `like`. The pool also holds its memory, so that no
/// other op gets it and writes over it.
pub(crate) fn output<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor<R> {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    if bytes > LARGEST {
        return empty(like, shape, dtype);
    }
    let handle =
        recording::output(bytes, || like.client.empty(bytes)).unwrap_or_else(|| kept(like, bytes));
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from(shape), handle, dtype)
}

/// Memory that this thread keeps, and that nothing else holds now.
fn kept<R: CubeRuntime>(like: &CubeTensor<R>, bytes: usize) -> Handle {
    let key = (TypeId::of::<R>(), like.device.id(), bytes);
    let taken = OUTPUTS.with_borrow(|outputs| {
        let (_, kept) = outputs.iter().find(|(known, _)| *known == key)?;
        kept.iter().find(|handle| handle.can_mut()).cloned()
    });
    taken.unwrap_or_else(|| {
        let handle = like.client.empty(bytes);
        OUTPUTS.with_borrow_mut(|outputs| {
            match outputs.iter_mut().find(|(known, _)| *known == key) {
                Some((_, kept)) if kept.len() < KEPT => kept.push(handle.clone()),
                Some(_) => {}
                None => outputs.push((key, vec![handle.clone()])),
            }
        });
        handle
    })
}
