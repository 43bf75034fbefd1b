//! Into how many segments a walk is cut.
//!
//! One cube for each head of each sequence reads everything once. But the device waits for the last of them: 144 cubes on
//! 132 multiprocessors leave twelve with two, while the others have long had nothing to do. More and shorter cubes even
//! that out, at the price of a walk before them for the states that enter.

/// The time of a cube that has a multiprocessor to itself, as a share of that of one which shares it with as many as it
/// holds.
const ALONE: f64 = 0.6;

/// What more segments must save at least: the estimate is a rough one.
const WORTH: f64 = 0.9;

/// What a walk's cubes, and the states that enter its segments, cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// Cubes that a multiprocessor holds at once.
    pub held: usize,
    /// Of the walk that finds them, as a share of that of the walk itself.
    pub walk: f64,
    /// Of one segment's state in f32 (written, passed, read), in the time of a chunk of the walk.
    pub state: f64,
}

/// Of the walk for outputs, which makes 4 products a chunk and moves twice as much as the one for states.
pub(super) const FORWARD: Price = Price {
    held: 2,
    walk: 0.45,
    state: 0.004,
};

/// Of the walk for gradients, which makes 14 products a chunk.
pub(super) const BACKWARD: Price = Price {
    held: 2,
    walk: 0.15,
    state: 0.001,
};

/// The chunks of a segment, for `walks` walks over `chunks` chunks on `multiprocessors` of them.
pub(super) fn chunks_of_segment(
    walks: usize,
    chunks: usize,
    multiprocessors: usize,
    price: Price,
) -> usize {
    let mut best = (chunks.max(1), f64::INFINITY);
    let mut segments = 1;
    while segments <= chunks {
        let length = chunks.div_ceil(segments);
        let cost = cost(
            walks,
            chunks.div_ceil(length),
            length,
            multiprocessors,
            price,
        );
        if cost < WORTH * best.1 {
            best = (length, cost);
        }
        // 1, 2, 3, 4, 6, 8, 12, 16, ...
        segments = if segments.is_power_of_two() {
            segments + segments.div_ceil(2)
        } else {
            segments / 3 * 4
        };
    }
    best.0
}

/// In the time that a chunk takes a cube which shares its multiprocessor.
fn cost(walks: usize, segments: usize, length: usize, multiprocessors: usize, price: Price) -> f64 {
    let cubes = walks * segments;
    let at_once = price.held * multiprocessors;
    let rest = match (cubes % at_once).div_ceil(multiprocessors) {
        0 => 0.0,
        1 => ALONE,
        sharers => {
            let others = (sharers - 1) as f64 / (price.held - 1) as f64;
            ALONE + (1.0 - ALONE) * others
        }
    };
    let walk = ((cubes / at_once) as f64 + rest) * length as f64;
    if segments == 1 {
        walk
    } else {
        walk * (1.0 + price.walk) + cubes as f64 * price.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(walks: usize, chunks: usize, price: Price) -> usize {
        chunks.div_ceil(chunks_of_segment(walks, chunks, 132, price))
    }

    #[test]
    fn a_device_that_is_full_takes_whole_sequences() {
        for price in [FORWARD, Price { held: 3, ..FORWARD }, BACKWARD] {
            assert_eq!(segments(256, 32, price), 1);
            assert_eq!(segments(264, 1, price), 1);
        }
    }

    #[test]
    fn few_walks_are_cut_until_they_fill_the_device() {
        for chunks in [32, 512, 2048] {
            assert_eq!(segments(32, chunks, BACKWARD), 8, "{chunks}");
        }
        let three = Price { held: 3, ..FORWARD };
        assert_eq!(segments(32, 2048, three), 12);
        assert_eq!(segments(1, 1, three), 1);
    }

    #[test]
    fn walks_that_leave_a_rest_are_cut_on_the_way_back() {
        assert_eq!(segments(144, 16, FORWARD), 1);
        assert_eq!(segments(144, 16, BACKWARD), 4);
    }
}
