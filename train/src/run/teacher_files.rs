//! The small files beside a teacher's weights, as they were when the run began: what was opened then is what the
//! student gets at the end, days later.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::{ModelConfig, PhiMamba, atomic_file, manifest};
use sha2::{Digest, Sha256};

use kernels::KernelBackend;

use crate::error::{TrainError, io_error};

/// The tokenizer's file.
const TOKENIZER: &str = "tokenizer.json";
/// What other programs read beside the tokenizer.
const BESIDE_TOKENIZER: [&str; 7] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// What other programs read beside the weights.
const BESIDE_WEIGHTS: &str = "generation_config.json";

/// Names and contents of files.
pub(super) struct TeacherFiles(Vec<(&'static str, Vec<u8>)>);

impl TeacherFiles {
    /// The `tokenizer` and what is there beside it and beside the weights in `teacher`.
    ///
    /// # Errors
    /// [`TrainError::Io`] for one that is there and cannot be read; [`TrainError::ChangedWhileRead`] if the
    /// tokenizer's file is another than that which was loaded.
    pub(super) fn read(teacher: &Path, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let path = tokenizer.path();
        let bytes = fs::read(path).map_err(io_error(path))?;
        if format!("{:x}", Sha256::digest(&bytes)) != tokenizer.hash() {
            return Err(TrainError::ChangedWhileRead(path.to_owned()));
        }
        let mut files = vec![(TOKENIZER, bytes)];
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = BESIDE_TOKENIZER.map(|name| (folder, name));
        for (folder, name) in beside.into_iter().chain([(teacher, BESIDE_WEIGHTS)]) {
            let path: PathBuf = folder.join(name);
            match fs::read(&path) {
                Ok(bytes) => files.push((name, bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path)(error)),
            }
        }
        Ok(Self(files))
    }

    /// Writes the student in the published format into `folder`, these files beside it, and the checksums of all.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Weights`] and [`TrainError::Manifest`].
    pub(super) fn export<B: KernelBackend>(
        &self,
        config: &ModelConfig,
        student: &PhiMamba<B>,
        folder: &Path,
    ) -> Result<(), TrainError> {
        // Those of an earlier student, which are not of the files to come.
        let old = folder.join(manifest::MANIFEST);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error(&old)(error)),
            _ => {}
        }
        let known = model::save(config, student, folder)?;
        let mut names = vec![];
        for (name, bytes) in &self.0 {
            let path = folder.join(name);
            atomic_file::write(&path, bytes).map_err(io_error(&path))?;
            names.push(name);
        }
        Ok(manifest::write_known(folder, &names, known)?)
    }
}
