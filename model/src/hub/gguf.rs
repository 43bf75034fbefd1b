//! Models that are one GGUF file of a repository, of which many hold several: one for each way to quantise.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{Hub, Revision, is_repository};
use crate::weights::has_gguf_ending;

/// The repository and the file of OWNER/NAME:FILE.gguf. `None` of another name.
pub(super) fn named(name: &str) -> Option<(&str, &str)> {
    let (repository, file) = name.split_once(':')?;
    let is_inside = |part: Component| matches!(part, Component::Normal(_));
    let is_file = has_gguf_ending(Path::new(file)) && Path::new(file).components().all(is_inside);
    (is_repository(repository) && is_file).then_some((repository, file))
}

impl Hub {
    /// The GGUF file of a model in the cache, if it is the only one there.
    pub(super) fn cached_gguf(&self, name: &str) -> Option<PathBuf> {
        let snapshot = self.folder(name).join("snapshots").join(self.main(name)?);
        let entries = fs::read_dir(snapshot).ok()?.flatten();
        let files = entries.map(|entry| entry.path());
        let mut files = files.filter(|path| has_gguf_ending(path) && path.exists());
        let first = files.next()?;
        files.next().is_none().then_some(first)
    }
}

impl Revision {
    /// Its GGUF files.
    fn ggufs(&self) -> Vec<&str> {
        let files = self.files.iter().map(String::as_str);
        files
            .filter(|file| has_gguf_ending(Path::new(file)))
            .collect()
    }

    /// Its GGUF file; `None` if it has none.
    ///
    /// # Errors
    /// The names of several.
    pub(super) fn only_gguf(&self) -> Result<Option<&str>, String> {
        match self.ggufs()[..] {
            [] => Ok(None),
            [file] => Ok(Some(file)),
            _ => Err(format!("it holds several models{}", self.gguf_names())),
        }
    }

    /// That it has `file`, if that is a GGUF file.
    ///
    /// # Errors
    /// The names of those that it has.
    pub(super) fn check_gguf(&self, file: &str) -> Result<(), String> {
        if has_gguf_ending(Path::new(file)) && !self.has(file) {
            return Err(format!("it holds no {file}{}", self.gguf_names()));
        }
        Ok(())
    }

    /// How its GGUF files are named, to follow a reason; empty if it has none.
    pub(super) fn gguf_names(&self) -> String {
        let files = self.ggufs();
        if files.is_empty() {
            return String::new();
        }
        let all = files.join(", ");
        format!(
            "; name one of its GGUF files as in OWNER/NAME:{}: {all}",
            files[0]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_behind_their_repository() {
        assert_eq!(
            named("a/b-GGUF:b.Q4_1.gguf"),
            Some(("a/b-GGUF", "b.Q4_1.gguf"))
        );
        assert_eq!(named("a/b:c/d.GGUF"), Some(("a/b", "c/d.GGUF")));
        for name in [
            "a/b",
            "a/b.gguf",
            "a/b:",
            "a/b:Q4_1",
            "a:b.gguf",
            "/a/b:c.gguf",
            "a/b:../c.gguf",
            "a/b:/c.gguf",
            "a/b:.gguf",
            "C:/a.gguf",
        ] {
            assert_eq!(named(name), None, "{name}");
        }
    }
}
