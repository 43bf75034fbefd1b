//! Resolves the entries of a list of text: local files, standard input, and data sets on the hub.

use std::time::Duration;

use datasets::{Remote, Source, TEXT, keep_standard_input};
use model::Hub;
use model::hub::{TextFiles, TextName};

use super::text::cache;
use crate::config::{Config, TextSource, resolve_text};
use crate::error::TrainError;

/// The folder, inside the folder of tokens, for texts from standard input. It is hidden, so that it is not read as text
/// if a surrounding folder is.
const STANDARD_INPUT: &str = ".standard-input";

/// The first wait for a hub that is busy.
const WAIT: Duration = Duration::from_secs(1);

/// Replaces the entries that could be other text at another time, so that the run can be resumed and repeated: standard
/// input by a file with its content, and a data set on the hub by its newest commit.
pub(super) fn settle(config: &mut Config) -> Result<(), TrainError> {
    let reads_input = sources(config).any(|source| source.is_standard_input());
    let input = if reads_input {
        let folder = cache(config)?.join(STANDARD_INPUT);
        keep_standard_input(&folder)?.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    for source in sources(config) {
        if source.is_standard_input() {
            source.path.clone_from(&input);
        } else if let Some(name) = source.on_hub()
            && name
                .parse::<TextName>()
                .is_ok_and(|name| !is_settled(&name))
        {
            let name = files_on_hub(name)?.name.to_string();
            source.set_on_hub(&name);
        }
    }
    Ok(())
}

/// Whether a data set is named with a commit. A branch does not count: it may move.
fn is_settled(name: &TextName) -> bool {
    let is_commit = |revision: &str| {
        let mut digits = revision.bytes();
        revision.len() == 40 && digits.all(|digit| digit.is_ascii_hexdigit())
    };
    name.revision.as_deref().is_some_and(is_commit)
}

/// Whether [`settle`] may have made `settled` from `config` at some time: if `config` names a data set without a
/// commit, `settled` may have any commit of it.
pub(super) fn may_settle_to(mut config: Config, settled: &Config) -> bool {
    let name = |source: &TextSource| source.on_hub()?.parse::<TextName>().ok();
    let newest = |name: TextName| TextName {
        revision: None,
        ..name
    };
    for (source, settled) in sources(&mut config).zip(sources(&mut settled.clone())) {
        let (Some(from), Some(to)) = (name(source), name(settled)) else {
            continue;
        };
        if !is_settled(&from) && newest(from) == newest(to) {
            source.path.clone_from(&settled.path);
        }
    }
    config == *settled
}

/// All entries of the lists of text.
fn sources(config: &mut Config) -> impl Iterator<Item = &mut TextSource> {
    let stages = config.stages.iter_mut();
    let lists = stages.map(|stage| &mut stage.data);
    let data = &mut config.data;
    lists
        .chain([&mut data.train, &mut data.validation])
        .flatten()
}

/// The sources of text that `entries` mean.
pub(super) fn resolved(entries: &[TextSource]) -> Result<Vec<Source>, TrainError> {
    let source = |entry: &TextSource| {
        let source = match entry.on_hub() {
            Some(name) => Source::remote(remote(files_on_hub(name)?)),
            None => Source::local(resolve_text(&entry.path)?),
        };
        Ok(source.with_column(entry.column.as_deref().unwrap_or(TEXT)))
    };
    entries.iter().map(source).collect()
}

fn files_on_hub(name: &str) -> Result<TextFiles, TrainError> {
    Ok(Hub::from_env()?.text_files(name, WAIT)?)
}

/// The files of a data set, under names that contain its commit.
fn remote(files: TextFiles) -> Remote {
    let (repository, revision) = (&files.name.repository, &files.name.revision);
    let prefix = format!(
        "hub:{repository}@{}/",
        revision.as_deref().unwrap_or_default()
    );
    let names = files.files.iter().map(|file| format!("{prefix}{file}"));
    Remote {
        names: names.collect(),
        fetch: Box::new(move |name| {
            let file = name.strip_prefix(&prefix).unwrap_or(name);
            files.fetch(file).map_err(|error| error.to_string())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn only_a_commit_stays_what_it_is() {
        let is_settled = |name: &str| is_settled(&name.parse::<TextName>().unwrap());
        assert!(is_settled(
            "o/n@0123456789abcdef0123456789abcdef01234567:en"
        ));
        for name in ["o/n", "o/n:en", "o/n@main", "o/n@0123abc:en:test"] {
            assert!(!is_settled(name), "{name}");
        }
    }

    #[test]
    fn a_commit_may_come_to_a_name() {
        let config = |train: &str| {
            let set = [
                format!("data.train={train}"),
                "data.validation=v".to_owned(),
            ];
            Config::load(Source::Preset("tiny"), &set).unwrap()
        };
        for (train, settled, expected) in [
            ("a,hub:o/n:en", "a,hub:o/n@0f:en", true),
            ("hub:o/n:en:train", "hub:o/n@0f:en", true),
            ("hub:o/n@0f", "hub:o/n@0f", true),
            ("hub:o/n@main", "hub:o/n@0f", true),
            ("hub:o/n:en", "hub:o/n@0f:fr", false),
            ("hub:o/n", "hub:o/n@0f,a", false),
            ("a", "b", false),
        ] {
            let found = may_settle_to(config(train), &config(settled));
            assert_eq!(found, expected, "{train}, {settled}");
        }
    }
}
