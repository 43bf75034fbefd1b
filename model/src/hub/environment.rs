//! What the environment says of the hub, as Hugging Face's own tools understand it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;

use super::Hub;
use crate::weights::WeightsError;

impl Hub {
    /// As Hugging Face's own tools understand the environment: `HF_ENDPOINT`, else huggingface.co;
    /// `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in `HF_HOME`, which is `huggingface` in
    /// `XDG_CACHE_HOME` or in `~/.cache` if it is not set; `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else what
    /// `hf auth login` keeps in `HF_TOKEN_PATH` or as `token` in `HF_HOME`, none of them if
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN=1`; `HF_HUB_OFFLINE=1`, else `TRANSFORMERS_OFFLINE=1`.
    ///
    /// In folders and files, `~` is the home folder, and `$NAME` and `${NAME}` are other variables. Line ends and
    /// outer blanks are no part of a token.
    ///
    /// # Errors
    /// [`WeightsError::NoCache`] if none of these says where the cache is and there is no home folder.
    pub fn from_env() -> Result<Self, WeightsError> {
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let variable = |name: &str| std::env::var_os(name);
        Environment { variable, home }.hub()
    }
}

/// Variables by their names, and the home folder.
struct Environment<F> {
    variable: F,
    home: Option<PathBuf>,
}

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    fn hub(&self) -> Result<Hub, WeightsError> {
        let below_home = |caches: &PathBuf| caches.join("huggingface");
        let caches = || {
            let own = self.home.as_ref().map(|home| home.join(".cache"));
            self.path("XDG_CACHE_HOME").or(own)
        };
        let home = self
            .path("HF_HOME")
            .or_else(|| caches().as_ref().map(below_home));
        let beside = |name| home.as_ref().map(|home| home.join(name));
        let cache = self.path("HF_HUB_CACHE");
        let cache = cache.or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        let endpoint = self.text("HF_ENDPOINT");
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: cache
                .or_else(|| beside("hub"))
                .ok_or(WeightsError::NoCache)?,
            token: if self.is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                None
            } else {
                self.token(|| self.path("HF_TOKEN_PATH").or_else(|| beside("token")))
            },
            offline: self.is_set("HF_HUB_OFFLINE") || self.is_set("TRANSFORMERS_OFFLINE"),
        })
    }

    fn token(&self, file: impl FnOnce() -> Option<PathBuf>) -> Option<String> {
        let given = self.text("HF_TOKEN");
        let given = given.or_else(|| self.text("HUGGING_FACE_HUB_TOKEN"));
        let token = given.or_else(|| fs::read_to_string(file()?).ok())?;
        // A copy of several lines of a terminal is one token.
        let token = token.replace(['\r', '\n'], "");
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }

    /// A variable that is not blank, without its outer blanks and line ends.
    fn text(&self, name: &str) -> Option<String> {
        let value = (self.variable)(name)?.into_string().ok()?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn is_set(&self, name: &str) -> bool {
        let value = self.text(name).unwrap_or_default().to_lowercase();
        ["1", "on", "yes", "true"].contains(&&*value)
    }

    /// A folder or a file, if the variable is not empty.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let value = (self.variable)(name).filter(|value| !value.is_empty())?;
        // A name that is no text has neither of these.
        let Some(text) = value.to_str() else {
            return Some(value.into());
        };
        let rest = text
            .strip_prefix('~')
            .filter(|rest| rest.is_empty() || rest.starts_with('/'));
        match (rest, &self.home) {
            (Some(rest), Some(home)) => {
                let mut path = home.clone().into_os_string();
                path.push(self.with_variables(rest));
                Some(path.into())
            }
            _ => Some(self.with_variables(text).into()),
        }
    }

    /// `text` with the values of the variables that it names. Those that are not set stay as they are.
    fn with_variables(&self, text: &str) -> OsString {
        let mut expanded = OsString::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push(before);
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, length) = match after
                .strip_prefix('{')
                .and_then(|name| name.split_once('}'))
            {
                Some((name, _)) => (name, name.len() + 2),
                None => {
                    let length = after.find(|c| !is_part(c)).unwrap_or(after.len());
                    (&after[..length], length)
                }
            };
            let value = Some(name)
                .filter(|name| !name.is_empty())
                .and_then(&self.variable);
            match value {
                Some(value) => expanded.push(value),
                None => {
                    expanded.push("$");
                    expanded.push(&after[..length]);
                }
            }
            rest = &after[length..];
        }
        expanded.push(OsStr::new(rest));
        expanded
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The hub of an environment of these variables only, for a user of the home folder `/home/me`.
    fn hub(variables: &[(&str, &str)]) -> Hub {
        let variable = |name: &str| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| OsString::from(value))
        };
        let home = Some("/home/me".into());
        Environment { variable, home }.hub().unwrap()
    }

    #[test]
    fn folders_are_expanded() {
        for (variables, expected) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "~/c")], "/home/me/c/huggingface/hub"),
            (&[("HF_HOME", "~/x")], "/home/me/x/hub"),
            (&[("HF_HOME", "~")], "/home/me/hub"),
            (&[("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
            (&[("HF_HOME", "~other/x")], "~other/x/hub"),
            (&[("HF_HOME", "/a~/x")], "/a~/x/hub"),
            (&[("HF_HOME", "$D/x"), ("D", "/scratch")], "/scratch/x/hub"),
            (&[("HF_HOME", "/a/${D}b$D"), ("D", "$D")], "/a/$Db$D/hub"),
            (&[("HF_HOME", "/a/$UNSET/${}/$")], "/a/$UNSET/${}/$/hub"),
            (&[("HUGGINGFACE_HUB_CACHE", "~/old")], "/home/me/old"),
            (
                &[
                    ("HF_HUB_CACHE", "~/new"),
                    ("HUGGINGFACE_HUB_CACHE", "/old"),
                    ("HF_HOME", "/h"),
                ],
                "/home/me/new",
            ),
        ] {
            assert_eq!(hub(variables).cache, Path::new(expected), "{variables:?}");
        }
        let homeless = Environment {
            variable: |_: &str| None,
            home: None,
        };
        assert!(matches!(homeless.hub(), Err(WeightsError::NoCache)));
    }

    #[test]
    fn tokens_have_no_line_ends_and_no_outer_blanks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        fs::write(folder.path().join("token"), "  hf_file\r\n").unwrap();
        for (variables, expected) in [
            (&[("HF_TOKEN", " hf_a\r\n")][..], Some("hf_a")),
            (&[("HF_TOKEN", "hf_\na\n")], Some("hf_a")),
            (
                &[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")],
                Some("hf_a"),
            ),
            (&[("HUGGING_FACE_HUB_TOKEN", "hf_b\t")], Some("hf_b")),
            // One that is blank is none.
            (&[("HF_TOKEN", " \n"), ("HF_HOME", path)], Some("hf_file")),
            (
                &[("HF_TOKEN_PATH", "$P/token"), ("P", path)],
                Some("hf_file"),
            ),
            (&[("HF_TOKEN_PATH", "/nowhere"), ("HF_HOME", path)], None),
            (
                &[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
                None,
            ),
        ] {
            assert_eq!(hub(variables).token.as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    fn the_rest() {
        let given = hub(&[
            ("HF_ENDPOINT", "http://mirror:80//\n"),
            ("HF_HUB_OFFLINE", "True"),
        ]);
        assert_eq!(given.endpoint, "http://mirror:80");
        assert!(given.offline);
        assert!(hub(&[("TRANSFORMERS_OFFLINE", "1\n")]).offline);
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(
            hub(&[("HF_ENDPOINT", "")]).endpoint,
            "https://huggingface.co"
        );
    }
}
