//! How many steps of decoding a state has taken since one that was recorded (see [`decode::replay`](crate::decode::replay)).
//!
//! A recorded launch has the same scalar arguments each time. A kernel whose numbers grow from step to step, such as
//! the number of tokens in a cache, adds this counter, which is on the device. In a step that is computed normally, it
//! is 0.

use std::any::TypeId;
use std::cell::RefCell;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;

use super::recording;

type Key = (TypeId, DeviceId);

thread_local! {
    /// Counters that are always 0, for steps that are computed normally.
    static ZEROS: RefCell<Vec<(Key, Handle)>> = const { RefCell::new(Vec::new()) };
}

/// A counter `[1]` that is 0, on the device of `like`.
pub(crate) fn new<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    of(like, like.client.create_from_slice(&0_u32.to_ne_bytes()))
}

/// The counter `[1]` of the step that the thread records, or computes.
pub(crate) fn current<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    if let Some(counter) = recording::counter() {
        return of(like, counter);
    }
    let key = (TypeId::of::<R>(), like.device.id());
    let known = ZEROS.with_borrow(|zeros| {
        let known = zeros.iter().find(|(known, _)| *known == key);
        known.map(|(_, zero)| zero.clone())
    });
    let zero = known.unwrap_or_else(|| {
        let zero = new(like).handle;
        ZEROS.with_borrow_mut(|zeros| zeros.push((key, zero.clone())));
        zero
    });
    of(like, zero)
}

fn of<R: CubeRuntime>(like: &CubeTensor<R>, handle: Handle) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from([1]), handle, DType::U32)
}
