//! Which elements of a parameter belong to which rank.

use std::ops::Range;

use kernels::runtime::collective::Place;

/// The elements of a rank's part of a parameter, including the padding that makes all parts equal.
pub(crate) fn part(elements: usize, world: usize) -> usize {
    elements.div_ceil(world)
}

/// The range of elements, of a flat parameter with so many `elements`, that the rank at `place` updates and whose
/// moments it has. The shares of all ranks together are the parameter; they are equal, except that the last ones may be
/// shorter or empty. The result depends only on the arguments, so that moments can be redistributed to another number
/// of ranks.
pub fn share(elements: usize, place: Place) -> Range<usize> {
    let part = part(elements, place.world);
    let start = (place.rank * part).min(elements);
    start..(start + part).min(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_parameter() {
        for world in 1..9 {
            for elements in 0..40 {
                let shares = (0..world).map(|rank| share(elements, Place { rank, world }));
                let all: Vec<_> = shares.flatten().collect();
                assert_eq!(
                    all,
                    (0..elements).collect::<Vec<_>>(),
                    "{elements} of {world}"
                );
            }
        }
        assert_eq!(share(10, Place { rank: 3, world: 4 }), 9..10);
        assert_eq!(share(3, Place { rank: 3, world: 4 }), 3..3);
    }
}
