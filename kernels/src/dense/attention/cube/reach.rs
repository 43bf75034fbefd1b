//! Which keys a query sees, and which tiles of keys or queries have something to do with each other.

use cubecl::prelude::*;

/// A [`Window`](crate::dense::attention::Window), which kernels read if they are compiled as `windowed`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Reach {
    pub window: usize,
    pub sinks: usize,
}

/// Whether the query at `position` sees `key`.
#[cube]
pub(super) fn sees(reach: Reach, position: usize, key: usize, #[comptime] windowed: bool) -> bool {
    let mut seen = key <= position;
    if comptime!(windowed) {
        seen = seen && (position < key + reach.window || key < reach.sinks);
    }
    seen
}

/// Queries, by their positions, and keys, from the first to the last.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Block {
    pub position: usize,
    pub last_position: usize,
    pub key: usize,
    pub last_key: usize,
}

/// Whether a query may see a key. If not, none does.
#[cube]
pub(super) fn some_see(reach: Reach, block: Block, #[comptime] windowed: bool) -> bool {
    let mut seen = block.key <= block.last_position;
    if comptime!(windowed) {
        let near = block.position < block.last_key + reach.window;
        seen = seen && (near || block.key < reach.sinks);
    }
    seen
}

/// Whether all queries see all keys, by their positions or as sinks.
#[cube]
pub(super) fn all_see(reach: Reach, block: Block, #[comptime] windowed: bool) -> bool {
    let mut seen = block.last_key <= block.position;
    if comptime!(windowed) {
        let near = block.last_position < block.key + reach.window;
        seen = seen && (near || block.last_key < reach.sinks);
    }
    seen
}

/// The tiles of keys that a block of queries meets: those of the sinks, and after a gap those of the windows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct KeyTiles {
    pub count: usize,
    sinks: usize,
    gap: usize,
}

/// Of queries from `position` on, which see no keys from `end` on.
#[cube]
pub(super) fn key_tiles(
    reach: Reach,
    position: usize,
    end: usize,
    #[comptime] tile: usize,
    #[comptime] windowed: bool,
) -> KeyTiles {
    let mut sinks = 0usize;
    let mut gap = 0usize;
    if comptime!(windowed) {
        let next = position + 1;
        let first = (next - min(next, reach.window)) / tile;
        sinks = min(reach.sinks.div_ceil(tile), first);
        gap = first - sinks;
    }
    KeyTiles {
        count: end.div_ceil(tile) - gap,
        sinks,
        gap,
    }
}

/// The `i`-th of these tiles.
#[cube]
pub(super) fn nth(tiles: KeyTiles, i: usize, #[comptime] windowed: bool) -> usize {
    let mut tile = i;
    if comptime!(windowed) {
        tile = select(i < tiles.sinks, i, i + tiles.gap);
    }
    tile
}

/// The tiles of queries that a block of keys meets.
#[derive(CubeType, Clone, Copy)]
pub(super) struct QueryTiles {
    pub first: usize,
    pub count: usize,
}

/// Of `keys` keys from `key` on, with `l` queries that are the last of `t` positions.
#[cube]
#[allow(clippy::collapsible_if)] // a kernel without a window is compiled without the inner one
pub(super) fn query_tiles(
    reach: Reach,
    key: usize,
    l: usize,
    t: usize,
    #[comptime] keys: usize,
    #[comptime] tile: usize,
    #[comptime] windowed: bool,
) -> QueryTiles {
    // Positions that have no query.
    let without = t - l;
    let first = (max(key, without) - without) / tile;
    let mut end = l;
    if comptime!(windowed) {
        if key >= reach.sinks {
            // The window of the position here begins after the last of the keys.
            let beyond = key + comptime!(keys - 1) + reach.window;
            end = min(l, max(beyond, without) - without);
        }
    }
    QueryTiles {
        first,
        count: max(end.div_ceil(tile), first) - first,
    }
}
