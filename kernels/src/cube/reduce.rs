//! One number from a number of every unit of a cube, by shared memory alone: planes differ in their size
//! from device to device, and some have none.

use cubecl::prelude::*;

/// What becomes of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fold {
    Sum,
    Largest,
    Smallest,
}

/// The fold of a number of every unit, the same for all of them, which call it together; `units` is a
/// power of two.
#[cube]
pub(crate) fn of_cube<N: Numeric>(
    value: N,
    shared: &mut SharedMemory<N>,
    #[comptime] fold: Fold,
    #[comptime] units: usize,
) -> N {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let (own, other) = (shared[unit], shared[unit + half]);
            if comptime!(fold == Fold::Sum) {
                shared[unit] = own + other;
            } else if comptime!(fold == Fold::Largest) {
                shared[unit] = max(own, other);
            } else {
                shared[unit] = min(own, other);
            }
        }
        sync_cube();
        half /= 2;
    }
    let folded = shared[0];
    sync_cube();
    folded
}
