//! A data set by its name: the files of a repository of the Hugging Face hub.

use std::fs;
use std::path::PathBuf;

use hf_hub::{Cache, Repo, RepoType};

use super::Hub;
use super::fetch::Client;
use super::retry::{Failure, WAIT, patiently};
use crate::weights::WeightsError;

/// The branch where the hub keeps a copy of each data set in parquet, whatever its own files are.
const PARQUET: &str = "refs/convert/parquet";

impl Hub {
    /// The parquet files of `split` of `config` of the data set `name`, in their order, from the cache
    /// if they are there, else fetched into it with a progress bar.
    ///
    /// # Errors
    /// [`WeightsError::DatasetOffline`] if they would have to be fetched and must not be, and
    /// [`WeightsError::FetchDataset`] if that fails.
    pub fn dataset(
        &self,
        name: &str,
        config: &str,
        split: &str,
    ) -> Result<Vec<PathBuf>, WeightsError> {
        let folder = format!("{config}/{split}");
        match self.cached_dataset(name, &folder) {
            Some(files) => Ok(files),
            None if self.offline => Err(WeightsError::DatasetOffline {
                name: name.into(),
                cache: self.cache.clone(),
            }),
            None => {
                self.fetch_dataset(name, &folder)
                    .map_err(|reason| WeightsError::FetchDataset {
                        name: name.into(),
                        endpoint: self.endpoint.clone(),
                        reason,
                    })
            }
        }
    }

    fn cached_dataset(&self, name: &str, folder: &str) -> Option<Vec<PathBuf>> {
        let repo = Repo::with_revision(name.into(), RepoType::Dataset, PARQUET.into());
        // Fetched last, so that the others are there if it is.
        let first = Cache::new(self.cache.clone())
            .repo(repo)
            .get(&format!("{folder}/0000.parquet"))?;
        let entries = fs::read_dir(first.parent()?).ok()?;
        let mut files: Vec<PathBuf> = entries
            .map_while(|entry| Some(entry.ok()?.path()))
            .collect();
        files.retain(|file| file.extension().is_some_and(|end| end == "parquet"));
        files.sort();
        Some(files)
    }

    fn fetch_dataset(&self, name: &str, folder: &str) -> Result<Vec<PathBuf>, String> {
        let client = Client::new(self);
        let repo =
            |revision: &str| Repo::with_revision(name.into(), RepoType::Dataset, revision.into());
        let newest = client.info(&repo(PARQUET))?;
        // For the next time.
        let branch = Cache::new(self.cache.clone()).repo(repo(PARQUET));
        let noted = branch.create_ref(&newest.sha);
        noted.map_err(|error| error.to_string())?;
        let mut names: Vec<&str> = newest
            .siblings
            .iter()
            .map(|file| &*file.rfilename)
            .collect();
        names.retain(|file| {
            let number = file
                .strip_prefix(folder)
                .and_then(|rest| rest.strip_prefix('/'));
            number.is_some_and(|name| name.is_ascii() && name.ends_with(".parquet"))
        });
        names.sort();
        if names.is_empty() {
            return Err(format!("it has no {folder} in parquet"));
        }
        let pinned = repo(&newest.sha);
        let get = |file: &&str| patiently(WAIT, || client.get(&pinned, file));
        let fetched = names.iter().rev().map(get);
        let mut files = fetched.collect::<Result<Vec<_>, Failure>>()?;
        files.reverse();
        Ok(files)
    }
}
