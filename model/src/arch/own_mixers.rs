//! Mixers that exist in no published format. Every family of students writes them in the same way: their kind, and
//! their options unchanged.

use serde_json::Value;

use crate::mixers::MixerConfig;
use crate::mixers::low_rank::LowRankConfig;
use crate::mixers::toeplitz::ToeplitzConfig;

macro_rules! own_mixers {
    ($($kind:literal: $config:ty;)*) => {
        /// Their kinds.
        pub(super) const KINDS: &[&str] = &[$($kind),*];

        /// The mixer of `kind` with these options, if it is one of them.
        ///
        /// # Errors
        /// What is wrong with the options.
        pub(super) fn read(kind: &str, options: &Value) -> Option<serde_json::Result<MixerConfig>> {
            match kind {
                $($kind => {
                    let config = serde_json::from_value::<$config>(options.clone());
                    Some(config.map(MixerConfig::from))
                })*
                _ => None,
            }
        }
    };
}

own_mixers! {
    "toeplitz": ToeplitzConfig;
    "low_rank": LowRankConfig;
}

/// The kind of `mixer`, if it is one of them.
pub(super) fn kind(mixer: &MixerConfig) -> Option<&'static str> {
    let mut kinds = KINDS.iter();
    kinds.find(|kind| **kind == mixer.kind()).copied()
}
