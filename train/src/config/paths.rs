//! Where a configured path is looked for.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// The folder that holds `assets/`: the workspace this crate was built in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The existing file or folder that a configured `path` means.
///
/// A relative path is looked up under the current folder, then beside the bundled assets, so that
/// the presets work from anywhere. An absolute path is itself.
///
/// # Errors
/// [`ConfigError::NoSuchPath`] with both places tried; [`ConfigError::Read`] for an absolute path
/// that does not exist.
pub fn resolve_path(path: &str) -> Result<PathBuf, ConfigError> {
    let here = Path::new(path);
    if here.is_absolute() {
        return match here.metadata() {
            Ok(_) => Ok(here.to_owned()),
            Err(source) => Err(ConfigError::Read {
                path: here.to_owned(),
                source,
            }),
        };
    }
    let workspace = Path::new(WORKSPACE);
    let bundled = workspace
        .canonicalize()
        .unwrap_or_else(|_| workspace.to_owned())
        .join(path);
    let here = std::env::current_dir().unwrap_or_default().join(path);
    // An empty path would otherwise name the folder itself.
    if !path.is_empty() {
        for place in [&here, &bundled] {
            if place.exists() {
                return Ok(place.clone());
            }
        }
    }
    Err(ConfigError::NoSuchPath {
        path: path.to_owned(),
        here,
        bundled,
    })
}
