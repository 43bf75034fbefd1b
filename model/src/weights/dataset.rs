//! A data set by its name: the files of a repository of the Hugging Face hub.

use std::fs;
use std::path::PathBuf;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

use super::hub::verify;
use super::{Hub, WeightsError};

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
        let mut files: Vec<PathBuf> = entries.map_while(|it| Some(it.ok()?.path())).collect();
        files.retain(|file| file.extension().is_some_and(|it| it == "parquet"));
        files.sort();
        Some(files)
    }

    fn fetch_dataset(&self, name: &str, folder: &str) -> Result<Vec<PathBuf>, String> {
        let cache = Cache::new(self.cache.clone());
        let token = self.token.clone().or_else(|| cache.token());
        let builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(token);
        let api = builder.build().map_err(|error| error.to_string())?;
        let repo =
            |revision: &str| Repo::with_revision(name.into(), RepoType::Dataset, revision.into());
        let newest = api.repo(repo(PARQUET)).info();
        let newest = newest.map_err(|error| error.to_string())?;
        let pinned = api.repo(repo(&newest.sha));
        // So that files of this revision which are there already are found, and these next time.
        for revision in [&newest.sha, PARQUET] {
            let noted = cache.repo(repo(revision)).create_ref(&newest.sha);
            noted.map_err(|error| error.to_string())?;
        }
        let mut names: Vec<&str> = newest.siblings.iter().map(|it| &*it.rfilename).collect();
        names.retain(|file| {
            let number = file
                .strip_prefix(folder)
                .and_then(|it| it.strip_prefix('/'));
            number.is_some_and(|it| it.is_ascii() && it.ends_with(".parquet"))
        });
        names.sort();
        if names.is_empty() {
            return Err(format!("it has no {folder} in parquet"));
        }
        let fetched = names.iter().rev().map(|file| {
            let path = pinned.get(file);
            let path = path.map_err(|error| format!("{file}: {error}"))?;
            verify(&path).map_err(|reason| format!("{file}: {reason}"))?;
            Ok(path)
        });
        let mut files = fetched.collect::<Result<Vec<_>, String>>()?;
        files.reverse();
        Ok(files)
    }
}
