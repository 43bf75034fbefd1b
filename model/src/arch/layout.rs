//! What each parameter is called in files.

/// The names of a family's tensors, as pairs of prefixes: the prefix of a parameter's path in a
/// [`CausalLm`](crate::CausalLm), and the prefix of its name in files. `#` stands for the number of a layer. The first
/// matching pair is used; a path that matches no pair is also the name.
///
/// A path is that of the modules' fields, with the kind of a mixer behind `mixer`, such as
/// `backbone.layers.0.mixer.Attention.q_proj.weight`. By default, names are paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout(&'static [(&'static str, &'static str)]);

impl Layout {
    /// A layout of these pairs.
    pub const fn new(pairs: &'static [(&'static str, &'static str)]) -> Self {
        Self(pairs)
    }

    /// The name in files of the parameter at `path`.
    pub fn name(self, path: &str) -> String {
        translate(path, self.0.iter().copied())
    }

    /// The path of the parameter that is called `name` in files: the inverse of [`name`](Self::name). For a
    /// name that belongs to no parameter, a path that belongs to none.
    pub fn path(self, name: &str) -> String {
        translate(name, self.0.iter().map(|(path, name)| (*name, *path)))
    }
}

/// `text` with its beginning changed by the first of `pairs` that fits.
fn translate<'a>(text: &str, mut pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let is_number =
        |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.split('.').find(is_number);
    let pattern = match number {
        Some(number) => text.replacen(&format!(".{number}."), ".#.", 1),
        None => text.to_owned(),
    };
    let changed = pairs.find_map(|(from, to)| Some(format!("{to}{}", pattern.strip_prefix(from)?)));
    let number = number.unwrap_or("#");
    changed.unwrap_or(pattern).replacen('#', number, 1)
}

#[cfg(test)]
mod tests {
    use super::Layout;

    const LAYOUT: Layout = Layout::new(&[
        ("a.layers.#.x.", "model.#.y."),
        ("a.layers.#.d", "model.#.D"),
        ("a.", "model."),
    ]);

    #[test]
    fn names_and_paths_are_inverse() {
        for (path, name) in [
            ("a.layers.12.x.weight", "model.12.y.weight"),
            ("a.layers.0.d", "model.0.D"),
            ("a.layers.3.z.1.weight", "model.layers.3.z.1.weight"),
            ("a.norm", "model.norm"),
            ("head.weight", "head.weight"),
        ] {
            assert_eq!(LAYOUT.name(path), name);
            assert_eq!(LAYOUT.path(name), path);
        }
        for name in ["", "#", ".", "7", "a.#.7.x", "model.7"] {
            // Whatever a file may hold.
            LAYOUT.path(name);
        }
    }
}
