//! Which documents are held out when no files are.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A side of a corpus: all of it, or the documents on one side of a split by hash.
///
/// The side of a document depends on nothing but its text, so equal documents always fall together
/// and `Train` and `HeldOut` of the same share have no document in common, whatever files they come
/// from and however those are ordered. (Where the held-out text has files of its own, take `All` of
/// those.) The share is one of documents, not of bytes, and exact only on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Every document.
    All,
    /// The documents that `HeldOut` of the same share leaves.
    Train {
        /// How many documents in a thousand are held out.
        per_mille: u16,
    },
    /// The documents held out.
    HeldOut {
        /// How many documents in a thousand are held out.
        per_mille: u16,
    },
}

impl Split {
    /// Whether a document with this text belongs here.
    pub fn contains(self, text: &str) -> bool {
        match self {
            Split::All => true,
            Split::Train { per_mille } => !held_out(text, per_mille),
            Split::HeldOut { per_mille } => held_out(text, per_mille),
        }
    }
}

fn held_out(text: &str, per_mille: u16) -> bool {
    let digest = Sha256::digest(text);
    let first = digest
        .iter()
        .take(8)
        .fold(0, |number, &byte| (number << 8) | u64::from(byte));
    first % 1000 < u64::from(per_mille)
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

    /// Runs made yesterday and on other machines must split alike.
    #[test]
    fn the_hash_never_changes() {
        let held_out: Vec<usize> = (0..500)
            .filter(|i| Split::HeldOut { per_mille: 10 }.contains(&format!("document {i}")))
            .collect();
        assert_eq!(held_out, [35, 167, 200, 380]);
    }
}
