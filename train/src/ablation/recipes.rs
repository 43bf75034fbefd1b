//! Recipes: changes of one configuration, and the runs that they make with several seeds.

use std::collections::HashSet;
use std::str::FromStr;

use crate::config::{Config, ConfigError, Source, TextSource};

/// The longest name that is made of a recipe's changes, in bytes. The name is also that of the run folder.
const LONGEST_NAME: usize = 100;

/// Changes of a configuration, under a name.
///
/// As text: `KEY=VALUE; KEY=VALUE; ...`, with keys as in `--set`. Two keys are special: `name` is the name (without it,
/// the name is made of the changes), and `stages=NAME,...` leaves out all other stages.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Its name in the table and in the folders of its runs.
    pub name: String,
    /// Each `key=value`.
    pub changes: Vec<String>,
    /// The names of the stages that run; if empty, all stages, or those that are chosen for all recipes.
    pub stages: Vec<String>,
    /// The student's perplexity over the teacher's that the published modules reach, where that is known.
    pub published: Option<f64>,
}

/// A recipe as configurations.
#[derive(Debug, Clone)]
pub struct Variant {
    /// What was asked for.
    pub recipe: Recipe,
    /// One for each seed.
    pub configs: Vec<Config>,
}

/// Why recipes cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Text that is no recipe.
    #[error("variant `{text}`: {reason}")]
    Text {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two recipes whose runs would be in one folder.
    #[error(
        "two variants are called `{0}`; give each a name of its own, as in `name=NAME; KEY=VALUE`"
    )]
    SameName(String),
    /// A seed that stands twice.
    #[error("seed {0} stands twice among the seeds, and the same seed gives the same run")]
    SameSeed(u64),
    /// Text that is there once, for several runs.
    #[error(
        "variant {0}: only one run can read standard input; write the text into a file, and name that file"
    )]
    StandardInput(String),
    /// Changes that do not fit the configuration.
    #[error("variant {name}: {source}")]
    Config {
        /// The recipe.
        name: String,
        /// What does not fit.
        source: Box<ConfigError>,
    },
}

impl FromStr for Recipe {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let wrong = |reason| RecipeError::Text {
            text: text.trim().to_owned(),
            reason,
        };
        let (mut name, mut changes, mut stages) = (None, vec![], vec![]);
        let parts = text.split(';').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(wrong("write KEY=VALUE, several with `;` between them"));
            };
            match (key.trim(), value.trim()) {
                ("name", value) => name = Some(value.to_owned()),
                ("stages", value) => {
                    let names = value.split(',').map(|name| name.trim().to_owned());
                    stages = names.collect();
                }
                ("seed", _) => return Err(wrong("the seeds are those of --seeds")),
                _ => changes.push(part.to_owned()),
            }
        }
        let name = name.unwrap_or_else(|| name_of(text));
        if name.is_empty() {
            return Err(wrong(
                "it changes nothing; one that is the configuration itself needs a name, as in `name=base`",
            ));
        }
        Ok(Self {
            name,
            changes,
            stages,
            published: None,
        })
    }
}

impl Recipe {
    /// The recipes of a file: one a line, without empty lines and those that begin with `#`.
    ///
    /// # Errors
    /// [`RecipeError::Text`] of the first line that is none.
    pub fn list(text: &str) -> Result<Vec<Self>, RecipeError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::parse::<Self>).collect()
    }
}

/// The changes as letters, digits, `.`, `_` and `-`.
fn name_of(changes: &str) -> String {
    let mut name = String::new();
    for letter in changes.chars() {
        if name.len() >= LONGEST_NAME {
            break;
        }
        if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-') {
            name.push(letter);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let end = |letter| matches!(letter, '-' | '.');
    name.trim_matches(end).to_owned()
}

impl Variant {
    /// The configurations of `recipes` with each of `seeds`. Each starts from `source`, with the overrides `set` and
    /// then those of the recipe; it keeps `stages`, if any are named, or the recipe's own stages. All are made before
    /// the first run, so that a mistake in the last one is found at once.
    ///
    /// # Errors
    /// [`RecipeError`]: two recipes or seeds are the same, changes do not fit, or one reads standard input.
    pub fn resolve(
        source: Source<'_>,
        set: &[String],
        stages: &[String],
        recipes: &[Recipe],
        seeds: &[u64],
    ) -> Result<Vec<Self>, RecipeError> {
        let mut known = HashSet::new();
        if let Some(seed) = seeds.iter().find(|seed| !known.insert(**seed)) {
            return Err(RecipeError::SameSeed(*seed));
        }
        // File systems may not tell small letters from capitals.
        let mut names = HashSet::new();
        let twice = (recipes.iter()).find(|recipe| !names.insert(recipe.name.to_lowercase()));
        if let Some(recipe) = twice {
            return Err(RecipeError::SameName(recipe.name.clone()));
        }
        let config = |recipe: &Recipe, seed: &u64| -> Result<Config, ConfigError> {
            let mut all = [set, &recipe.changes].concat();
            all.push(format!("name={}-seed-{seed}", recipe.name));
            all.push(format!("seed={seed}"));
            let mut config = Config::load(source, &all)?;
            let stages = match &recipe.stages[..] {
                [] => stages,
                own => own,
            };
            if !stages.is_empty() {
                config.choose_stages(stages)?;
            }
            Ok(config)
        };
        let variant = |recipe: &Recipe| -> Result<Self, RecipeError> {
            let configs = seeds.iter().map(|seed| config(recipe, seed));
            let configs = configs.collect::<Result<Vec<_>, _>>();
            let configs = configs.map_err(|source| RecipeError::Config {
                name: recipe.name.clone(),
                source: source.into(),
            })?;
            if configs.iter().any(reads_standard_input) {
                return Err(RecipeError::StandardInput(recipe.name.clone()));
            }
            Ok(Self {
                recipe: recipe.clone(),
                configs,
            })
        };
        recipes.iter().map(variant).collect()
    }
}

fn reads_standard_input(config: &Config) -> bool {
    let of_stages = config.stages.iter().flat_map(|stage| &stage.data);
    let of_all = config.data.train.iter().chain(&config.data.validation);
    let mut sources = of_stages.chain(of_all);
    sources.any(TextSource::is_standard_input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        text.parse().expect(text)
    }

    fn resolve(texts: &[&str], seeds: &[u64]) -> Result<Vec<Variant>, RecipeError> {
        let recipes: Vec<_> = texts.iter().map(|text| recipe(text)).collect();
        let set = ["stage3.tokens=2048".to_owned()];
        Variant::resolve(Source::Preset("tiny"), &set, &[], &recipes, seeds)
    }

    #[test]
    fn recipes_are_changes() {
        let found = recipe("student.init=calibrated; stage2.lr = {mixer = 1e-3, norm = 1e-4};");
        assert_eq!(
            found.changes,
            [
                "student.init=calibrated",
                "stage2.lr = {mixer = 1e-3, norm = 1e-4}"
            ]
        );
        assert_eq!(
            found.name,
            "student.init-calibrated-stage2.lr-mixer-1e-3-norm-1e-4"
        );
        let found = recipe("name=short; stages=stage2, stage3; stage3.lr=1e-4");
        assert_eq!(found.name, "short");
        assert_eq!(found.stages, ["stage2", "stage3"]);
        assert_eq!(found.changes, ["stage3.lr=1e-4"]);
        assert_eq!(recipe("name=base").changes, [""; 0]);
        let long = recipe(&format!("student.init={}", "x".repeat(300)));
        assert_eq!(long.name.len(), LONGEST_NAME);

        for (wrong, words) in [
            ("", "changes nothing"),
            (" ; ", "changes nothing"),
            ("stage3.lr", "KEY=VALUE"),
            ("seed=7", "--seeds"),
        ] {
            let message = wrong.parse::<Recipe>().unwrap_err().to_string();
            assert!(message.contains(words), "{wrong}: {message}");
        }
        let list = Recipe::list("# rates\n\nname=base\n  stage3.lr=1e-4\n").unwrap();
        assert_eq!(list, [recipe("name=base"), recipe("stage3.lr=1e-4")]);
    }

    #[test]
    fn each_recipe_runs_with_each_seed() {
        let variants = resolve(&["name=base", "stage3.lr=1e-4; stages=stage3"], &[1, 2]).unwrap();
        let configs: Vec<_> = variants
            .iter()
            .flat_map(|variant| &variant.configs)
            .collect();
        let names: Vec<_> = configs.iter().map(|config| config.name.as_str()).collect();
        let expected = [
            "base-seed-1",
            "base-seed-2",
            "stage3.lr-1e-4-stages-stage3-seed-1",
            "stage3.lr-1e-4-stages-stage3-seed-2",
        ];
        assert_eq!(names, expected);
        assert!(configs.iter().map(|config| config.seed).eq([1, 2, 1, 2]));
        let stages: Vec<_> = configs.iter().map(|config| config.stages.len()).collect();
        assert_eq!(stages, [3, 3, 1, 1]);
        assert_eq!(configs[2].stages[0].lr.highest(), 1e-4);
        assert!(configs.iter().all(|config| {
            config
                .stage("stage3")
                .is_some_and(|stage| stage.tokens == 2048)
        }));
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        for (texts, seeds, words) in [
            (
                &["name=a", "name=A; stage3.lr=1"][..],
                &[1][..],
                "name of its own",
            ),
            (&["name=a"], &[1, 2, 1], "seed 1 stands twice"),
            (&["name=a", "name=b; stage3.lrr=1"], &[1], "variant b: "),
            (&["name=a", "stages=stage4"], &[1], "no stage `stage4`"),
            (&["name=a/b"], &[1], "a folder's name"),
            (&["name=a; data.train=-"], &[1], "standard input"),
        ] {
            let message = resolve(texts, seeds).unwrap_err().to_string();
            assert!(message.contains(words), "{texts:?}: {message}");
        }
    }
}
