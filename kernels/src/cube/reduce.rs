//! Reductions over the units of a cube: one number from one number of each unit. They use shared memory only, because
//! the size of a plane differs between devices, and some devices have no planes.

use cubecl::prelude::*;

/// The operation that combines two numbers.
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

/// Units that fold the numbers of all in [`in_two_steps`].
pub(crate) const FOLDERS: usize = 32;

/// As [`of_cube`], for `units` that are a multiple of [`FOLDERS`]: in two steps, which wait for each other less often than
/// halving would.
#[cube]
pub(crate) fn in_two_steps<N: Numeric>(
    value: N,
    shared: &mut SharedMemory<N>,
    #[comptime] fold: Fold,
    #[comptime] units: usize,
) -> N {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    if unit < FOLDERS {
        let mut folded = shared[unit];
        #[unroll]
        for i in 1..comptime!(units / FOLDERS) {
            folded = fold_of::<N>(folded, shared[unit + i * FOLDERS], fold);
        }
        shared[unit] = folded;
    }
    sync_cube();
    let mut folded = shared[0];
    #[unroll]
    for i in 1..FOLDERS {
        folded = fold_of::<N>(folded, shared[i], fold);
    }
    sync_cube();
    folded
}

#[cube]
fn fold_of<N: Numeric>(a: N, b: N, #[comptime] fold: Fold) -> N {
    let mut folded = a + b;
    if comptime!(fold == Fold::Largest) {
        folded = max(a, b);
    } else if comptime!(fold == Fold::Smallest) {
        folded = min(a, b);
    }
    folded
}
