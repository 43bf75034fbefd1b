//! Chooses the number of segments that a walk is split into.
//!
//! With one cube for each head of each sequence, everything is read once, but the device must wait for the last cube.
//! For example, of 144 cubes on 132 multiprocessors, twelve multiprocessors get two cubes, and the others are idle long
//! before these end. More and shorter cubes balance the load, but need another walk before them, which computes the
//! states that enter the segments.

/// The time of a cube that is alone on its multiprocessor, relative to the time of a cube on a full multiprocessor.
const ALONE: f64 = 0.6;

/// More segments are used only if their estimated time is less than this share of the present time, because the
/// estimate is rough.
const WORTH: f64 = 0.9;

/// The costs of a walk's cubes, and of the states that enter its segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// Cubes that a multiprocessor holds at once.
    pub held: usize,
    /// The time of the walk that computes these states, relative to the time of the walk itself.
    pub walk: f64,
    /// The time for the f32 state of one segment (to write, pass on and read it), in units of the walk's time for a
    /// chunk.
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
