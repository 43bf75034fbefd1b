//! Which keys a query sees, and which tiles of queries and keys have at least one visible pair.

// Compile-time conditions are kept in their own `if`s, apart from runtime conditions, so that a kernel is compiled
// without the branches that its rule does not need.
#![allow(clippy::collapsible_if, clippy::collapsible_else_if)]

use cubecl::prelude::*;

use crate::cube::documents::{RowTokens, start_of};

/// The rule that hides keys from queries. It is known when a kernel is compiled; without a window and documents, the
/// kernel has no code for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// A window.
    pub windowed: bool,
    /// The starts of documents. Then there are as many queries as keys, so that a query's position is its place.
    pub packed: bool,
}

/// The starts of documents, `[b, l]`, for kernels that are compiled as packed.
pub(super) type Starts = ComptimeOption<Array<i32>>;

/// A [`Window`](crate::dense::attention::Window), which kernels read if they are compiled as windowed.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Reach {
    pub window: usize,
    pub sinks: usize,
}

/// Whether the query at `position` sees `key`.
#[cube]
pub(super) fn sees(
    reach: Reach,
    starts_bl: &Starts,
    tokens: RowTokens,
    position: usize,
    key: usize,
    #[comptime] rule: Rule,
) -> bool {
    let mut seen = key <= position;
    if comptime!(rule.packed) {
        let start = start_of(starts_bl, tokens, position);
        seen = seen && start <= key;
        if comptime!(rule.windowed) {
            seen = seen && (position < key + reach.window || key < start + reach.sinks);
        }
    } else {
        if comptime!(rule.windowed) {
            seen = seen && (position < key + reach.window || key < reach.sinks);
        }
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
    pub tokens: RowTokens,
}

/// Whether a query may see a key. If not, none does. Starts never decrease, so that the first query sees furthest back.
#[cube]
pub(super) fn some_see(
    reach: Reach,
    starts_bl: &Starts,
    block: Block,
    #[comptime] rule: Rule,
) -> bool {
    let mut seen = block.key <= block.last_position;
    if comptime!(rule.packed) {
        seen = seen && start_of(starts_bl, block.tokens, block.position) <= block.last_key;
    } else {
        if comptime!(rule.windowed) {
            let near = block.position < block.last_key + reach.window;
            seen = seen && (near || block.key < reach.sinks);
        }
    }
    seen
}

/// Whether all queries see all keys, by their positions or as sinks; the sinks of documents do not count here.
#[cube]
pub(super) fn all_see(
    reach: Reach,
    starts_bl: &Starts,
    block: Block,
    #[comptime] rule: Rule,
) -> bool {
    let mut seen = block.last_key <= block.position;
    if comptime!(rule.packed) {
        seen = seen && start_of(starts_bl, block.tokens, block.last_position) <= block.key;
        if comptime!(rule.windowed) {
            seen = seen && block.last_position < block.key + reach.window;
        }
    } else {
        if comptime!(rule.windowed) {
            let near = block.last_position < block.key + reach.window;
            seen = seen && (near || block.last_key < reach.sinks);
        }
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

/// Of queries from `position` on, which see no keys from `end` on. Those of documents begin where the first query's
/// document does, whatever the window.
#[cube]
pub(super) fn key_tiles(
    reach: Reach,
    starts_bl: &Starts,
    tokens: RowTokens,
    position: usize,
    end: usize,
    #[comptime] tile: usize,
    #[comptime] rule: Rule,
) -> KeyTiles {
    let mut sinks = 0usize;
    let mut gap = 0usize;
    if comptime!(rule.packed) {
        gap = start_of(starts_bl, tokens, position) / tile;
    } else {
        if comptime!(rule.windowed) {
            let next = position + 1;
            let first = (next - min(next, reach.window)) / tile;
            sinks = min(reach.sinks.div_ceil(tile), first);
            gap = first - sinks;
        }
    }
    KeyTiles {
        count: end.div_ceil(tile) - gap,
        sinks,
        gap,
    }
}

/// The `i`-th of these tiles.
#[cube]
pub(super) fn nth(tiles: KeyTiles, i: usize, #[comptime] rule: Rule) -> usize {
    let mut tile = i;
    if comptime!(rule.windowed || rule.packed) {
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

/// Of `keys` keys from `key` on, with `l` queries that are the last of `t` positions. Those of documents end with the
/// document of the last key, whatever the window.
#[cube]
pub(super) fn query_tiles(
    reach: Reach,
    starts_bl: &Starts,
    tokens: RowTokens,
    key: usize,
    l: usize,
    t: usize,
    #[comptime] keys: usize,
    #[comptime] tile: usize,
    #[comptime] rule: Rule,
) -> QueryTiles {
    // Positions that have no query.
    let without = t - l;
    let first = (max(key, without) - without) / tile;
    let mut end = l;
    if comptime!(rule.packed) {
        end = key;
        for number in first..l.div_ceil(tile) {
            if start_of(starts_bl, tokens, number * tile) <= key + comptime!(keys - 1) {
                end = min(l, (number + 1) * tile);
            }
        }
    } else {
        if comptime!(rule.windowed) {
            if key >= reach.sinks {
                // The window of the position here begins after the last of the keys.
                let beyond = key + comptime!(keys - 1) + reach.window;
                end = min(l, max(beyond, without) - without);
            }
        }
    }
    QueryTiles {
        first,
        count: max(end.div_ceil(tile), first) - first,
    }
}
