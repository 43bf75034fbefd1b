//! The text of a data set on the hub: its own files, listed at once and fetched one by one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hf_hub::{Cache, Repo, RepoType};
use walkdir::WalkDir;

use super::fetch::{Client, is_name};
use super::retry::patiently;
use super::{Hub, is_repository};
use crate::weights::WeightsError;

/// The split that is taken if none is named.
const TRAIN: &str = "train";

/// The words in the names of files that say which split they belong to; the first of each is the split's name.
const SPLITS: [&[&str]; 3] = [
    &[TRAIN, "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];

/// The endings of files of text.
const ENDINGS: [&str; 4] = [".parquet", ".jsonl", ".json", ".txt"];

/// Which files of a data set: `OWNER/NAME`, `OWNER/NAME:FOLDER` or `OWNER/NAME:FOLDER:SPLIT`, each with a branch or
/// commit behind NAME if it is not `main`: `OWNER/NAME@REVISION`.
///
/// FOLDER is a folder of the repository, which for many data sets has the name of a configuration: `allenai/c4:en`,
/// `HuggingFaceFW/fineweb-edu:sample/10BT`. SPLIT is `train` if it is not named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextName {
    /// OWNER/NAME.
    pub repository: String,
    /// A branch or a commit.
    pub revision: Option<String>,
    /// Empty for all folders.
    pub folder: String,
    /// As in the names of the files.
    pub split: String,
}

impl FromStr for TextName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let repository = parts.next().unwrap_or_default();
        let (repository, revision) = match repository.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (repository, None),
        };
        let folder = parts.next().unwrap_or_default().trim_matches('/');
        let split = parts.next().unwrap_or(TRAIN);
        if is_repository(repository) && revision.is_none_or(is_name) && !split.is_empty() {
            Ok(Self {
                repository: repository.to_owned(),
                revision: revision.map(str::to_owned),
                folder: folder.to_owned(),
                split: split.to_owned(),
            })
        } else {
            Err(
                "a data set is named OWNER/NAME, OWNER/NAME:FOLDER or OWNER/NAME:FOLDER:SPLIT"
                    .to_owned(),
            )
        }
    }
}

impl fmt::Display for TextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match (self.folder.as_str(), self.split.as_str()) {
            ("", TRAIN) => Ok(()),
            (folder, TRAIN) => write!(f, ":{folder}"),
            (folder, split) => write!(f, ":{folder}:{split}"),
        }
    }
}

impl TextName {
    /// The data set at a revision.
    fn repo(&self, revision: &str) -> Repo {
        let name = self.repository.clone();
        Repo::with_revision(name, RepoType::Dataset, revision.to_owned())
    }

    /// Those of `files` that this names, sorted.
    fn choose(&self, files: Vec<String>) -> Result<Vec<String>, String> {
        let mut files: Vec<String> = files.into_iter().filter(|file| is_text(file)).collect();
        files.sort();
        let is_below = |file: &str| {
            let rest = file.strip_prefix(&self.folder);
            self.folder.is_empty() || rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let mut below: Vec<String> = files
            .iter()
            .filter(|file| is_below(file))
            .cloned()
            .collect();
        if below.is_empty() {
            return Err(format!(
                "it has no text in {:?}; text is in {}",
                self.folder,
                folders(&files)
            ));
        }
        // If no file name contains a split, all files belong to the training split.
        let says_split = |file: &String| SPLITS.iter().any(|words| has_word(file, words));
        if self.split != TRAIN || below.iter().any(says_split) {
            let own = [self.split.as_str()];
            let words = SPLITS.iter().find(|words| words[0] == self.split);
            let words = words.map_or(&own[..], |words| words);
            below.retain(|file| has_word(file, words));
        }
        if below.is_empty() {
            return Err(format!("no file there is of the split {:?}", self.split));
        }
        Ok(below)
    }
}

/// Whether a file of a repository is one of text, and neither hidden nor about the others.
fn is_text(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default().to_lowercase();
    let unpacked = name.strip_suffix(".gz").or(name.strip_suffix(".zst"));
    let unpacked = unpacked.unwrap_or(&name);
    let about = ["readme", "license", "dataset_info"];
    ENDINGS.iter().any(|ending| unpacked.ends_with(ending))
        && !about.iter().any(|about| name.starts_with(about))
        && !file.split('/').any(|part| part.starts_with('.'))
}

/// Whether one of `words` stands in the path of a file, between characters that are no letters.
fn has_word(file: &str, words: &[&str]) -> bool {
    let mut parts = file.split(|c: char| !c.is_ascii_alphabetic());
    parts.any(|part| words.contains(&&*part.to_lowercase()))
}

/// The folders of `files`, a few of them.
fn folders(files: &[String]) -> String {
    const SHOWN: usize = 20;
    let folder = |file: &String| match file.rsplit_once('/') {
        Some((folder, _)) => folder.to_owned(),
        None => "the repository itself".to_owned(),
    };
    let mut folders: Vec<String> = files.iter().map(folder).collect();
    folders.dedup();
    let more = if folders.len() > SHOWN { ", ..." } else { "" };
    folders.truncate(SHOWN);
    match &folders[..] {
        [] => "none of its folders".to_owned(),
        folders => format!("{}{more}", folders.join(", ")),
    }
}

/// The files of text of a data set at one commit.
pub struct TextFiles {
    /// The data set, with its commit.
    pub name: TextName,
    /// The paths of the files in the repository, in the order of their text.
    pub files: Vec<String>,
    hub: Hub,
    client: Client,
    repo: Repo,
    wait: Duration,
}

impl Hub {
    /// Lists the files of text of the data set `name`, as [`TextName`] reads it. While the hub is busy or cannot be
    /// reached it is asked again, first after `wait`, then after twice that, seven times in all.
    ///
    /// With `offline` these are the files that the cache has.
    ///
    /// # Errors
    /// [`WeightsError::FetchDataset`], with the folders that there are if the one in `name` has no text, and
    /// [`WeightsError::DatasetOffline`].
    pub fn text_files(&self, name: &str, wait: Duration) -> Result<TextFiles, WeightsError> {
        let failed = |reason: String| self.dataset_failed(name, reason);
        let mut parsed: TextName = name.parse().map_err(failed)?;
        let revision = parsed.revision.as_deref().unwrap_or("main");
        let repo = parsed.repo(revision);
        let client = Client::new(self);
        let (commit, files) = if self.offline {
            let listed = self.cached_files(&repo);
            listed.ok_or_else(|| self.dataset_offline(name))?
        } else {
            let info = patiently(wait, || client.info(&repo));
            let info = info.map_err(|failure| failed(failure.into()))?;
            if info.sha != revision {
                // For a time without the hub.
                let noted = Cache::new(self.cache.clone()).repo(repo);
                let noted = noted.create_ref(&info.sha);
                noted.map_err(|error| failed(error.to_string()))?;
            }
            let files = info.siblings.into_iter().map(|file| file.rfilename);
            (info.sha, files.collect())
        };
        let files = parsed.choose(files).map_err(failed)?;
        let repo = parsed.repo(&commit);
        parsed.revision = Some(commit);
        Ok(TextFiles {
            name: parsed,
            files,
            hub: self.clone(),
            client,
            repo,
            wait,
        })
    }

    /// The commit of a data set, and its files, that are in the cache.
    fn cached_files(&self, repo: &Repo) -> Option<(String, Vec<String>)> {
        let folder = self.cache.join(repo.folder_name());
        let branch = folder.join("refs").join(repo.revision());
        let commit = std::fs::read_to_string(branch);
        let commit = commit.unwrap_or_else(|_| repo.revision().to_owned());
        let snapshot = folder.join("snapshots").join(&commit);
        let files = WalkDir::new(&snapshot).follow_links(true).into_iter();
        let files = files.filter_map(Result::ok);
        let files = files.filter(|entry| entry.file_type().is_file());
        let path = |path: &Path| Some(path.strip_prefix(&snapshot).ok()?.to_str()?.to_owned());
        let files: Vec<String> = files.filter_map(|entry| path(entry.path())).collect();
        (!files.is_empty()).then_some((commit, files))
    }

    fn dataset_failed(&self, name: &str, reason: String) -> WeightsError {
        WeightsError::FetchDataset {
            name: name.into(),
            endpoint: self.endpoint.clone(),
            reason,
        }
    }

    fn dataset_offline(&self, name: &str) -> WeightsError {
        WeightsError::DatasetOffline {
            name: name.into(),
            cache: self.cache.clone(),
        }
    }
}

impl TextFiles {
    /// The place in the cache of one of the `files`, which is fetched if it is not there: as often as
    /// [`Hub::text_files`] says, each time from where the last one broke off. A file whose content is not what the hub
    /// names is not tried again.
    ///
    /// # Errors
    /// [`WeightsError::FetchDataset`] and [`WeightsError::DatasetOffline`].
    pub fn fetch(&self, file: &str) -> Result<PathBuf, WeightsError> {
        let name = self.name.to_string();
        if self.hub.offline {
            let cached = Cache::new(self.hub.cache.clone()).repo(self.repo.clone());
            let place = cached.pointer_path(self.repo.revision()).join(file);
            return if place.exists() {
                Ok(place)
            } else {
                Err(self.hub.dataset_offline(&name))
            };
        }
        let fetched = patiently(self.wait, || self.client.get(&self.repo, file));
        fetched.map_err(|failure| self.hub.dataset_failed(&name, failure.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let files = files.iter().map(|file| file.to_string()).collect();
        TextName::from_str(name)?.choose(files)
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for name in [
            "allenai/c4",
            "allenai/c4:en",
            "allenai/c4@0123abc:en:validation",
            "o/n::test",
            "o/n:sample/10BT",
        ] {
            assert_eq!(TextName::from_str(name).unwrap().to_string(), name);
        }
        for bad in ["c4", "o/n/x", "o/n@", "o/n@a/b:en", "o/n:en:", "../n", ""] {
            assert!(TextName::from_str(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_chosen_by_folder_and_split() {
        let c4 = [
            "README.md",
            "en.noclean/c4-train.00000-of-00002.json.gz",
            "en/c4-train.00001-of-00002.json.gz",
            "en/c4-train.00000-of-00002.json.gz",
            "en/c4-validation.00000-of-00001.json.gz",
        ];
        assert_eq!(
            chosen("allenai/c4:en", &c4).unwrap(),
            [
                "en/c4-train.00000-of-00002.json.gz",
                "en/c4-train.00001-of-00002.json.gz"
            ]
        );
        assert_eq!(
            chosen("allenai/c4:en:validation", &c4).unwrap(),
            ["en/c4-validation.00000-of-00001.json.gz"]
        );
        let message = chosen("allenai/c4:fr", &c4).unwrap_err();
        assert!(
            message.contains("en, en.noclean") || message.contains("en.noclean, en"),
            "{message}"
        );
        assert!(chosen("allenai/c4:en:test", &c4).is_err());

        let fineweb = [
            "data/CC-MAIN-2013-20/train-00000-of-00014.parquet",
            "sample/10BT/001_00000.parquet",
            "sample/10BT/000_00000.parquet",
            ".hidden/a.parquet",
            "dataset_infos.json",
        ];
        assert_eq!(
            chosen("HuggingFaceFW/fineweb-edu:sample/10BT", &fineweb).unwrap(),
            [
                "sample/10BT/000_00000.parquet",
                "sample/10BT/001_00000.parquet"
            ]
        );
        assert_eq!(
            chosen("HuggingFaceFW/fineweb-edu", &fineweb).unwrap(),
            ["data/CC-MAIN-2013-20/train-00000-of-00014.parquet"]
        );
    }
}
