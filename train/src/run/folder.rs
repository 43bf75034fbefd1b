//! The folder of a run: whether a process works in it, whether the run is finished, and whether the folder is in its
//! place.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use model::{atomic_file, manifest};

use super::sources::may_settle_to;
use super::{CHECKPOINTS, CONFIG, STUDENT, SUMMARY};
use crate::config::{Config, Source};
use crate::error::{TrainError, io_error};
use crate::provenance::differences;
use crate::summary::Summary;

/// Whether a run has begun in `folder`, even if its configuration is lost.
pub(super) fn is_run(folder: &Path) -> bool {
    folder.join(CONFIG).exists() || folder.join(CHECKPOINTS).exists()
}

/// The saved configuration of the run in `folder`; `None` if there is none. A study that makes the run of `config`
/// there continues with it.
///
/// # Errors
/// [`TrainError::OtherRun`] if the run in `folder` is another one; [`TrainError::Config`] if its configuration cannot be
/// read.
pub(crate) fn begun(config: &Config, folder: &Path) -> Result<Option<Config>, TrainError> {
    let file = folder.join(CONFIG);
    if !file.exists() {
        return Ok(None);
    }
    let kept = Config::load(Source::File(&file), &[])?.with_absolute_paths();
    if may_settle_to(config.clone().with_absolute_paths(), &kept) {
        Ok(Some(kept))
    } else {
        let config = config.clone().with_absolute_paths();
        Err(TrainError::OtherRun {
            folder: folder.to_owned(),
            differences: differences(&kept.to_table()?, &config.to_table()?),
        })
    }
}

/// The result of the run in `folder`, if it is finished. If its exported student is there, its checksums are compared.
///
/// # Errors
/// [`TrainError::Io`] for a summary that cannot be read; [`TrainError::DamagedStudent`].
pub(super) fn finished(folder: &Path) -> Result<Option<Summary>, TrainError> {
    let path = folder.join(SUMMARY);
    let summary = Summary::read(&path).map_err(io_error(&path))?;
    if summary.is_some() {
        manifest::verify(folder.join(STUDENT)).map_err(|source| TrainError::DamagedStudent {
            folder: folder.to_owned(),
            source,
        })?;
    }
    Ok(summary)
}

/// The folder of a run, locked by this process while this value exists.
pub(super) struct Held {
    path: PathBuf,
    /// The open folder, locked if the file system supports it. (Windows and some network file systems do not: there,
    /// other processes are not kept out.)
    folder: Option<File>,
    /// Whether this process has made the folder.
    is_new: bool,
}

impl Held {
    /// Makes the folder `path` if need be, and keeps other processes from working in it.
    ///
    /// # Errors
    /// [`TrainError::Folder`] if it cannot be made or written; [`TrainError::InUse`].
    pub(super) fn take(path: &Path) -> Result<Self, TrainError> {
        let is_new = !path.exists();
        // At the start, and not at the first write, which may come after hours of tokenising.
        fs::create_dir_all(path)
            .and_then(|()| atomic_file::check(&path.join(CONFIG)))
            .map_err(|source| TrainError::Folder {
                path: path.to_owned(),
                source,
            })?;
        let folder = File::open(path).ok();
        if let Some(folder) = &folder
            && let Err(TryLockError::WouldBlock) = folder.try_lock()
        {
            return Err(TrainError::InUse(path.to_owned()));
        }
        let held = Self {
            path: path.to_owned(),
            folder,
            is_new,
        };
        // Another process may have removed it before it was locked.
        held.check()?;
        Ok(held)
    }

    /// The folder that rank 0 has taken, for another rank.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if this rank does not see it.
    pub(super) fn taken_by_first(path: &Path) -> Result<Self, TrainError> {
        let held = Self {
            path: path.to_owned(),
            folder: File::open(path).ok(),
            is_new: false,
        };
        if held.is_there() {
            return Ok(held);
        }
        Err(TrainError::Ranks(format!(
            "{}: this rank does not see the folder of the run, which rank 0 has made; it must be on a file system that \
             all ranks have, by --out",
            path.display()
        )))
    }

    /// Checks that the folder is still in its place. Otherwise files written under its name would make another folder,
    /// which is no run.
    ///
    /// # Errors
    /// [`TrainError::FolderGone`].
    pub(super) fn check(&self) -> Result<(), TrainError> {
        if self.is_there() {
            Ok(())
        } else {
            Err(TrainError::FolderGone(self.path.clone()))
        }
    }

    fn is_there(&self) -> bool {
        let Ok(there) = fs::metadata(&self.path) else {
            return false;
        };
        let own = self.folder.as_ref().map(File::metadata);
        match own {
            #[cfg(unix)]
            Some(Ok(own)) => {
                use std::os::unix::fs::MetadataExt;
                (there.dev(), there.ino()) == (own.dev(), own.ino())
            }
            _ => there.is_dir(),
        }
    }

    /// Removes the folder if it was made for a run that did not start, unless something is in it.
    pub(super) fn give_up(&self) {
        if self.is_new && self.is_there() {
            // Fails if something was written to it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_to_be_gone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let held = Held::take(&path).unwrap();
        held.check().unwrap();
        assert!(matches!(Held::take(&path), Err(TrainError::InUse(_))));
        let elsewhere = parent.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        assert!(matches!(held.check(), Err(TrainError::FolderGone(_))));
        // Another folder of the same name does not count.
        fs::create_dir(&path).unwrap();
        assert!(matches!(held.check(), Err(TrainError::FolderGone(_))));
        fs::remove_dir(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
        held.check().unwrap();
        held.give_up();
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused() {
        for path in ["/proc", "/dev/null/run"] {
            let refused = Held::take(Path::new(path)).err().unwrap().to_string();
            assert!(
                refused.contains(path) && refused.contains("--out"),
                "{refused}"
            );
        }
    }
}
