//! Sums of cubes that share rows: each writes what it has, and the last one that is done adds up all of it.
//!
//! No cube waits for another. The sums are added in the order of the cubes, whichever is the last.

use std::any::TypeId;
use std::cell::RefCell;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::plan::Plan;

/// Counters that are made at least: there are hardly ever more groups, and a step that makes some is not recorded.
const LEAST: usize = 64;

type Key = (TypeId, DeviceId);

thread_local! {
    /// Counters that are 0 between launches. The launches of a thread come one after another.
    static COUNTERS: RefCell<Vec<(Key, usize, Handle)>> = const { RefCell::new(Vec::new()) };
}

/// `n` counters that are 0, or more, on the device of `like`.
pub(super) fn counters<R: CubeRuntime>(like: &CubeTensor<R>, n: usize) -> CubeTensor<R> {
    let key = (TypeId::of::<R>(), like.device.id());
    let known = COUNTERS.with_borrow(|counters| {
        let known = counters
            .iter()
            .find(|(known, len, _)| *known == key && *len >= n);
        known.map(|(_, len, handle)| (*len, handle.clone()))
    });
    let (len, handle) = known.unwrap_or_else(|| {
        let len = n.next_power_of_two().max(LEAST);
        let handle = like.client.create_from_slice(&vec![0; 4 * len]);
        COUNTERS.with_borrow_mut(|counters| counters.push((key, len, handle.clone())));
        (len, handle)
    });
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from([len]), handle, DType::U32)
}

/// Writes the unit's `sum` of the cube's share to `sums [cubes, outputs]`, and says whether the cube is the last of its
/// group. Then the group's counter is 0 again, for the next launch.
#[cube]
pub(super) fn is_last(
    sums: &mut Array<f32>,
    counters: &Array<Atomic<u32>>,
    sum: f32,
    #[comptime] plan: Plan,
) -> bool {
    let (cube, unit) = (CUBE_POS_X as usize, UNIT_POS as usize);
    if unit < comptime!(plan.outputs()) {
        sums[cube * comptime!(plan.outputs()) + unit] = sum;
    }
    // Other cubes see the sums before they see that this one is done.
    sync_storage();
    sync_cube();
    let mut before = SharedMemory::<u32>::new(1usize);
    if unit == 0 {
        before[0] = counters[cube / plan.groups].fetch_add(1u32);
    }
    sync_cube();
    let last = before[0] == comptime!(plan.groups as u32 - 1);
    if last {
        if unit == 0 {
            counters[cube / plan.groups].store(0u32);
        }
        sync_storage();
    }
    last
}

/// What all cubes of the group have of the unit's output.
#[cube]
pub(super) fn total(sums: &Array<f32>, #[comptime] plan: Plan) -> f32 {
    let group = CUBE_POS_X as usize / plan.groups * plan.groups;
    // A unit without an output reads one that is there.
    let output = clamp_max(UNIT_POS as usize, comptime!(plan.outputs() - 1));
    let first = group * comptime!(plan.outputs()) + output;
    let mut total = sums[first];
    #[unroll]
    for i in 1..plan.groups {
        total += sums[first + comptime!(i * plan.outputs())];
    }
    total
}
