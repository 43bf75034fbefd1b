//! The arguments that choose a teacher, for commands that train no student.

use clap::Args;

use crate::config::{Config, PRESETS, Source};

/// A teacher, by a preset or by itself.
#[derive(Debug, Args)]
pub(super) struct TeacherArgs {
    /// The preset to start from, whose teacher is taken unless --teacher names another
    #[arg(long, value_name = "NAME", default_value = PRESETS[0].0)]
    preset: String,

    /// The teacher: a folder, a GGUF file, or OWNER/NAME on the Hugging Face hub
    #[arg(long, value_name = "NAME")]
    teacher: Option<String>,

    /// Override one key of the preset, as in --set student.d_conv=2; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl TeacherArgs {
    /// The preset with that teacher, these keys and then those of `more`.
    ///
    /// # Errors
    /// Those of the configuration.
    pub(super) fn config(&self, more: impl IntoIterator<Item = String>) -> anyhow::Result<Config> {
        let mut set = self.set.clone();
        set.extend(more);
        let mut config = Config::load(Source::Preset(&self.preset), &set)?;
        if let Some(teacher) = &self.teacher {
            config.teacher.model.clone_from(teacher);
        }
        config.validate()?;
        Ok(config)
    }
}
