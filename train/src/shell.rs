//! Paths in the advice that errors and notes give, in a form that can be pasted into a shell.

use std::path::Path;

/// `path` as one word of a command: quoted if a shell would read it otherwise.
pub(crate) fn word(path: &Path) -> String {
    let text = path.display().to_string();
    match shlex::try_quote(&text) {
        Ok(word) => word.into_owned(),
        // A path with a NUL byte, which no system opens.
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_split_is_quoted() {
        for plain in ["runs/tiny", "/tmp/.tmpA1/run-2.b_c"] {
            assert_eq!(word(Path::new(plain)), plain);
        }
        for strange in ["my run", "it's", "a;b", "$HOME", "run\u{fc}n *"] {
            let words = shlex::split(&word(Path::new(strange)));
            assert_eq!(words, Some(vec![strange.to_owned()]));
        }
    }
}
