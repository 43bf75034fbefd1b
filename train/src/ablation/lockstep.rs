//! Which runs of a comparison go in lockstep.

use crate::config::Config;
use crate::run::{alone, apart};

/// Groups of runs that go in lockstep: each run's number is in exactly one group, and groups are in the order of their
/// first runs.
///
/// A run joins the first group that it [can](apart) go with, if the group has fewer than `most` runs and `fits` into
/// memory with it. A run that is finished (`is_done`) is in a group by itself.
pub(super) fn groups(
    runs: &[&Config],
    most: usize,
    is_done: impl Fn(&Config) -> bool,
    fits: impl Fn(&[usize]) -> bool,
) -> Vec<Vec<usize>> {
    let mut groups: Vec<(bool, Vec<usize>)> = vec![];
    for (run, config) in runs.iter().enumerate() {
        let is_open = most > 1 && !is_done(config) && alone(config).is_none();
        let takes = |(open, group): &(bool, Vec<usize>)| {
            let with = [&group[..], &[run]].concat();
            *open && group.len() < most && apart(runs[group[0]], config).is_none() && fits(&with)
        };
        let found = groups.iter().position(takes).filter(|_| is_open);
        match found {
            Some(place) => groups[place].1.push(run),
            None => groups.push((is_open, vec![run])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Why `run` goes alone, as a phrase; `others` are the runs that are not finished.
pub(super) fn why_alone(runs: &[&Config], run: usize, others: &[usize]) -> String {
    if let Some(reason) = alone(runs[run]) {
        return reason;
    }
    let others = others.iter().copied().filter(|other| *other != run);
    let others: Vec<_> = others
        .filter(|other| alone(runs[*other]).is_none())
        .map(|other| (other, apart(runs[run], runs[other])))
        .collect();
    if others.iter().any(|(_, key)| key.is_none()) {
        return "there is no place for it beside those that it could go with".to_owned();
    }
    let mut of_seed = others.iter().filter_map(|(other, key)| {
        let key = key.as_ref().filter(|key| *key != "seed")?;
        Some(format!(
            "its {key} differs from that of {}",
            runs[*other].name
        ))
    });
    let first = of_seed.next();
    first.unwrap_or_else(|| "no other run with its seed is left".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn config(name: &str, seed: u64, set: &[&str]) -> Config {
        let mut all = vec![format!("name={name}"), format!("seed={seed}")];
        all.extend(set.iter().map(|text| (*text).to_owned()));
        Config::load(Source::Preset("tiny"), &all).expect("a configuration")
    }

    #[test]
    fn runs_go_with_those_of_their_seed() {
        let all = [
            config("base-1", 1, &[]),
            config("base-2", 2, &[]),
            config("rate-1", 1, &["stage3.lr=1e-4"]),
            config("rate-2", 2, &["stage3.lr=1e-4"]),
            config("batch-1", 1, &["stage3.batch=2"]),
            config("back-1", 1, &["guard.action=roll_back"]),
            config("loss-1", 1, &["stage3.loss=reverse_kl"]),
        ];
        let runs: Vec<_> = all.iter().collect();
        let plan = |most, done: &str, fits: usize| {
            let is_done = |config: &Config| config.name == done;
            groups(&runs, most, is_done, |group| group.len() <= fits)
        };
        let each: Vec<_> = (0..all.len()).map(|run| vec![run]).collect();
        assert_eq!(plan(1, "", 9), each);
        let three = [vec![0, 2, 6], vec![1, 3], vec![4], vec![5]];
        assert_eq!(plan(3, "", 9), three);
        assert_eq!(plan(9, "", 3), three);
        let two = [vec![0, 2], vec![1, 3], vec![4], vec![5], vec![6]];
        assert_eq!(plan(2, "", 9), two);
        assert_eq!(plan(9, "", 2), two);
        // Finished runs do not count towards the size of a group.
        let rest = [vec![0], vec![1, 3], vec![2, 6], vec![4], vec![5]];
        assert_eq!(plan(2, "base-1", 9), rest);

        let others: Vec<_> = (0..all.len()).collect();
        for (run, words) in [
            (4, "its stage3.batch differs from that of base-1"),
            (5, "guard.action"),
            (6, "no place"),
        ] {
            let reason = why_alone(&runs, run, &others);
            assert!(reason.contains(words), "{reason}");
        }
        let reason = why_alone(&runs, 1, &[0, 1]);
        assert!(reason.contains("no other run with its seed"), "{reason}");
    }
}
