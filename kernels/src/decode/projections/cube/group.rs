//! Sums of cubes that share rows: each writes what it has, and the last one that is done adds up all of it, in the order of
//! the cubes, whichever is the last.
//!
//! A cube's writes become visible to other cubes in any order, since CubeCL 0.10 has no barrier for them. So what a cube
//! writes says by itself that it is there: between launches all words are [`EMPTY`], which is no sum. The last cube takes
//! each sum, and leaves the word empty, as soon as it sees one; it waits only for words that have been written.

use std::any::TypeId;
use std::cell::RefCell;

use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::plan::Plan;

/// A word without a sum: the bits of a NaN. A counter counts from it, as from -1.
const EMPTY: u32 = u32::MAX;
/// What a sum with those bits becomes: another NaN.
const OTHER_NAN: u32 = 0x7fff_ffff;
/// Words that are made at least, for 32 groups of cubes with the most outputs: a step that makes some is not recorded.
const LEAST: usize = 1 << 17;

type Key = (TypeId, DeviceId);

thread_local! {
    /// Words that are empty between launches. The launches of a thread come one after another.
    static WORDS: RefCell<Vec<(Key, usize, Handle)>> = const { RefCell::new(Vec::new()) };
}

/// Empty words on the device of `like`: at least one for each output of each cube of `groups` groups, and then one for each
/// group.
pub(super) fn exchange<R: CubeRuntime>(
    like: &CubeTensor<R>,
    plan: Plan,
    groups: usize,
) -> CubeTensor<R> {
    let n = groups * (plan.cubes_of_group * plan.outputs() + 1);
    let key = (TypeId::of::<R>(), like.device.id());
    let known = WORDS.with_borrow(|words| {
        let known = words
            .iter()
            .find(|(known, len, _)| *known == key && *len >= n);
        known.map(|(_, len, handle)| (*len, handle.clone()))
    });
    let (len, handle) = known.unwrap_or_else(|| {
        let len = n.next_power_of_two().max(LEAST);
        let handle = like.client.create_from_slice(&vec![0xff; 4 * len]);
        WORDS.with_borrow_mut(|words| words.push((key, len, handle.clone())));
        (len, handle)
    });
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from([len]), handle, DType::U32)
}

/// Writes the unit's `sum` of the cube's share, and says whether the cube is the last of its group. Then the group's counter
/// is empty again, for the next launch.
#[cube]
pub(super) fn is_last(exchange: &Array<Atomic<u32>>, sum: f32, #[comptime] plan: Plan) -> bool {
    let (cube, unit) = (CUBE_POS_X as usize, UNIT_POS as usize);
    let outputs = comptime!(plan.outputs());
    if unit < outputs {
        let bits = u32::reinterpret(sum);
        let bits = select(bits == EMPTY, OTHER_NAN, bits);
        exchange[cube * outputs + unit].store(bits);
    }
    // So that the last cube hardly ever waits.
    sync_cube();
    let mut before = SharedMemory::<u32>::new(1usize);
    let counter = CUBE_COUNT_X as usize * outputs + cube / plan.cubes_of_group;
    if unit == 0 {
        before[0] = exchange[counter].fetch_add(1u32);
    }
    sync_cube();
    let last = before[0] == comptime!(EMPTY.wrapping_add(plan.cubes_of_group as u32 - 1));
    if last && unit == 0 {
        exchange[counter].store(EMPTY);
    }
    last
}

/// What all cubes of the group have of the unit's output.
#[cube]
pub(super) fn total(exchange: &Array<Atomic<u32>>, #[comptime] plan: Plan) -> f32 {
    let outputs = comptime!(plan.outputs());
    let first = CUBE_POS_X as usize / plan.cubes_of_group * plan.cubes_of_group * outputs;
    let mut total = 0.0f32.runtime();
    if (UNIT_POS as usize) < outputs {
        #[unroll]
        for i in 0..plan.cubes_of_group {
            let sum = take(exchange, first + comptime!(i * outputs) + UNIT_POS as usize);
            if comptime!(i == 0) {
                total = sum;
            } else {
                total += sum;
            }
        }
    }
    total
}

/// The sum in a word, which is empty afterwards.
#[cube]
fn take(exchange: &Array<Atomic<u32>>, word: usize) -> f32 {
    let mut bits = exchange[word].swap(EMPTY);
    while bits == EMPTY {
        bits = exchange[word].swap(EMPTY);
    }
    f32::reinterpret(bits)
}
