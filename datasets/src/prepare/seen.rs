//! The texts that came before, so that none comes twice.

use std::collections::HashSet;

use super::group::Group;
use crate::error::Result;
use crate::source::{End, Parts};
use crate::split::DocumentHash;

/// The texts of a corpus up to some place.
#[derive(Default)]
pub(super) struct Seen {
    texts: HashSet<u128>,
    /// The groups whose texts are in the set: the first so many.
    groups: usize,
}

impl Seen {
    /// Adds a text; false if it came before.
    pub(super) fn insert(&mut self, text: u128) -> bool {
        self.texts.insert(text)
    }

    /// Says that all texts of the first `groups` groups were added.
    pub(super) fn has_groups(&mut self, groups: usize) {
        self.groups = groups;
    }

    /// Reads the groups of `earlier` whose texts are not in the set.
    pub(super) fn catch_up(
        &mut self,
        earlier: &[Group],
        part_bytes: usize,
        stopped: &dyn Fn() -> bool,
    ) -> Result<()> {
        for group in &earlier[self.groups.min(earlier.len())..] {
            // Too many bad lines are refused where these files are tokenised.
            let mut parts = Parts::new(group.inputs.clone(), u64::MAX, part_bytes);
            let mut hash = DocumentHash::default();
            while let Some(part) = parts.next().transpose()? {
                hash.push(&part.text);
                if let Some(end) = part.end {
                    let text = std::mem::take(&mut hash).finish();
                    if end == End::Document {
                        self.insert(text);
                    }
                    if stopped() {
                        return Err(crate::DataError::Stopped);
                    }
                }
            }
            self.groups += 1;
        }
        Ok(())
    }
}
