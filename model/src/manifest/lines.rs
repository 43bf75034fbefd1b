//! The lines of a manifest: those that `sha256sum` writes, with `--tag` (BSD's form) or without.

use std::path::{Component, Path};

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The SHA-256 of a file inside the folder, in small letters.
    File { name: String, digest: String },
    /// Nothing: a comment, or no text.
    Nothing,
    /// Something of a file outside the folder, or another checksum than a SHA-256.
    Other,
    /// It cannot be understood.
    Unknown,
}

impl Line {
    pub(super) fn parse(line: &str) -> Self {
        if line.trim().is_empty() || line.starts_with('#') {
            return Self::Nothing;
        }
        let (is_escaped, text) = match line.strip_prefix('\\') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let Some((kind, name, digest)) = plain(text).or_else(|| tagged(text)) else {
            return Self::Unknown;
        };
        if !is_sha256(kind) {
            return Self::Other;
        }
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let name = if is_escaped {
            unescape(name)
        } else {
            Some(name.to_owned())
        };
        match name.filter(|_| is_digest) {
            None => Self::Unknown,
            Some(name) => inside(&name).map_or(Self::Other, |name| Self::File {
                name,
                digest: digest.to_ascii_lowercase(),
            }),
        }
    }

    /// The line of a file.
    pub(super) fn of(name: &str, digest: &str) -> String {
        let escaped = name
            .replace('\\', "\\\\")
            .replace('\n', "\\n")
            .replace('\r', "\\r");
        // So `sha256sum` says that a name has escapes.
        let mark = if escaped == name { "" } else { "\\" };
        format!("{mark}{digest}  {escaped}\n")
    }
}

/// `DIGEST  NAME`: the kind of checksum, the name and the digest. A star before the name says that the file was read
/// as bytes, which here all are.
fn plain(line: &str) -> Option<(&str, &str, &str)> {
    let (digest, name) = line.split_at_checked(64)?;
    let name = name.strip_prefix("  ").or(name.strip_prefix(" *"))?;
    Some(("SHA256", name, digest))
}

/// `SHA256 (NAME) = DIGEST`, or the same of another kind of checksum, with or without the blanks.
fn tagged(line: &str) -> Option<(&str, &str, &str)> {
    let (kind, rest) = line.split_once('(')?;
    let (name, digest) = rest.rsplit_once(')')?;
    let (kind, digest) = (
        kind.trim_end(),
        digest.trim_start().strip_prefix('=')?.trim(),
    );
    let is_word = |text: &str, more: &[u8]| {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        !text.is_empty() && text.bytes().all(usual)
    };
    (is_word(kind, b"-_/") && is_word(digest, b"+/=")).then_some((kind, name, digest))
}

fn is_sha256(kind: &str) -> bool {
    ["SHA256", "SHA2-256", "SHA-256"]
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known))
}

/// `name` without dots for the folder itself, if it is that of a file inside of it.
pub(super) fn inside(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty() && !name.contains('\0')).then(|| parts.join("/"))
}

fn unescape(name: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        text.push(match c {
            '\\' => match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(text)
}
