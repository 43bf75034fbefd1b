//! A model by its name: a folder, or a repository of the Hugging Face hub.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};

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
            cached => {
                let fetched = self.newest(name).and_then(|newest| newest.fetch());
                fetched.or_else(|reason| cached.ok_or_else(|| self.failed(name, reason)))
            }
        }
    }

    /// The `tokenizer.json` of the model called `name`, OWNER/NAME, from the cache if it is there, else
    /// fetched, and nothing else of the model.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn tokenizer(&self, name: impl AsRef<Path>) -> Result<PathBuf, WeightsError> {
        let path = name.as_ref();
        let Some(name) = path.to_str().filter(|name| is_repository(name)) else {
            return Err(WeightsError::NoSuchModel { name: path.into() });
        };
        let cache = Cache::new(self.cache.clone()).model(name.into());
        match cache.get(TOKENIZER) {
            Some(file) => Ok(file),
            None if self.offline => Err(WeightsError::Offline {
                name: name.into(),
                cache: self.cache.clone(),
            }),
            None => {
                let fetched = self.newest(name).and_then(|newest| {
                    let file = newest.get(TOKENIZER)?;
                    newest.becomes_main()?;
                    Ok(file)
                });
                fetched.map_err(|reason| self.failed(name, reason))
            }
        }
    }

    fn failed(&self, name: &str, reason: String) -> WeightsError {
        WeightsError::Fetch {
            name: name.into(),
            cache: self.cache.clone(),
            endpoint: self.endpoint.clone(),
            reason,
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

    /// What the hub has of the model now.
    fn newest(&self, name: &str) -> Result<Revision, String> {
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
        Ok(Revision {
            files: newest.siblings.into_iter().map(|it| it.rfilename).collect(),
            main: cache.model(name.into()),
            cached: cache.repo(pinned.clone()),
            hub: api.repo(pinned),
            sha: newest.sha,
        })
    }
}

/// One revision of a model on the hub, from which all of its files are taken.
struct Revision {
    sha: String,
    files: Vec<String>,
    hub: ApiRepo,
    cached: CacheRepo,
    main: CacheRepo,
}

impl Revision {
    fn has(&self, file: &str) -> bool {
        self.files.iter().any(|it| it == file)
    }

    /// Fetches what the cache lacks of the model, and returns its snapshot there. Only a whole
    /// snapshot becomes the cache's `main`.
    fn fetch(&self) -> Result<PathBuf, String> {
        let config = self.get(CONFIG)?;
        // The published Phi-Mambas have none: they use Phi's.
        if self.has(TOKENIZER) {
            self.get(TOKENIZER)?;
        }
        if self.has(SINGLE) {
            self.get(SINGLE)?;
        } else if self.has(INDEX) {
            for shard in shards(&self.get(INDEX)?).map_err(|error| error.to_string())? {
                self.get(&shard)?;
            }
        } else if self.has(PICKLE) {
            self.get(PICKLE)?;
        } else {
            return Err(format!(
                "it holds neither {SINGLE} nor {INDEX} nor {PICKLE}"
            ));
        }
        self.becomes_main()?;
        Ok(config.parent().unwrap_or(&config).into())
    }

    fn becomes_main(&self) -> Result<(), String> {
        let made_main = self.main.create_ref(&self.sha);
        made_main.map_err(|error| error.to_string())
    }

    /// A file in the cache, where it is fetched to if it is not there. What broke off is gone on with.
    fn get(&self, file: &str) -> Result<PathBuf, String> {
        if let Some(path) = self.cached.get(file) {
            return Ok(path);
        }
        if !file.is_ascii() {
            // hf-hub shortens names for its progress bar, and panics within a letter.
            return Err(format!("{file}: only names in ASCII can be fetched"));
        }
        let path = self.hub.download(file);
        let path = path.map_err(|error| format!("{file}: {error}"))?;
        verify(&path).map_err(|reason| format!("{file}: {reason}"))?;
        Ok(path)
    }
}

/// That a file which was just fetched is what the hub has: for large files it tells their SHA-256,
/// which hf-hub makes the name of the file behind the link in the snapshot. One that is something else
/// is removed.
pub(super) fn verify(path: &Path) -> Result<(), String> {
    let blob = fs::canonicalize(path).map_err(|error| error.to_string())?;
    let expected = blob.file_name().unwrap_or_default().to_string_lossy();
    let is_sha256 = |it: &str| it.len() == 64 && it.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_sha256(&expected) {
        return Ok(());
    }
    let mut digest = Sha256::new();
    let read = File::open(&blob).and_then(|mut file| io::copy(&mut file, &mut digest));
    read.map_err(|error| error.to_string())?;
    let found = format!("{:x}", digest.finalize());
    if found == *expected {
        return Ok(());
    }
    for wrong in [path, &blob] {
        fs::remove_file(wrong).map_err(|error| error.to_string())?;
    }
    Err(format!(
        "what came has the SHA-256 {found}, and should have {expected}; it is removed, try again"
    ))
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
