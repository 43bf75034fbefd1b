//! Python's string methods and random numbers, as far as the harness's definitions depend on them.

pub use datasets::probes::random;

/// What `str.isspace` calls white space: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.capitalize`: makes the first letter upper-case and, which is easily overlooked, all others lower-case.
pub fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    // If one letter becomes several, only the first of them is upper-case: "ß" becomes "Ss".
    let mut large = first.to_uppercase();
    let capital = large.next().into_iter();
    let capital = capital.chain(large.flat_map(char::to_lowercase));
    // The lower-case form of a sigma depends on the letters around it, so the whole text is converted at once.
    let small = text.to_lowercase();
    let of_first = first.to_lowercase().map(char::len_utf8).sum();
    let rest = small.get(of_first..).unwrap_or_default();
    capital.chain(rest.chars()).collect()
}

/// `re.sub(r"\[.*?\]", "", text)`: from each bracket to the next closing one on its line.
pub fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, bracket) = rest.split_at(open);
        kept.push_str(before);
        let end = bracket.find([']', '\n']).unwrap_or(bracket.len() - 1);
        let (line, after) = bracket.split_at(end + 1);
        // Without a closing bracket, all open brackets of the line stay.
        if !line.ends_with(']') {
            kept.push_str(line);
        }
        rest = after;
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_what_python_strips() {
        assert_eq!(strip("\u{1f} \u{a0}a b\u{2003}\n"), "a b");
        assert_eq!(rstrip(" a\u{1c}\t"), " a");
        // Python does not count these two as white space.
        assert_eq!(strip("\u{200b}a\u{feff}"), "\u{200b}a\u{feff}");
    }

    #[test]
    fn capitalises_as_python_does() {
        assert_eq!(capitalize(""), "");
        assert_eq!(capitalize("the DOG of Ann"), "The dog of ann");
        assert_eq!(capitalize("ßA"), "Ssa");
        assert_eq!(capitalize("éTÉ"), "Été");
        assert_eq!(capitalize("ΑΣ"), "Ας");
    }

    #[test]
    fn brackets_go_with_what_is_in_them() {
        assert_eq!(without_brackets("a [b] c[d [e]f] g"), "a  cf] g");
        assert_eq!(without_brackets("a [b\n] [c] [d"), "a [b\n]  [d");
        assert_eq!(without_brackets("[[b\n[]x"), "[[b\nx");
    }
}
