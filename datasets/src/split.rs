//! Splits a corpus without separate validation files: documents are held out by the hash of their text.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One side of a corpus: all of it, or the documents on one side of a split by hash.
///
/// The side of a document depends on its text alone. So equal documents are always on the same side,
/// and `Train` and `HeldOut` of the same share have no document in common, whatever their files and
/// the order of these. (If the held-out text has separate files, use `All` of those.) The share counts
/// documents, not bytes, and is exact only on average.
///
/// ```
/// use datasets::Split;
///
/// let (train, held_out) = (Split::Train { per_mille: 10 }, Split::HeldOut { per_mille: 10 });
/// let text = "It was the best of times";
/// assert_ne!(train.contains(text), held_out.contains(text));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Every document.
    All,
    /// The documents that are not in `HeldOut` of the same share.
    Train {
        /// The number of documents in a thousand that are held out.
        per_mille: u16,
    },
    /// The documents that are held out.
    HeldOut {
        /// The number of documents in a thousand that are held out.
        per_mille: u16,
    },
}

impl Split {
    /// Whether a document with this text is on this side.
    pub fn contains(self, text: &str) -> bool {
        let mut hash = DocumentHash::default();
        hash.push(text);
        self.has(hash.finish())
    }

    /// Whether a document with a text of this hash is on this side.
    pub(crate) fn has(self, hash: u128) -> bool {
        match self {
            Self::All => true,
            Self::Train { per_mille } => !held_out(hash, per_mille),
            Self::HeldOut { per_mille } => held_out(hash, per_mille),
        }
    }
}

/// The hash of the text of a document that is read part by part.
#[derive(Default)]
pub(crate) struct DocumentHash(Sha256);

impl DocumentHash {
    /// Appends to the document.
    pub(crate) fn push(&mut self, text: &str) {
        self.0.update(text);
    }

    /// The first 128 bits of the SHA-256.
    pub(crate) fn finish(self) -> u128 {
        let digest = self.0.finalize();
        let first = digest.iter().take(16);
        first.fold(0, |number, &byte| (number << 8) | u128::from(byte))
    }
}

fn held_out(hash: u128, per_mille: u16) -> bool {
    (hash >> 64) % 1000 < u128::from(per_mille)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> impl Iterator<Item = String> {
        (0..20_000).map(|i| format!("document {i}"))
    }

    #[test]
    fn the_sides_are_each_other_s_complement() {
        for per_mille in [0, 10, 500, 1000, u16::MAX] {
            for text in texts().take(2000) {
                let train = Split::Train { per_mille }.contains(&text);
                let held_out = Split::HeldOut { per_mille }.contains(&text);
                assert_ne!(train, held_out, "{text}");
                assert!(Split::All.contains(&text));
            }
        }
    }

    #[test]
    fn the_share_is_as_asked() {
        let split = Split::HeldOut { per_mille: 10 };
        let held_out = texts().filter(|text| split.contains(text)).count();
        // 200 expected, standard deviation 14: five of them.
        assert!((130..=270).contains(&held_out), "{held_out}");
    }

    /// Earlier runs and other machines must have the same split.
    #[test]
    fn the_hash_never_changes() {
        let held_out: Vec<usize> = (0..500)
            .filter(|i| Split::HeldOut { per_mille: 10 }.contains(&format!("document {i}")))
            .collect();
        assert_eq!(held_out, [35, 167, 200, 380]);
    }
}
