//! The files that a model's weights are in.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::{damaged, io};
use super::stored::Tensors;
use super::{INDEX, PICKLE, PICKLE_INDEX, SINGLE, WeightsError, gguf, safetensors, torch};
use crate::manifest;

/// The files that a model's weights are in.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    /// The single file, or the index.
    first: String,
    /// Reads a file of the kind.
    open: fn(&Path) -> Result<Tensors, WeightsError>,
}

impl Files {
    /// Those of the model in `folder`, or of the GGUF file that it is or has.
    pub(super) fn of(folder: &Path) -> Result<Self, WeightsError> {
        if let Some(path) = gguf::at(folder)? {
            let name = path.file_name().and_then(OsStr::to_str);
            let name = name.ok_or_else(|| damaged(&path, "its name is not UTF-8; rename it"))?;
            return Ok(Self {
                folder: path.parent().unwrap_or(Path::new("")).into(),
                first: name.into(),
                open: gguf::open,
            });
        }
        let Some(first) = weight_form(folder)? else {
            return Err(WeightsError::NoWeights {
                folder: folder.into(),
            });
        };
        let path = folder.join(first);
        fs::metadata(&path).map_err(|error| {
            let error = match fs::read_link(&path) {
                Ok(target) => std::io::Error::new(
                    error.kind(),
                    format!(
                        "this link leads to {}, which cannot be read ({error}); restore that or remove the link",
                        target.display()
                    ),
                ),
                Err(_) => error,
            };
            io(&path)(error)
        })?;
        let open = match first {
            SINGLE | INDEX => safetensors::open,
            _ => torch::open,
        };
        Ok(Self {
            folder: folder.into(),
            first: first.into(),
            open,
        })
    }

    fn shards(&self) -> Result<Option<BTreeSet<String>>, WeightsError> {
        if [INDEX, PICKLE_INDEX].contains(&self.first.as_str()) {
            manifest::verify_files(&self.folder, &[&self.first])?;
            shards(&self.folder.join(&self.first)).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The names of all files that are read.
    pub(super) fn names(&self) -> Result<Vec<String>, WeightsError> {
        let mut names: Vec<String> = self.shards()?.into_iter().flatten().collect();
        names.push(self.first.clone());
        Ok(names)
    }

    pub(super) fn open(&self) -> Result<Tensors, WeightsError> {
        let Some(shards) = self.shards()? else {
            return (self.open)(&self.folder.join(&self.first));
        };
        let mut all = Tensors::new();
        for shard in shards {
            let shard = self.folder.join(shard);
            for (name, tensor) in (self.open)(&shard)? {
                if all.contains_key(&name) {
                    return Err(damaged(&shard, format!("`{name}` is in another shard too")));
                }
                all.insert(name, tensor);
            }
        }
        Ok(all)
    }
}

/// The single file or the index through which the weights of a folder are read, if there is one. A single safetensors
/// file has priority over an index of several, and both over PyTorch's files. A link counts even if its target does not
/// exist, and so does a file that cannot be read: a file of lower priority could hold another model.
pub(crate) fn weight_form(folder: &Path) -> Result<Option<&'static str>, WeightsError> {
    for form in [SINGLE, INDEX, PICKLE, PICKLE_INDEX] {
        let path = folder.join(form);
        match fs::symlink_metadata(&path) {
            Ok(_) => return Ok(Some(form)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(&path)(error)),
        }
    }
    Ok(None)
}

/// The files that a folder's weights are in, without an index.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let files = Files::of(folder)?;
    let shards = files.shards()?;
    let names = shards.unwrap_or_else(|| BTreeSet::from([files.first.clone()]));
    let names = names.into_iter();
    Ok(names.map(|name| files.folder.join(name)).collect())
}

/// The names of the shards that an index speaks of.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        /// From each tensor's name to its file's.
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read_to_string(index).map_err(io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|error| damaged(index, error))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let is_elsewhere = |shard: &&String| {
        let mut parts = Path::new(shard).components();
        let first_and_second = (parts.next(), parts.next());
        !matches!(first_and_second, (Some(Component::Normal(_)), None))
    };
    match shards.iter().find(is_elsewhere) {
        Some(shard) => Err(damaged(
            index,
            format!("`{shard}` is not the name of a file in this folder"),
        )),
        None => Ok(shards),
    }
}
