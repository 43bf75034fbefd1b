//! Where a configured path is looked for.

use std::path::{Component, Path, PathBuf};

use super::{Config, ConfigError};

/// The folder that holds `assets/`: the workspace this crate was built in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

impl Config {
    /// The same with every path that exists made absolute, so that it means the same from any working directory.
    ///
    /// Names on the hub and standard input do not change. Neither does a path that does not exist, which is an error
    /// when it is read, nor one whose absolute form is not UTF-8, which TOML cannot hold.
    pub fn with_absolute_paths(mut self) -> Self {
        let stages = self.stages.iter_mut();
        let texts = stages.flat_map(|stage| stage.data.iter_mut());
        let data = &mut self.data;
        let texts = texts
            .chain(data.train.iter_mut())
            .chain(data.validation.iter_mut());
        for text in texts.filter(|text| text.is_local()) {
            if let Ok(found) = resolve_text(&text.path) {
                make_absolute(&mut text.path, &found);
            }
        }
        for path in [&mut self.teacher.model, &mut data.tokenizer] {
            if let Ok(found) = resolve_path(path) {
                make_absolute(path, &found);
            }
        }
        // They need not exist yet.
        let stages = self.stages.iter_mut();
        let teachers = stages.filter_map(|stage| stage.kind.teacher_cache_mut());
        let infer = Some(&mut self.evaluation.infer);
        // A name alone is looked for in `PATH`.
        let infer = infer.filter(|path| Path::new(path.as_str()).components().count() > 1);
        let own = [
            &mut data.cache,
            &mut self.student.from,
            &mut self.evaluation.task_data,
        ];
        let own = own.into_iter().chain(infer);
        for path in teachers.chain(own).filter(|path| !path.is_empty()) {
            let relative = path.clone();
            make_absolute(path, Path::new(&relative));
        }
        self
    }
}

fn make_absolute(path: &mut String, found: &Path) {
    // Neither `..` nor links are resolved: the name of a link may say what format its target has.
    if let Ok(absolute) = std::path::absolute(found)
        && let Some(absolute) = absolute.to_str()
    {
        *path = absolute.to_owned();
    }
}

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

/// The existing file or folder that a configured source of text means, as [`resolve_path`], or the pattern of paths:
/// the folder before the first component with `*`, `?` or `[` is looked for in the same places.
///
/// # Errors
/// As [`resolve_path`].
pub fn resolve_text(path: &str) -> Result<PathBuf, ConfigError> {
    match resolve_path(path) {
        Err(_) if datasets::is_pattern(path) => {}
        found => return found,
    }
    let components = || Path::new(path).components();
    let is_plain = |component: &Component| {
        let text = component.as_os_str().to_str();
        text.is_none_or(|text| !datasets::is_pattern(text))
    };
    let plain = components().take_while(is_plain).count();
    let base: PathBuf = components().take(plain).collect();
    let rest: PathBuf = components().skip(plain).collect();
    let base = match base.to_str() {
        Some("") | None => PathBuf::from("."),
        Some(base) => resolve_path(base)?,
    };
    Ok(base.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, TextSource};

    #[test]
    fn a_configuration_means_the_same_from_anywhere() {
        // Tests run in the folder of the crate.
        let here = std::env::current_dir().unwrap();
        let set = [
            "data.train=src/lib.rs,./src/../src/lib.rs,src/*/m?d.rs,assets/text/*.gz,hub:o/n:a*,-,*.toml,no/*.txt",
            "stage2.data=src",
            "data.tokenizer=assets/phi-tiny",
            "data.cache=not/there",
            "stage3.data=not/there.txt",
        ];
        let config = Config::load(Source::Preset("tiny"), &set.map(str::to_owned)).unwrap();
        let absolute = config.with_absolute_paths();
        let bundled_text = Path::new(WORKSPACE).canonicalize().unwrap();
        let bundled_text = bundled_text.join("assets/text/*.gz");
        let of = |path: &str| here.join(path).to_str().unwrap().to_owned();
        assert_eq!(
            absolute.data.train,
            [
                of("src/lib.rs"),
                of("src/../src/lib.rs"),
                of("src/*/m?d.rs"),
                bundled_text.to_str().unwrap().to_owned(),
                "hub:o/n:a*".to_owned(),
                "-".to_owned(),
                of("*.toml"),
                "no/*.txt".to_owned(),
            ]
            .map(TextSource::from)
        );
        assert_eq!(absolute.stages[1].data, [of("src").into()]);
        assert_eq!(absolute.data.cache, of("not/there"));
        assert_eq!(absolute.stages[2].data, ["not/there.txt".into()]);
        let bundled = Path::new(&absolute.teacher.model);
        assert!(bundled.is_absolute() && bundled.ends_with("assets/phi-tiny"));
        assert_eq!(absolute.data.tokenizer, absolute.teacher.model);
        assert_eq!(absolute.clone().with_absolute_paths(), absolute);

        let hub = ["teacher.model=microsoft/phi-1_5".to_owned()];
        let hub = Config::load(Source::Preset("tiny"), &hub).unwrap();
        assert_eq!(hub.with_absolute_paths().teacher.model, "microsoft/phi-1_5");
    }
}
