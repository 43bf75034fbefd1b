//! Which files a path, a folder or a pattern means.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::own_files;
use super::passed_over::PassedOver;
use crate::error::{DataError, Result, cannot};

/// The files that a file, a folder or a pattern means.
pub(super) fn local_files(path: &Path, column: &str) -> Result<Vec<PathBuf>> {
    let found = match (fs::metadata(path), path.to_str()) {
        (Err(_), Some(pattern)) if is_pattern(pattern) => matching(pattern)?,
        _ => vec![path.to_owned()],
    };
    let mut files = Vec::new();
    for path in found {
        if metadata(&path)?.is_dir() {
            files.extend(text_files_below(&path, column)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Whether a path that does not exist may be a pattern of paths.
pub fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// The paths that have `pattern`, sorted.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let bad = |reason: String| DataError::Pattern {
        pattern: pattern.to_owned(),
        reason,
    };
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..Default::default()
    };
    let paths = glob::glob_with(pattern, options).map_err(|error| bad(error.to_string()))?;
    let paths: std::result::Result<Vec<_>, _> = paths.collect();
    let mut paths = paths.map_err(|error| bad(error.to_string()))?;
    if paths.is_empty() {
        return Err(bad("no file or folder has this pattern".to_owned()));
    }
    paths.sort();
    Ok(paths)
}

/// The metadata of what is at `path`, behind a link.
pub(super) fn metadata(path: &Path) -> Result<fs::Metadata> {
    fs::metadata(path).map_err(cannot("open", path))
}

/// The files of text in `folder` and in the folders below it, sorted.
fn text_files_below(folder: &Path, column: &str) -> Result<Vec<PathBuf>> {
    let is_shown = |entry: &DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let mut paths = Vec::new();
    let mut passed_over = PassedOver::default();
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    let mut walk = walk.into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if leads_nowhere(&error) => {
                passed_over.add_link(folder, error.path().unwrap_or(folder));
                continue;
            }
            Err(error) => {
                return Err(DataError::Io {
                    action: "list",
                    path: error.path().unwrap_or(folder).into(),
                    reason: error.into(),
                });
            }
        };
        let is_own = entry.depth() > 0 && own_files::is_own(entry.path());
        if is_own && is_shown(&entry) {
            passed_over.add_own(folder, entry.path());
        }
        if is_own || !is_shown(&entry) {
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
        } else if entry.file_type().is_file() {
            let path = entry.into_path();
            if passed_over.takes(&path, column)? {
                passed_over.add(folder, &path);
            } else {
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        return Err(DataError::NoTextFiles {
            path: folder.into(),
            passed_over: passed_over.to_string(),
        });
    }
    if !passed_over.is_empty() {
        log::warn!(
            "{}: {} files of text are read, and other files passed over: {passed_over}",
            folder.display(),
            paths.len()
        );
    }
    paths.sort();
    Ok(paths)
}

/// Whether a link has no target, or one around itself.
fn leads_nowhere(error: &walkdir::Error) -> bool {
    let is_link = || error.path().is_some_and(Path::is_symlink);
    let is_missing = error
        .io_error()
        .is_some_and(|reason| reason.kind() == ErrorKind::NotFound);
    error.loop_ancestor().is_some() || is_missing && is_link()
}
