//! Models that are one GGUF file of a repository, of which many hold several: one for each way to quantise.

use std::fs;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use super::fetch::is_name;
use super::{Hub, Revision, is_repository};
use crate::weights::{WeightsError, has_gguf_ending};

/// Which GGUF file of a repository a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// The one with this name, as in OWNER/NAME:FILE.gguf.
    File(&'a str),
    /// The only one whose name ends so, as in OWNER/NAME:Q4_K_M: mostly the way in which it is quantised.
    Tag(&'a str),
}

/// The repository and the file of OWNER/NAME:FILE.gguf or OWNER/NAME:TAG. `None` of another name.
pub(super) fn named(name: &str) -> Option<(&str, Which<'_>)> {
    let (repository, file) = name.split_once(':')?;
    if !is_repository(repository) {
        return None;
    }
    let is_inside = |part: Component| matches!(part, Component::Normal(_));
    if !has_gguf_ending(Path::new(file)) {
        is_name(file).then_some((repository, Which::Tag(file)))
    } else if Path::new(file).components().all(is_inside) {
        Some((repository, Which::File(file)))
    } else {
        None
    }
}

/// The name without its number of a file NAME-00001-of-00003, and how many files there are.
fn part(stem: &str) -> Option<(&str, usize)> {
    let (before, count) = stem.rsplit_once("-of-")?;
    let (whole, number) = before.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(number) || !is_number(count) {
        return None;
    }
    Some((whole, count.parse().ok()?))
}

/// The name of `file` without folders and its ending.
fn stem(file: &str) -> &str {
    let stem = Path::new(file).file_stem();
    stem.and_then(|stem| stem.to_str()).unwrap_or_default()
}

/// Whether the name of the GGUF file `file` ends in `tag`, whose case does not matter: as `a-Q4_0.gguf` does in
/// `q4_0`, and `a-IQ4_0.gguf` does not.
fn has_tag(file: &str, tag: &str) -> bool {
    let stem = stem(file);
    let stem = part(stem).map_or(stem, |(whole, _)| whole);
    let at = stem.len().checked_sub(tag.len());
    let halves = at.and_then(|at| stem.split_at_checked(at));
    halves.is_some_and(|(before, end)| {
        end.eq_ignore_ascii_case(tag) && !before.ends_with(char::is_alphanumeric)
    })
}

/// Checks that `file` is a whole model.
///
/// # Errors
/// If the file is one part of a model that is split into several files.
fn check_whole(file: &str) -> Result<(), String> {
    match part(stem(file)) {
        Some((whole, count)) if count > 1 => Err(format!(
            "{whole} is split into {count} GGUF files, which are not read; fetch them, join them by \
             `llama-gguf-split --merge`, and name the joined file"
        )),
        _ => Ok(()),
    }
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

    /// The GGUF file in the cache whose name ends in `tag`, if there is one.
    fn cached_with_tag(&self, repository: &str, tag: &str) -> Option<PathBuf> {
        let main = self.main(repository)?;
        let snapshot = self.folder(repository).join("snapshots").join(main);
        let entries = WalkDir::new(snapshot).into_iter().flatten();
        let mut files = entries.map(|entry| entry.into_path()).filter(|path| {
            let is_it = |name: &str| has_tag(name, tag) && check_whole(name).is_ok();
            has_gguf_ending(path) && path.exists() && path.to_str().is_some_and(is_it)
        });
        let first = files.next()?;
        files.next().is_none().then_some(first)
    }

    /// The GGUF file of `repository` whose name ends in `tag`; `name` is what the user calls it.
    pub(super) fn with_tag(
        &self,
        repository: &str,
        tag: &str,
        name: &str,
    ) -> Result<PathBuf, WeightsError> {
        let cached = self.cached_with_tag(repository, tag);
        if self.offline {
            return cached.ok_or_else(|| self.not_here(name));
        }
        // Only the hub knows whether other files have the tag too. If the hub cannot be reached, the cached file is
        // used.
        let main = self.main(repository);
        let revision = self.revision(repository, main.as_deref().unwrap_or("main"));
        let fetched = match (revision, cached) {
            (Ok(revision), _) => revision.fetch_with_tag(tag),
            (Err(_), Some(cached)) => Ok(cached),
            (Err(reason), None) => Err(reason),
        };
        fetched.map_err(|reason| self.failed(name, reason))
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
    /// The names of several, or that the only one is split.
    pub(super) fn only_gguf(&self) -> Result<Option<&str>, String> {
        let ggufs = self.ggufs();
        let Some(&first) = ggufs.first() else {
            return Ok(None);
        };
        if !are_one(&ggufs) {
            return Err(format!("it holds several models{}", self.gguf_names()));
        }
        check_whole(first)?;
        Ok(Some(first))
    }

    /// Its GGUF file whose name ends in `tag`, fetched if the cache lacks it.
    fn fetch_with_tag(&self, tag: &str) -> Result<PathBuf, String> {
        let mut found = self.ggufs();
        found.retain(|file| has_tag(file, tag));
        let Some(&first) = found.first() else {
            let named = self.gguf_names();
            return Err(format!(
                "it holds no GGUF file whose name ends in {tag}{named}"
            ));
        };
        if !are_one(&found) {
            let found = found.join(", ");
            return Err(format!(
                "the names of several files end in {tag}; name one as in OWNER/NAME:{first}: {found}"
            ));
        }
        check_whole(first)?;
        let file = self.get(first)?;
        self.becomes_main()?;
        Ok(file)
    }

    /// Checks that the repository has `file`, and that the file is a whole model, if it is a GGUF file.
    ///
    /// # Errors
    /// The names of those that it has, or that the model is split.
    pub(super) fn check_gguf(&self, file: &str) -> Result<(), String> {
        if !has_gguf_ending(Path::new(file)) {
            return Ok(());
        }
        if !self.has(file) {
            return Err(format!("it holds no {file}{}", self.gguf_names()));
        }
        check_whole(file)
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

/// Whether these GGUF files are one model: one file, or all parts of one.
fn are_one(files: &[&str]) -> bool {
    let wholes: Vec<_> = files.iter().map(|file| part(stem(file))).collect();
    files.len() == 1 || (wholes[0].is_some() && wholes.iter().all(|whole| *whole == wholes[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_behind_their_repository() {
        let file = |repository, file| Some((repository, Which::File(file)));
        let tag = |repository, tag| Some((repository, Which::Tag(tag)));
        assert_eq!(
            named("a/b-GGUF:b.Q4_1.gguf"),
            file("a/b-GGUF", "b.Q4_1.gguf")
        );
        assert_eq!(named("a/b:c/d.GGUF"), file("a/b", "c/d.GGUF"));
        assert_eq!(named("a/b:Q4_1"), tag("a/b", "Q4_1"));
        assert_eq!(named("a/b:UD-IQ2_XXS"), tag("a/b", "UD-IQ2_XXS"));
        for name in [
            "a/b",
            "a/b.gguf",
            "a/b:",
            "a/b:c/Q4_1",
            "a/b:Q4 1",
            "a:Q4_1",
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

    #[test]
    fn tags_are_ends_of_names() {
        for (file, tag, is_it) in [
            ("m-Q4_K_M.gguf", "Q4_K_M", true),
            ("deep/m.q4_k_m.gguf", "Q4_K_M", true),
            ("Q4_K_M.gguf", "q4_k_m", true),
            ("m-UD-Q4_K_XL.gguf", "Q4_K_XL", true),
            ("m-Q4_K_M-00002-of-00003.gguf", "Q4_K_M", true),
            ("m-Q4_K_M.gguf", "Q4_K", false),
            ("m-IQ4_XS.gguf", "Q4_XS", false),
            ("m-bf16.gguf", "f16", false),
            ("m.gguf", "Q4_K_M", false),
            ("Q4_K_M/m.gguf", "Q4_K_M", false),
            ("\u{e9}.gguf", "9", false),
        ] {
            assert_eq!(has_tag(file, tag), is_it, "{file} {tag}");
        }
        assert_eq!(part("m-00001-of-00012"), Some(("m", 12)));
        for stem in ["m", "m-1-of-3", "00001-of-00003", "m-00001-of-0000x"] {
            assert_eq!(part(stem), None, "{stem}");
        }
        assert!(check_whole("m-00001-of-00001.gguf").is_ok());
        assert!(check_whole("m-00001-of-00002.gguf").is_err());
        assert!(are_one(&[
            "a/m-00001-of-00002.gguf",
            "a/m-00002-of-00002.gguf"
        ]));
        assert!(!are_one(&[
            "m-00001-of-00002.gguf",
            "n-00001-of-00002.gguf"
        ]));
        assert!(!are_one(&["m.gguf", "n.gguf"]));
    }
}
