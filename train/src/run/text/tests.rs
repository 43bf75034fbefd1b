//! Which texts a configuration means, and where a stage begins in them.

use std::path::Path;

use super::*;
use crate::config::Source;

/// The sequences that each stage sees, of all that are ever dealt out of its text.
fn sequences(config: &Config, texts: &[&str; 3]) -> Vec<std::ops::Range<u64>> {
    let ranges = config.stages.iter().enumerate().map(|(number, stage)| {
        let batch = stage.batch as u64;
        let first = first_batch(config, texts, number);
        first * batch..(first + config.steps(stage) as u64) * batch
    });
    ranges.collect()
}

fn load(overrides: &[&str]) -> Config {
    let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
    Config::load(Source::Preset("tiny"), &overrides).unwrap()
}

#[test]
fn no_stage_repeats_the_data_of_another() {
    let same = ["a", "a", "a"];
    assert_eq!(
        sequences(&load(&[]), &same),
        [0..160, 160..2160, 2160..5200]
    );

    // Stages that are left out take no data; another batch size begins at a whole batch.
    let mut odd = load(&["stage3.batch=12", "stage3.tokens=30720"]);
    odd.choose_stages(&["stage2", "stage3"].map(str::to_owned))
        .unwrap();
    assert_eq!(sequences(&odd, &same), [0..2000, 2004..2124]);
}

#[test]
fn other_text_and_other_lengths_begin_at_their_beginning() {
    let longer = load(&["stage2.context=512"]);
    let same = ["a", "a", "a"];
    assert_eq!(sequences(&longer, &same), [0..160, 0..1000, 160..3200]);
    let other = ["b", "a", "b"];
    assert_eq!(sequences(&load(&[]), &other), [0..160, 0..2000, 160..3200]);
}

#[test]
fn there_is_no_cache_without_a_home() {
    for users in [None, Some(PathBuf::from("relative/.cache"))] {
        let message = users_cache(users).unwrap_err().to_string();
        assert!(message.contains("data.cache"), "{message}");
    }
    let users = users_cache(Some("/home/me/.cache".into())).unwrap();
    assert_eq!(users, Path::new("/home/me/.cache/mohawk"));
    // One that cannot be made.
    let cache = "data.cache=/dev/null/cache".to_owned();
    let config = Config::load(Source::Preset("tiny"), &[cache]).unwrap();
    let message = self::cache(&config).unwrap_err().to_string();
    assert!(
        message.contains("data.cache") && message.contains("/dev/null"),
        "{message}"
    );
}
