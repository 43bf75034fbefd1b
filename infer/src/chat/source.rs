//! The source of a template, changed where Jinja and `minijinja` read it differently:
//!
//! - Every line end is `\n`.
//! - A line end after a backslash is no part of a string.
//! - `{% generation %}` marks what the model writes, which matters in training only. It becomes a scope.

/// The source for `minijinja`.
pub(super) fn adapted(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(source.len());
    let mut rest = &*source;
    while let Some(place) = rest.find('{') {
        let (before, after) = rest.split_at(place);
        text.push_str(before);
        let n = if after.starts_with("{#") {
            // A comment.
            let n = after.find("#}").unwrap_or(after.len());
            text.push_str(&after[..n]);
            n
        } else if after.starts_with("{{") {
            write_tag(&mut text, after, "}}")
        } else if after.starts_with("{%") {
            match word(after) {
                "raw" => {
                    let n = raw_length(after);
                    text.push_str(&after[..n]);
                    n
                }
                "generation" => write_scope(&mut text, after, "generation", "with"),
                "endgeneration" => write_scope(&mut text, after, "endgeneration", "endwith"),
                _ => write_tag(&mut text, after, "%}"),
            }
        } else {
            text.push('{');
            1
        };
        rest = &after[n..];
    }
    text + rest
}

/// The word that a statement begins with.
fn word(statement: &str) -> &str {
    let inside = statement[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &inside[..end.unwrap_or(inside.len())]
}

/// The bytes of a `{% raw %}` and of what follows, up to its end.
fn raw_length(text: &str) -> usize {
    let mut ends = text.match_indices("{%");
    let end = ends.find(|(place, _)| word(&text[*place..]) == "endraw");
    // Together with the beginning of the tag there, which needs no change.
    end.map_or(text.len(), |(place, _)| place + 2)
}

/// Writes the statement that `text` begins with, with another word, and returns its bytes.
fn write_scope(out: &mut String, text: &str, from: &str, to: &str) -> usize {
    let n = text.find("%}").unwrap_or(text.len());
    out.push_str(&text[..n].replacen(from, to, 1));
    n
}

/// Writes the tag that `text` begins with, which ends with `close`, and returns its bytes.
fn write_tag(out: &mut String, text: &str, close: &str) -> usize {
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((place, character)) = characters.next() {
        match quote {
            Some(_) if character == '\\' => {
                match characters.next() {
                    Some((_, '\n')) => {}
                    Some((_, escaped)) => out.extend(['\\', escaped]),
                    None => out.push('\\'),
                }
                continue;
            }
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if character == '"' || character == '\'' => quote = Some(character),
            None if text[place..].starts_with(close) => return place,
            None => {}
        }
        out.push(character);
    }
    text.len()
}
