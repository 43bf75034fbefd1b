//! `infer quantize`: a model's folder with its weights in 8 or 4 bits.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::BinaryBytes;
use kernels::KernelBackend;
use kernels::runtime::{Backend, Work};
use model::{
    BESIDE_TOKENIZER, CONFIG, Family, GENERATION, TOKENIZER, WeightForm, WeightsError, atomic_file,
    manifest,
};

use super::CommandError;
use crate::output::say;
use crate::precision::{Precision, form_name};

const EXAMPLES: &str = "\
Examples:
  A student that takes a quarter of the memory and of the disk:
      infer quantize --model runs/tiny/student --dtype int4 --out student-int4
      infer generate --model student-int4 'It was'";

/// What a model can be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bits {
    /// 8 bits, with a scale for each row of a weight
    Int8,
    /// 4 bits, with a scale for each 32 numbers of a row; the head, in whose rows errors count most, in 8 bits
    Int4,
}

impl From<Bits> for Precision {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::Int8 => Self::Int8,
            Bits::Int4 => Self::Int4,
        }
    }
}

/// Writes a model with the weights of its projections in 8 or 4 bits.
///
/// The new folder has all that a model's folder needs: config.json, model.safetensors, and the tokenizer's files. All
/// commands read it, and find the same numbers as with --dtype int8 or int4 of the model itself. Embeddings,
/// normalisations and other small parameters stay as they are. A weight with rows that 4 bits cannot store is stored in 8
/// bits, and one that 8 bits cannot store stays as it is; how many are stored as what is said.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct QuantizeArgs {
    /// The folder of the model, a GGUF file, or a name on the Hugging Face hub
    #[arg(long, value_name = "FOLDER|FILE|OWNER/NAME[:FILE.gguf]")]
    model: PathBuf,

    /// What the weights of projections are stored in
    #[arg(long, value_enum)]
    dtype: Bits,

    /// The new folder; one that has a model already is refused
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

impl QuantizeArgs {
    /// Runs the command.
    pub fn run(self) -> Result<(), CommandError> {
        let from = model::locate(&self.model)?;
        if model::has_model(&self.out)? {
            return Err(CommandError::HasModel(self.out));
        }
        // Numbers are packed on the host, and need no device for that.
        let backend = Backend::on_host().or_else(Backend::preferred);
        let backend = backend.ok_or(kernels::runtime::BackendError::NotBuiltIn)?;
        let (bits, to) = (self.dtype, self.out.clone());
        let forms = backend.dispatch(Quantize { from, bits, to })??;
        let bytes = |folder: &Path| -> Result<u64, WeightsError> {
            let (_, tensors) = model::describe(folder)?;
            Ok(tensors.iter().map(|tensor| tensor.bytes).sum())
        };
        let size = BinaryBytes(bytes(&self.out)?);
        say(&format!(
            "{}: {size} of parameters; weights of projections: {}\n",
            self.out.display(),
            counted(&forms)
        ))?;
        Ok(())
    }
}

/// How many there are of each, in words.
fn counted(forms: &[WeightForm]) -> String {
    let all = [WeightForm::Int4, WeightForm::Int8, WeightForm::Float];
    let count = |form: WeightForm| forms.iter().filter(|own| **own == form).count();
    let counts = all.map(|form| (count(form), form_name(form)));
    let there = counts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<_> = there
        .map(|(count, name)| format!("{count} in {name}"))
        .collect();
    words.join(", ")
}

struct Quantize {
    from: PathBuf,
    bits: Bits,
    to: PathBuf,
}

impl Work for Quantize {
    type Output = Result<Vec<WeightForm>, CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        // Before the weights are read, which takes longer.
        let mut files = Vec::new();
        for name in [TOKENIZER, GENERATION].iter().chain(&BESIDE_TOKENIZER) {
            let file = model::small_file(&self.from, name)?;
            files.extend(file.map(|file| (*name, file.bytes)));
        }
        let stored = model::stored_dtype(&self.from)?;
        let file = model::small_file(&self.from, CONFIG)?;
        let text = file.map(|file| String::from_utf8_lossy(&file.bytes).into_owned());
        let precision = Precision::from(self.bits);
        let (config, network) = precision.load::<B>(&self.from, &device)?;
        let forms = network.forms();
        if network.form() == WeightForm::Float {
            return Err(CommandError::NothingToPack {
                folder: self.from,
                asked: precision.form().map_or("bits", form_name),
            });
        }
        let text = text.unwrap_or_else(|| config.to_json());
        // The model is written last: with it, the folder counts as a complete model and is refused as a target.
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WeightsError::Io { path, source }
        };
        std::fs::create_dir_all(&self.to).map_err(failed(&self.to))?;
        let mut names = Vec::new();
        for (name, bytes) in &files {
            let path = self.to.join(name);
            atomic_file::write(&path, bytes).map_err(failed(&path))?;
            names.push(*name);
        }
        let known = model::save_packed((&config, &text), &network, stored, &self.to)?;
        manifest::write_known(&self.to, &names, known).map_err(WeightsError::from)?;
        Ok(forms)
    }
}
