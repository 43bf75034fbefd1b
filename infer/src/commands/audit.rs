//! `infer audit`.

use std::collections::HashSet;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use datasets::Tokenizer;
use indicatif::{ProgressBar, ProgressStyle};
use kernels::KernelBackend;
use kernels::runtime::Work;
use model::{CausalLm, atomic_file};

use super::CommandError;
use crate::audit::{self, Audit, AuditError, Column, OF_TEACHER, Plan, PlanOptions, Reader, plan};
use crate::eval::{Control, EvalError, SEED, Task, cannot};
use crate::model_args::{ComputeArgs, FoundModel, ModelArgs, check_vocabulary, own_tokenizer};
use crate::output::{note, say};

const EXAMPLES: &str = "\
Examples:
  A student of the bundled teacher, without data that must be fetched:
      infer audit runs/tiny/student --teacher assets/phi-tiny --text assets/text/pd-validation.json.gz --out audit

  Two students, with the paper's tasks, 200 documents of each:
      infer audit STUDENT OTHER --teacher TEACHER --text TEXT --data eval-data --limit 200 --out audit";

/// The most tokens that are read at once, for models without a limit.
const UNBOUNDED_LENGTH: usize = 2048;

/// Measures what students have really kept of their teacher, beside controls that have less.
///
/// Perplexity by context and by position, the paper's six tasks by likelihoods, two of them by answers that the model
/// makes, and probes of what a model finds again: for each student, for the student with parts of it switched off, for
/// the teacher, and for the teacher within a window of 64 tokens and 4 first ones and without any attention. Each row
/// of the table ends with a verdict: what the student has beyond these controls, within standard errors of paired
/// documents. docs/audit.md defines every row.
///
/// Measures without data are left out, with a line that says so. With --out, the results of the students that are done
/// are kept if the program is stopped.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    /// The students, hybrids or teachers: folders, GGUF files, or names on the hub
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,

    /// Their teacher, whose tokenizer all of them read with
    #[arg(long, value_name = "FOLDER|FILE|OWNER/NAME[:FILE.gguf]")]
    teacher: PathBuf,

    /// A tokenizer in place of the teacher's own, as for `infer eval`
    #[arg(long, value_name = "FILE|FOLDER|OWNER/NAME")]
    tokenizer: Option<PathBuf>,

    #[command(flatten)]
    compute: ComputeArgs,

    /// Files and folders of text, for perplexity; may be given several times
    #[arg(long, value_name = "FILE|FOLDER")]
    text: Vec<PathBuf>,

    /// A folder with the tasks' data, as for `infer eval`
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,

    /// The tasks and probes, separated by commas; all if none is named
    #[arg(long, value_delimiter = ',', value_name = "TASK,...")]
    tasks: Vec<Task>,

    /// The most documents of each task, of each length of a probe, and windows of text; by default all of a task, 100 of
    /// a length up to 2048, fewer of longer ones, and 32 windows
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000_000))]
    limit: Option<usize>,

    /// Lengths of the probes' documents in tokens, separated by commas; if none is given, 256, 512 and so on up to the
    /// models' context, but no more than 8192
    #[arg(long, value_delimiter = ',', value_name = "TOKENS,...", value_parser = RangedU64ValueParser::<usize>::new().range(1..=4_194_304))]
    lengths: Vec<usize>,

    /// Where the draws of the probes start: another seed makes other documents
    #[arg(long, default_value_t = SEED, value_name = "N")]
    seed: u32,

    /// After how many tokens the students' states are emptied, in the control that does so
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(1..=4_194_304))]
    reset: usize,

    /// The most tokens that are read at once; by default, the fewest positions of any of the models, or 2048
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    max_length: Option<usize>,

    /// How many texts are read at once; on a CPU, by each core
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    batch_size: usize,

    /// A folder for audit.json, with every value, and audit.html, with pictures
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl AuditArgs {
    /// Runs the command. All inputs are read before a model is loaded, so that errors in them are found early.
    pub fn run(mut self) -> Result<(), CommandError> {
        // A model that is named twice is measured once.
        let mut seen = HashSet::new();
        self.models.retain(|model| seen.insert(model.clone()));
        for path in self.files() {
            atomic_file::check(&path).map_err(cannot("write", &path))?;
        }
        let backend = self.compute.backend()?;
        let teacher = ModelArgs::of(self.teacher.clone(), self.tokenizer.clone(), self.compute);
        let teacher = teacher.find()?;
        let folders = self.models.iter().map(model::locate);
        let folders = folders.collect::<Result<Vec<PathBuf>, _>>()?;
        let students = self.models.iter().zip(&folders);
        for (model, folder) in students.clone() {
            check_tokenizer(model, folder, &teacher.tokenizer)?;
        }
        for (model, folder) in [(&self.teacher, &teacher.folder)]
            .into_iter()
            .chain(students)
        {
            let vocab_size = model::load_config(folder)?.network().vocab_size;
            check_vocabulary(&teacher.tokenizer, model, vocab_size)?;
        }
        let max_length = self.max_length(folders.iter().chain([&teacher.folder]))?;
        let options = PlanOptions {
            text: self.text.clone(),
            data: self.data.clone(),
            tasks: self.tasks.clone(),
            limit: self.limit,
            lengths: self.lengths.clone(),
            seed: self.seed,
        };
        let plan = plan(&options, &teacher.tokenizer, max_length)?;
        for line in &plan.left_out {
            note(line);
        }
        backend.dispatch(AuditWork {
            args: self,
            teacher,
            folders,
            plan,
        })?
    }

    /// The files that are written, JSON and HTML.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let out = self.out.iter();
        out.flat_map(|folder| ["audit.json", "audit.html"].map(|name| folder.join(name)))
    }

    /// The most tokens that every model reads at once.
    fn max_length<'f>(
        &self,
        folders: impl Iterator<Item = &'f PathBuf>,
    ) -> Result<usize, CommandError> {
        let mut limit = None;
        for folder in folders {
            if let Some(positions) = model::load_config(folder)?.max_positions() {
                limit = Some(limit.map_or(positions, |limit: usize| limit.min(positions)));
            }
        }
        let usual = limit.unwrap_or(UNBOUNDED_LENGTH);
        let given = self.max_length.unwrap_or(usual);
        if given == 0 || limit.is_some_and(|limit| given > limit) {
            return Err(EvalError::MaxLength {
                given,
                limit: usual,
            }
            .into());
        }
        Ok(given)
    }

    fn write(&self, audit: &Audit) -> Result<(), CommandError> {
        if self.out.is_none() {
            return Ok(());
        }
        let texts = [format!("{:#}\n", audit::json(audit)), audit::page(audit)];
        for (path, text) in self.files().zip(texts) {
            let written = atomic_file::write(&path, text.as_bytes());
            written.map_err(cannot("write", &path))?;
        }
        Ok(())
    }
}

/// Checks that the tokenizer of a student, if it has one, is the teacher's.
fn check_tokenizer(model: &Path, folder: &Path, teachers: &Tokenizer) -> Result<(), CommandError> {
    let Some(own) = own_tokenizer(folder)? else {
        return Ok(());
    };
    // A tokenizer inside a GGUF file and the same one as a file beside a student have different bytes.
    let text =
        "The 17 quick brown foxes' naïve déjà vu: (a_b) -> \"jumps\"\n\tover, 2048 lazy dogs!";
    let spells_alike = || {
        let ids = 0..own.vocab_size().max(teachers.vocab_size()) as u32;
        ids.into_iter()
            .all(|id| own.token_bytes(id) == teachers.token_bytes(id))
    };
    if own.hash() == teachers.hash()
        || spells_alike() && own.encode(text)? == teachers.encode(text)?
    {
        return Ok(());
    }
    Err(AuditError::OtherTokenizer {
        model: model.into(),
    }
    .into())
}

struct AuditWork {
    args: AuditArgs,
    teacher: FoundModel,
    folders: Vec<PathBuf>,
    plan: Plan,
}

impl Work for AuditWork {
    type Output = Result<(), CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let Self {
            args,
            teacher,
            folders,
            plan,
        } = self;
        let mut audit = Audit::new(plan);
        let reader = Reader {
            tokenizer: &teacher.tokenizer,
            batch_size: args.batch_size,
            device: &device,
        };
        let bar = progress(audit.plan.measures.len(), 3 + 4 * folders.len());
        let of_teacher = OF_TEACHER;
        let longest = audit.plan.longest();
        let own = [
            Control::NoSsm,
            Control::NoAttention,
            Control::Reset(args.reset),
        ];
        let students = args.models.iter().zip(&folders);
        let students = students.map(|(name, folder)| (name, folder, &own[..]));
        let models = [(&args.teacher, &teacher.folder, &of_teacher[..])];
        let mut not_loaded = None;
        for (i, (name, folder, controls)) in models.into_iter().chain(students).enumerate() {
            let model = match args.compute.dtype.load::<B>(folder, &device) {
                Ok((_, model)) => model,
                // The results of the other students are still worth having.
                Err(error) if i > 0 => {
                    bar.inc((audit.plan.measures.len() * (1 + controls.len())) as u64);
                    let line = format!("{} is left out: {error}", name.display());
                    bar.suspend(|| note(&line));
                    audit.left_out.push(line);
                    not_loaded.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let under = controls
                .iter()
                .map(|control| (*control, control.apply(model.clone())));
            let under: Vec<(Control, Option<CausalLm<B>>)> = under.collect();
            // Every row compares with the teacher's controls, so the teacher must have them.
            if i == 0 && under.iter().any(|(_, model)| model.is_none()) {
                let model = args.teacher.clone();
                return Err(AuditError::NoAttention { model }.into());
            }
            let of = audit.columns.len();
            let name = name.display().to_string();
            measure(&mut audit, &name, None, None, &model, &reader, &bar);
            for (control, model) in under {
                let is_idle = matches!(control, Control::Reset(tokens) if tokens >= longest);
                let Some(model) = model.filter(|_| !is_idle) else {
                    bar.inc(audit.plan.measures.len() as u64);
                    let reason = if is_idle {
                        "no text is longer".to_owned()
                    } else {
                        format!("no layer has {}", control.of())
                    };
                    let line = format!("{name}: {control} is left out: {reason}");
                    bar.suspend(|| note(&line));
                    audit.left_out.push(line);
                    continue;
                };
                let (control, of) = (Some(control), Some(of));
                measure(&mut audit, &name, control, of, &model, &reader, &bar);
            }
            if i > 0 {
                args.write(&audit)?;
            }
        }
        bar.finish_and_clear();
        if audit.students().next().is_some() {
            say(&audit::table(&audit))?;
        }
        audit.check()?;
        match not_loaded {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Adds a model with its results in every measure. If a measure fails, the others are still made.
fn measure<B: KernelBackend>(
    audit: &mut Audit,
    name: &str,
    control: Option<Control>,
    of: Option<usize>,
    model: &CausalLm<B>,
    reader: &Reader<'_, B>,
    bar: &ProgressBar,
) {
    let column = Column {
        model: name.to_owned(),
        control,
        of,
    };
    let mut outcomes = vec![];
    for measure in &audit.plan.measures {
        bar.set_message(format!("{}: {}", column.name(), measure.name));
        let outcome = measure
            .run(model, reader)
            .map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            bar.suspend(|| note(format!("{}, {}: {error}", measure.name, column.name())));
        }
        outcomes.push(outcome);
        bar.inc(1);
    }
    audit.columns.push(column);
    audit.outcomes.push(outcomes);
}

/// A progress bar on a terminal.
fn progress(measures: usize, models: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len}, {eta} left; {msg}");
    ProgressBar::new((measures * models) as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
