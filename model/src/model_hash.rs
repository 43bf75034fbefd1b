//! A model's identity: a hash of its files.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::manifest;
use crate::weights::{WeightsError, model_files};

/// The bytes that one core hashes at a time.
const PIECE: u64 = 8 << 20;

/// A SHA-256 of the bytes of a model's configuration and weights. It does not depend on the folder.
///
/// The hash covers every byte, because two models may differ in a few bytes only: a stage of training leaves most
/// weights unchanged. It is fast, because the files are hashed in pieces on all cores, and then the hashes of the
/// pieces are hashed: a second or two for three gigabytes, which must be read for the model anyway. Names, sizes and
/// modification times would be faster, but wrong after a copy, or if the clock was set back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelHash(String);

impl ModelHash {
    /// The hash of the model in a folder.
    ///
    /// # Errors
    /// [`WeightsError`] if the folder has no model, or its files cannot be read.
    pub fn of(folder: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let mut all = Sha256::new();
        for path in model_files(folder)? {
            let digest = hash(&path).map_err(|source| WeightsError::Io { path, source })?;
            all.update(digest);
        }
        Ok(Self(format!("{:x}", all.finalize())))
    }

    /// The identity of the model computed from the checksums in the folder's manifest, without a read of the model's
    /// files. `None` if there is no manifest, or if it does not list all of these files. The value differs from that of
    /// [`of`](Self::of). It is equally reliable only if the model is also loaded, because loading compares the files
    /// with the manifest.
    ///
    /// # Errors
    /// As those of [`of`](Self::of), and [`WeightsError::Manifest`] if the manifest cannot be understood.
    pub fn listed(folder: impl AsRef<Path>) -> Result<Option<Self>, WeightsError> {
        let files = model_files(folder)?;
        // That of a GGUF file is the one beside it.
        let folder = files[0].parent().unwrap_or(Path::new(""));
        let Some(listed) = manifest::listed(folder)? else {
            return Ok(None);
        };
        let mut all = Sha256::new();
        for path in &files {
            let name = path.file_name().and_then(OsStr::to_str);
            let Some(digest) = name.and_then(|name| listed.get(name)) else {
                return Ok(None);
            };
            all.update(digest);
        }
        Ok(Some(Self(format!("{:x}", all.finalize()))))
    }
}

impl fmt::Display for ModelHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hash of the hashes of a file's pieces.
fn hash(path: &Path) -> io::Result<impl AsRef<[u8]> + use<>> {
    let length = File::open(path)?.metadata()?.len();
    let piece = |i: u64| {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(i * PIECE))?;
        let mut bytes = Vec::new();
        file.take(PIECE).read_to_end(&mut bytes)?;
        Ok(Sha256::digest(bytes))
    };
    let pieces = (0..length.div_ceil(PIECE)).into_par_iter().map(piece);
    let pieces: Vec<_> = pieces.collect::<io::Result<_>>()?;
    Ok(Sha256::digest(pieces.concat()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_byte_counts_and_the_place_does_not() {
        let write = |config: &[u8], weights: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), config).unwrap();
            fs::write(folder.path().join("model.safetensors"), weights).unwrap();
            ModelHash::of(folder.path()).unwrap()
        };
        // More than two pieces.
        let mut weights = vec![7; 2 * PIECE as usize + 9];
        let known = write(b"{}", &weights);
        assert_eq!(write(b"{}", &weights), known);
        assert_ne!(write(b"{ }", &weights), known);
        for place in [0, PIECE as usize, weights.len() - 1] {
            weights[place] ^= 1;
            assert_ne!(write(b"{}", &weights), known);
            weights[place] ^= 1;
        }
        // What moves from one file to the other is not the same either.
        assert_ne!(write(b"ab", b"c"), write(b"a", b"bc"));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            ModelHash::of(empty.path()),
            Err(WeightsError::NoWeights { .. })
        ));
    }

    #[test]
    fn a_manifest_that_lists_all_files_names_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let listed = || ModelHash::listed(path).unwrap();
        fs::write(path.join("config.json"), "{}").unwrap();
        fs::write(path.join("model.safetensors"), "weights").unwrap();
        assert_eq!(listed(), None);
        manifest::add(path, &["config.json"]).unwrap();
        assert_eq!(listed(), None);
        manifest::add(path, &["model.safetensors"]).unwrap();
        let known = listed();
        assert!(known.is_some());
        // No file is read.
        fs::write(path.join("model.safetensors"), "other").unwrap();
        assert_eq!(listed(), known);
        manifest::add(path, &["model.safetensors"]).unwrap();
        assert_ne!(listed(), known);
    }
}
