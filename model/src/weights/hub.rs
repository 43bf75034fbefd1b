//! A model by its name: a folder, or a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

use super::read::shards;
use super::{CONFIG, INDEX, PICKLE, SINGLE, WeightsError};

const TOKENIZER: &str = "tokenizer.json";

/// The folder of the model called `name`, by the [`Hub`] of the environment.
///
/// # Errors
/// As [`Hub::from_env`] and [`Hub::locate`].
pub fn locate(name: impl AsRef<Path>) -> Result<PathBuf, WeightsError> {
    let name = name.as_ref();
    match name.is_dir() {
        true => Ok(name.into()),
        false => Hub::from_env()?.locate(name),
    }
}

/// Where models come from that are no folders here, and the cache of those fetched before, which all
/// of Hugging Face's tools share.
#[derive(Clone)]
pub struct Hub {
    /// The hub's address, `https://huggingface.co`.
    pub endpoint: String,
    /// The folder with a folder `models--OWNER--NAME` for each model.
    pub cache: PathBuf,
    /// What lets one in where not everyone may. Without it, what `hf auth login` keeps beside the
    /// cache.
    pub token: Option<String>,
    /// Whether to make do with what is in the cache.
    pub offline: bool,
}

impl Hub {
    /// As Hugging Face's own tools understand the environment: `HF_ENDPOINT`, else huggingface.co;
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`; `HF_TOKEN`;
    /// `HF_HUB_OFFLINE=1`.
    ///
    /// # Errors
    /// [`WeightsError::NoCache`] if none of these says where the cache is and there is no home folder.
    pub fn from_env() -> Result<Self, WeightsError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || match variable("HF_HOME") {
            Some(home) => Some(PathBuf::from(home)),
            None => Some(std::env::home_dir()?.join(".cache/huggingface")),
        };
        let cache = match variable("HF_HUB_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => home().ok_or(WeightsError::NoCache)?.join("hub"),
        };
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default();
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into()),
            cache,
            token: variable("HF_TOKEN"),
            offline: ["1", "on", "yes", "true"].contains(&offline.to_lowercase().as_str()),
        })
    }

    /// The folder of the model called `name`: that folder itself or, for OWNER/NAME, its snapshot in
    /// the cache, to which what is missing is fetched with a progress bar.
    ///
    /// A model in the cache is used as it is. If it has changed on the hub, it is fetched anew once
    /// its folder in the cache is gone.
    ///
    /// # Errors
    /// [`WeightsError::NoSuchModel`] if `name` is neither a folder nor OWNER/NAME,
    /// [`WeightsError::Offline`] if it would have to be fetched and must not be, and
    /// [`WeightsError::Fetch`] if that fails. Files that were fetched until then are kept.
    pub fn locate(&self, name: impl AsRef<Path>) -> Result<PathBuf, WeightsError> {
        let path = name.as_ref();
        if path.is_dir() {
            return Ok(path.into());
        }
        let Some(name) = path.to_str().filter(|name| is_repository(name)) else {
            return Err(WeightsError::NoSuchModel { name: path.into() });
        };
        let cached = self.cached(name);
        match cached {
            Some(folder) if self.offline || folder.join(TOKENIZER).exists() => Ok(folder),
            None if self.offline => Err(WeightsError::Offline {
                name: name.into(),
                cache: self.cache.clone(),
            }),
            // Without a tokenizer it may be that another tool did not need it: the hub knows. If the
            // hub cannot be asked, what there is must do.
            cached => self.fetch(name).or_else(|reason| {
                cached.ok_or_else(|| WeightsError::Fetch {
                    name: name.into(),
                    cache: self.cache.clone(),
                    endpoint: self.endpoint.clone(),
                    reason,
                })
            }),
        }
    }

    /// The model's snapshot in the cache, if it has a configuration and weights.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        let cache = Cache::new(self.cache.clone()).model(name.into());
        let folder = cache.get(CONFIG)?.parent()?.to_path_buf();
        let has = |file: &str| folder.join(file).exists();
        let has_shards = || match shards(&folder.join(INDEX)) {
            Ok(names) => names.iter().all(|name| has(name)),
            Err(_) => false,
        };
        let is_whole = has(SINGLE) || has_shards() || has(PICKLE);
        is_whole.then_some(folder)
    }

    /// Fetches what the cache lacks of the model, and returns its snapshot there.
    ///
    /// All files are of one revision, the newest when this begins, and only a whole snapshot becomes
    /// the cache's `main`.
    fn fetch(&self, name: &str) -> Result<PathBuf, String> {
        let cache = Cache::new(self.cache.clone());
        let token = self.token.clone().or_else(|| cache.token());
        let builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(token);
        let api = builder.build().map_err(|error| error.to_string())?;
        let newest = api.model(name.into()).info();
        let newest = newest.map_err(|error| error.to_string())?;
        let pinned = Repo::with_revision(name.into(), RepoType::Model, newest.sha.clone());
        // So that files of this revision which are there already are found.
        let noted = cache.repo(pinned.clone()).create_ref(&newest.sha);
        noted.map_err(|error| error.to_string())?;
        let pinned = api.repo(pinned);
        let has = |file: &str| newest.siblings.iter().any(|it| it.rfilename == file);
        let get = |file: &str| match file.is_ascii() {
            true => pinned.get(file).map_err(|error| format!("{file}: {error}")),
            // hf-hub shortens names for its progress bar, and panics within a letter.
            false => Err(format!("{file}: only names in ASCII can be fetched")),
        };

        let config = get(CONFIG)?;
        // The published Phi-Mambas have none: they use Phi's.
        if has(TOKENIZER) {
            get(TOKENIZER)?;
        }
        if has(SINGLE) {
            get(SINGLE)?;
        } else if has(INDEX) {
            for shard in shards(&get(INDEX)?).map_err(|error| error.to_string())? {
                get(&shard)?;
            }
        } else if has(PICKLE) {
            get(PICKLE)?;
        } else {
            return Err(format!(
                "it holds neither {SINGLE} nor {INDEX} nor {PICKLE}"
            ));
        }
        let made_main = cache.model(name.into()).create_ref(&newest.sha);
        made_main.map_err(|error| error.to_string())?;
        Ok(config.parent().unwrap_or(&config).into())
    }
}

/// Whether `name` can be OWNER/NAME, as the hub lets people choose them.
fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/')
        .is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}
