//! Measures what each stage contributes: one budget of tokens is spent on the last stage of the `tiny` preset alone, on
//! the last two stages, and on all three.

use std::str::FromStr;

use super::Recipe;

/// A budget of tokens, and how the published modules' runs at that budget were set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// 262,144 tokens, 4 sequences of 256 a step.
    Small,
    /// 4,194,304 tokens, 16 sequences of 512 a step.
    Large,
}

/// One combination of stages.
#[derive(Debug, Clone, Copy)]
struct Arm {
    /// A stage of the preset, its share of the budget, its learning rate.
    stages: &'static [(&'static str, f64, f64)],
    /// The student's perplexity over the teacher's that the published modules reach.
    published: f64,
}

const SMALL: [Arm; 3] = [
    Arm {
        stages: &[("stage3", 1.0, 1e-3)],
        published: 1.877,
    },
    Arm {
        stages: &[("stage2", 0.6, 5e-3), ("stage3", 0.4, 1e-3)],
        published: 1.494,
    },
    Arm {
        stages: &[
            ("stage1", 0.1, 1e-3),
            ("stage2", 0.5, 5e-3),
            ("stage3", 0.4, 1e-3),
        ],
        published: 1.523,
    },
];

const LARGE: [Arm; 3] = [
    Arm {
        stages: &[("stage3", 1.0, 2e-3)],
        published: 1.089,
    },
    Arm {
        stages: &[("stage2", 0.4, 5e-3), ("stage3", 0.6, 1e-3)],
        published: 1.050,
    },
    Arm {
        stages: &[
            ("stage1", 0.05, 3e-3),
            ("stage2", 0.35, 5e-3),
            ("stage3", 0.6, 1e-3),
        ],
        published: 1.044,
    },
];

impl Budget {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// The budget in words.
    pub fn title(self) -> String {
        let (tokens, batch, context) = self.sizes();
        format!("{tokens} tokens, {batch} x {context}")
    }

    /// The combinations of stages, as changes of the `tiny` preset.
    pub fn recipes(self) -> Vec<Recipe> {
        let arms = match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        };
        arms.iter().map(|arm| self.recipe(arm)).collect()
    }

    /// Tokens, sequences a step, tokens a sequence.
    fn sizes(self) -> (u64, usize, usize) {
        match self {
            Self::Small => (262_144, 4, 256),
            Self::Large => (4_194_304, 16, 512),
        }
    }

    fn recipe(self, arm: &Arm) -> Recipe {
        let (tokens, batch, context) = self.sizes();
        let mut changes = vec![format!("data.context={context}")];
        for (stage, share, lr) in arm.stages {
            let steps = (share * tokens as f64 / (batch * context) as f64).round() as u64;
            let tokens = steps * (batch * context) as u64;
            changes.extend([
                format!("{stage}.tokens={tokens}"),
                format!("{stage}.batch={batch}"),
                format!("{stage}.lr={lr:?}"),
                format!("{stage}.warmup=0.1"),
                format!("{stage}.decay=0.2"),
            ]);
        }
        let stages = arm.stages.iter();
        let stages: Vec<_> = stages.map(|(name, ..)| (*name).to_owned()).collect();
        Recipe {
            name: stages.join("-"),
            changes,
            stages,
            published: Some(arm.published),
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "small" => Ok(Self::Small),
            "large" => Ok(Self::Large),
            _ => Err("there are two budgets, small and large".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ablation::Variant;
    use crate::config::Source;

    #[test]
    fn every_combination_spends_the_whole_budget() {
        for budget in [Budget::Small, Budget::Large] {
            let (all, batch, context) = budget.sizes();
            let recipes = budget.recipes();
            let variants =
                Variant::resolve(Source::Preset("tiny"), &[], &[], &recipes, &[7]).unwrap();
            for (variant, recipe) in variants.iter().zip(&recipes) {
                let config = &variant.configs[0];
                assert_eq!((config.seed, config.data.context), (7, context));
                assert_eq!(config.name, format!("{}-seed-7", recipe.stages.join("-")));
                let names = config.stages.iter().map(|stage| &stage.name);
                assert!(names.eq(&recipe.stages));
                let steps: usize = config.stages.iter().map(|stage| config.steps(stage)).sum();
                let tokens = (steps * batch * context) as u64;
                // Shares are rounded to whole steps.
                assert!(tokens.abs_diff(all) <= (batch * context) as u64, "{tokens}");
            }
        }
    }

    /// The list of changes that the README gives for the small budget is what the program does without any.
    #[test]
    fn the_documented_list_is_the_default() {
        let readme = include_str!("../../README.md");
        let varied = readme.split("--vary '").skip(1);
        let written: Vec<Recipe> = varied
            .filter_map(|text| text.split('\'').next())
            .filter(|text| text.contains("stages="))
            .map(|text| text.parse().expect("a recipe"))
            .collect();
        let resolve = |recipes: &[Recipe]| -> Vec<_> {
            let tiny = Source::Preset("tiny");
            let variants = Variant::resolve(tiny, &[], &[], recipes, &[42]).unwrap();
            let configs = variants.into_iter().flat_map(|variant| variant.configs);
            configs.collect()
        };
        assert_eq!(resolve(&written), resolve(&Budget::Small.recipes()));
    }
}
