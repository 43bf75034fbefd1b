//! Which elements of a parameter are whose.

use std::ops::Range;

use kernels::runtime::collective::Place;

/// The elements of a rank's part of a parameter, those that fill it up to an equal part included.
pub(crate) fn part(elements: usize, world: usize) -> usize {
    elements.div_ceil(world)
}

/// The elements of a flat parameter of so many `elements` whose moments the rank at `place` has, and which it updates.
/// The shares of all ranks are the parameter: equal ones, but that the last may be shorter or empty. It is a function of
/// these numbers alone, so that moments can be shared out anew among another number of ranks.
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
