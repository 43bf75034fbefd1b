//! Models and data by their names: a folder, or a repository of the Hugging Face hub.

mod checksum;
mod dataset;
mod environment;
mod fetch;
mod gguf;
mod retry;
mod text_files;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

pub use self::text_files::{TextFiles, TextName};

use self::fetch::{Client, is_name};
use self::gguf::Which;
use self::retry::{WAIT, patiently};
use crate::weights::{
    CONFIG, GENERATION, INDEX, PICKLE, PICKLE_INDEX, SINGLE, TOKENIZER, WeightsError, is_model,
    shards, weight_form,
};

/// Files that not every model has: the published Phi-Mambas use Phi's tokenizer, and only some models have a chat
/// template.
const OPTIONAL: [&str; 5] = [
    TOKENIZER,
    GENERATION,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// The folder or the GGUF file of the model called `name`, by the [`Hub`] of the environment.
///
/// # Errors
/// As [`Hub::from_env`] and [`Hub::locate`].
pub fn locate(name: impl AsRef<Path>) -> Result<PathBuf, WeightsError> {
    let name = name.as_ref();
    if is_model(name) {
        return Ok(name.into());
    }
    Hub::from_env()?.locate(name)
}

/// The Hugging Face hub, and the local cache of fetched models, which all of Hugging Face's tools share.
#[derive(Clone)]
pub struct Hub {
    /// The hub's address, `https://huggingface.co`.
    pub endpoint: String,
    /// The folder with a folder `models--OWNER--NAME` for each model.
    pub cache: PathBuf,
    /// Sent to the hub with every request, for repositories that need it.
    pub token: Option<String>,
    /// Whether fetching is forbidden, so that only the cache is used.
    pub offline: bool,
}

impl Hub {
    /// Returns the folder or the GGUF file of the model called `name`. `name` may be the path of a folder or of a GGUF
    /// file, which is returned. For OWNER/NAME the result is the repository's snapshot in the cache; missing files are
    /// fetched, with a progress bar. OWNER/NAME:FILE.gguf is one GGUF file of a repository; OWNER/NAME:TAG is the GGUF
    /// file whose name ends in TAG, as in OWNER/NAME:Q4_K_M; and for a repository without a `config.json`, OWNER/NAME
    /// is its only GGUF file.
    ///
    /// A model in the cache is used without a check for a newer version on the hub. To fetch a newer version, delete
    /// the model's folder in the cache.
    ///
    /// # Errors
    /// [`WeightsError::NoModelFile`] if `name` is a file of another kind, [`WeightsError::NoSuchModel`] if `name` is neither
    /// a folder nor a file nor one of these names, [`WeightsError::Offline`] if it would have to be fetched and must not be,
    /// and [`WeightsError::Fetch`] if fetching fails. Files that were already fetched are kept.
    pub fn locate(&self, name: impl AsRef<Path>) -> Result<PathBuf, WeightsError> {
        let path = name.as_ref();
        if is_model(path) {
            return Ok(path.into());
        }
        if path.exists() {
            return Err(WeightsError::NoModelFile { path: path.into() });
        }
        let name = path.to_str().unwrap_or_default();
        if let Some((repository, file)) = gguf::named(name) {
            return match file {
                Which::File(file) => self.file(repository, file, name),
                Which::Tag(tag) => self.with_tag(repository, tag, name),
            };
        }
        if !is_repository(name) {
            return Err(WeightsError::NoSuchModel { name: path.into() });
        }
        if let Some(folder) = self.cached(name) {
            if !self.offline {
                self.complete(name, &folder);
            }
            return Ok(folder);
        }
        let alone = self.cached_gguf(name);
        if self.offline {
            return alone.ok_or_else(|| self.not_here(name));
        }
        // Only the hub knows whether the repository has other GGUF files. If the hub cannot be reached, the cached file
        // is used.
        let known = if alone.is_some() {
            self.main(name)
        } else {
            None
        };
        let fetched = match (
            self.revision(name, known.as_deref().unwrap_or("main")),
            alone,
        ) {
            (Ok(revision), _) => revision.fetch(),
            (Err(_), Some(alone)) => Ok(alone),
            (Err(reason), None) => Err(reason),
        };
        fetched.map_err(|reason| self.failed(name, reason))
    }

    /// Fetches the optional files of a model, which another tool or an earlier version may not have fetched. The hub is
    /// asked for each of them only once. If the hub cannot be reached, the files in the cache are used.
    fn complete(&self, name: &str, folder: &Path) {
        let Some(sha) = folder.file_name().and_then(|name| name.to_str()) else {
            return;
        };
        let lacks = self.lacks(name, sha);
        let is_unknown = |file: &&str| !folder.join(file).exists() && !lacks.join(file).exists();
        if OPTIONAL.iter().any(is_unknown) {
            let revision = self.revision(name, sha);
            let _ = revision.and_then(|revision| revision.fetch_optional());
        }
    }

    /// A folder, shared with Hugging Face's tools, that contains an empty file for each file that is known not to exist
    /// in a revision of a model.
    fn lacks(&self, name: &str, sha: &str) -> PathBuf {
        self.folder(name).join(".no_exist").join(sha)
    }

    /// The folder of all revisions of a model in the cache.
    fn folder(&self, name: &str) -> PathBuf {
        let repo = Repo::model(name.into());
        self.cache.join(repo.folder_name())
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
        self.file(name, TOKENIZER, name)
    }

    /// One file of a repository, from the cache if it is there, else fetched; `name` is what the user calls it.
    fn file(&self, repository: &str, file: &str, name: &str) -> Result<PathBuf, WeightsError> {
        let cache = Cache::new(self.cache.clone()).model(repository.into());
        match cache.get(file) {
            Some(file) => Ok(file),
            None if self.offline => Err(self.not_here(name)),
            None => {
                // That of the model in the cache, if it is there.
                let main = self.main(repository);
                let revision = self.revision(repository, main.as_deref().unwrap_or("main"));
                let fetched = revision.and_then(|revision| {
                    revision.check_gguf(file)?;
                    let file = revision.get(file)?;
                    revision.becomes_main()?;
                    Ok(file)
                });
                fetched.map_err(|reason| self.failed(name, reason))
            }
        }
    }

    /// The commit of the model in the cache.
    fn main(&self, name: &str) -> Option<String> {
        let main = fs::read_to_string(self.folder(name).join("refs/main"));
        main.ok().filter(|sha| is_name(sha))
    }

    fn not_here(&self, name: &str) -> WeightsError {
        WeightsError::Offline {
            name: name.into(),
            cache: self.cache.clone(),
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

    /// The model's snapshot in the cache, if it has a configuration and the weights that would be read.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        let cache = Cache::new(self.cache.clone()).model(name.into());
        let folder = cache.get(CONFIG)?.parent()?.to_path_buf();
        let has = |file: &str| folder.join(file).exists();
        let has_shards = |index| match shards(&folder.join(index)) {
            Ok(names) => names.iter().all(|name| has(name)),
            Err(_) => false,
        };
        let form = weight_form(&folder).ok()??;
        let is_index = [INDEX, PICKLE_INDEX].contains(&form);
        let is_whole = if is_index {
            has_shards(form)
        } else {
            has(form)
        };
        is_whole.then_some(folder)
    }

    /// What the hub has of the model at a branch or commit.
    fn revision(&self, name: &str, revision: &str) -> Result<Revision, String> {
        let client = Client::new(self);
        let at =
            |revision: &str| Repo::with_revision(name.into(), RepoType::Model, revision.into());
        let info = client.info(&at(revision))?;
        Ok(Revision {
            files: info
                .siblings
                .into_iter()
                .map(|file| file.rfilename)
                .collect(),
            lacks: self.lacks(name, &info.sha),
            cache: Cache::new(self.cache.clone()),
            repo: at(&info.sha),
            client,
        })
    }
}

/// One revision of a model on the hub, from which all of its files are taken.
struct Revision {
    /// At its commit.
    repo: Repo,
    files: Vec<String>,
    client: Client,
    cache: Cache,
    /// As [`Hub::lacks`].
    lacks: PathBuf,
}

impl Revision {
    fn has(&self, file: &str) -> bool {
        self.files.iter().any(|known| known == file)
    }

    /// Fetches what the cache lacks of the model, and returns its snapshot there, or its one GGUF file. Only a whole
    /// snapshot becomes the cache's `main`.
    fn fetch(&self) -> Result<PathBuf, String> {
        if !self.has(CONFIG)
            && let Some(file) = self.only_gguf()?
        {
            let file = self.get(file)?;
            self.becomes_main()?;
            return Ok(file);
        }
        let config = self.get(CONFIG)?;
        self.fetch_optional()?;
        let forms = [SINGLE, INDEX, PICKLE, PICKLE_INDEX];
        let Some(form) = forms.into_iter().find(|form| self.has(form)) else {
            let named = self.gguf_names();
            return Err(format!(
                "it holds neither {SINGLE} nor {INDEX} nor {PICKLE} nor {PICKLE_INDEX}{named}"
            ));
        };
        let weights = self.get(form)?;
        if [INDEX, PICKLE_INDEX].contains(&form) {
            for shard in shards(&weights).map_err(|error| error.to_string())? {
                self.get(&shard)?;
            }
        }
        self.becomes_main()?;
        Ok(config.parent().unwrap_or(&config).into())
    }

    /// Fetches the optional files that exist, and notes those that do not.
    fn fetch_optional(&self) -> Result<(), String> {
        for file in OPTIONAL {
            if self.has(file) {
                self.get(file)?;
            } else {
                fs::create_dir_all(&self.lacks)
                    .and_then(|()| File::create(self.lacks.join(file)))
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn becomes_main(&self) -> Result<(), String> {
        let main = Repo::model(self.repo.url());
        let made_main = self.cache.repo(main).create_ref(self.repo.revision());
        made_main.map_err(|error| error.to_string())
    }

    /// Fetches one of its files. The hub has answered just before, so if it is busy now or the connection breaks, the
    /// request is repeated.
    fn get(&self, file: &str) -> Result<PathBuf, String> {
        Ok(patiently(WAIT, || self.client.get(&self.repo, file))?)
    }
}

/// Whether `name` has the form OWNER/NAME, with characters that the hub allows.
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
