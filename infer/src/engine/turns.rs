//! Turns: what several owners want is served to one owner after the other.

use std::collections::VecDeque;

/// Waiting items, each with an owner. Owners take turns, however many items each of them has; the items of one owner
/// keep their order.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// The owners in the order of their turns. Each has at least one item.
    owners: VecDeque<(u64, VecDeque<T>)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        let owners = VecDeque::new();
        Self { owners }
    }
}

impl<T> Turns<T> {
    /// Adds an item behind the others of its owner. An owner without items comes behind all others.
    pub(super) fn push(&mut self, owner: u64, item: T) {
        // Most often it is the newest owner, so the search begins there.
        let mut owners = self.owners.iter_mut().rev();
        match owners.find(|(other, _)| *other == owner) {
            Some((_, items)) => items.push_back(item),
            None => self.owners.push_back((owner, VecDeque::from([item]))),
        }
    }

    /// Takes the first item of the first owner for which `may` is true, and moves this owner behind the others.
    pub(super) fn take(&mut self, may: impl Fn(u64) -> bool) -> Option<T> {
        let turn = self.owners.iter().position(|(owner, _)| may(*owner))?;
        let (owner, mut items) = self.owners.remove(turn)?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.owners.push_back((owner, items));
        }
        item
    }

    /// Keeps the items for which `keep` holds.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for (_, items) in &mut self.owners {
            items.retain_mut(&mut keep);
        }
        self.owners.retain(|(_, items)| !items.is_empty());
    }

    /// All items.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.owners.iter().flat_map(|(_, items)| items)
    }

    /// The items of one owner.
    pub(super) fn of(&mut self, owner: u64) -> impl Iterator<Item = &mut T> {
        let own = self
            .owners
            .iter_mut()
            .filter(move |(other, _)| *other == owner);
        own.flat_map(|(_, items)| items)
    }

    /// The number of owners.
    pub(super) fn owners(&self) -> usize {
        self.owners.len()
    }

    /// Whether there are no items.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_take_turns_whatever_they_own() {
        let mut turns = Turns::default();
        for (owner, item) in [(1, "a"), (1, "b"), (1, "c"), (2, "x"), (3, "p"), (3, "q")] {
            turns.push(owner, item);
        }
        assert_eq!(turns.take(|_| true), Some("a"));
        turns.push(2, "y");
        // An owner that is passed over stays in front.
        assert_eq!(turns.take(|owner| owner != 2), Some("p"));
        assert_eq!(turns.take(|_| true), Some("x"));
        turns.retain(|item| *item != "c");
        assert_eq!(turns.iter().copied().collect::<String>(), "bqy");
        assert_eq!((turns.owners(), turns.of(3).count()), (3, 1));
        let rest: Vec<_> = std::iter::from_fn(|| turns.take(|_| true)).collect();
        assert_eq!(rest, ["b", "q", "y"]);
        assert!(turns.is_empty());
    }
}
