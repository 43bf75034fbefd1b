//! A folder that only its owner may use.

use std::path::Path;

use crate::error::{DataError, Result, cannot};

/// Makes `path` a folder that only this user may enter, or checks that it is one.
///
/// For a cache in a place where everybody may write, like the system's temporary folder: there another user
/// could have made a folder of that name before, to read or change what is put into it. On systems without
/// owners and modes of files the folder is only created.
///
/// # Errors
///
/// [`DataError::Io`] if the folder cannot be created, [`DataError::NotPrivate`] if it is a link or no folder,
/// belongs to another user, or may be used by others.
pub fn private_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::fs::{self, DirBuilder};
        use std::io::ErrorKind;
        use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};

        let not_private = |reason: &str| DataError::NotPrivate {
            path: path.into(),
            reason: reason.into(),
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot("create", path)(error)),
        }
        // Not that of a link's target, which another user could change.
        let folder = fs::symlink_metadata(path).map_err(cannot("open", path))?;
        if !folder.is_dir() {
            return Err(not_private("it is no folder"));
        }
        if folder.permissions().mode() & 0o077 != 0 {
            return Err(not_private("other users may enter it"));
        }
        // This process may only write to it, and a file that it makes there has its owner, if it is its own.
        let own = tempfile::tempfile_in(path).and_then(|file| file.metadata());
        let own = own.map_err(cannot("write to", path))?;
        if own.uid() != folder.uid() {
            return Err(not_private("it belongs to another user"));
        }
        Ok(())
    }
    #[cfg(not(unix))]
    std::fs::create_dir_all(path).map_err(cannot("create", path))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_a_folder_of_its_own_is_taken() {
        let temporary = TempDir::new().unwrap();
        let folder = temporary.path().join("cache");
        private_folder(&folder).unwrap();
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700
        );
        private_folder(&folder).unwrap();

        let link = temporary.path().join("link");
        symlink(&folder, &link).unwrap();
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        let open = temporary.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        for path in [link, file, open] {
            let error = private_folder(&path).unwrap_err();
            assert!(matches!(error, DataError::NotPrivate { .. }), "{error}");
        }
    }
}
