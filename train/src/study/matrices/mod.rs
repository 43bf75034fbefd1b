//! How well structured matrices approximate a teacher's attention matrices (arXiv 2408.10189, the table of Toeplitz,
//! low-rank, SSD and general semiseparable approximations).
//!
//! Each figure belongs to a class, a method and a budget of steps: [`classes`] explains why the classes alone would not
//! differ. So they are compared in three ways: at equal states, at equal numbers of parameters, and after equal times.

mod attention;
pub mod classes;
mod page;
mod singular;
mod table;

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;
use model::atomic_file;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use attention::Place;

use self::classes::{Budget, Class, Fitted, Point};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::{StopRequest, TeacherAndText};

/// The file with the settings of the study in a folder.
const SETTINGS: &str = "settings.json";
/// The most entries of matrices that are fitted together: their graph then fits into the memory of a small GPU.
const ENTRIES: usize = 1 << 24;
/// The number of matrices on the page.
const PICTURES: usize = 3;
/// The number of positions that are shown of them, from the first.
const SHOWN: usize = 64;

/// What is approximated, and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The teacher's folder or name; empty for the bundled one.
    pub teacher: String,
    /// Files and folders of text; empty for the bundled held-out text.
    pub text: Vec<String>,
    /// Tokens of a sequence, which is the size of the matrices.
    pub context: usize,
    /// Sequences of the text.
    pub sequences: usize,
    /// Heads, spread over all evenly; 0 for all.
    pub heads: usize,
    /// States of the approximations.
    pub states: Vec<usize>,
    /// Steps of the fits by gradients.
    pub steps: usize,
    /// Their rate.
    pub lr: f64,
    /// The seeds; there is one fit by gradients for each.
    pub seeds: Vec<u64>,
}

/// The study to make.
#[derive(Debug, Clone)]
pub struct MatrixStudy {
    /// What is approximated, and how.
    pub settings: Settings,
    /// The folder of tokenised text; empty for the user's cache folder.
    pub cache: String,
    /// Holds the results.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked before each step of a fit, and before each closed form, whether to stop.
    pub stop: StopRequest,
}

/// Approximations by one class with one state, from one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Approximations {
    /// The class' name.
    pub class: String,
    /// The state; `None` where the class has none.
    pub state: Option<usize>,
    /// The seed; `None` where nothing is drawn.
    pub seed: Option<u64>,
    /// The number of parameters of a matrix.
    pub parameters: usize,
    /// The distances of the matrices during the fit; the last point is the result.
    pub trace: Vec<Point>,
    /// The first rows and columns of some of the matrices.
    shown: Vec<Vec<f32>>,
}

/// The matrices that are approximated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    /// The layer, the head and the sequence.
    #[serde(flatten)]
    pub place: Place,
    /// Its Frobenius norm.
    pub norm: f64,
    /// For each state, a proven lower bound of the distance of any matrix with that state.
    pub floors: Vec<f64>,
}

/// The results of the study.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// The settings of the study.
    pub settings: Settings,
    /// The backend.
    pub backend: String,
    /// The matrices.
    pub targets: Vec<Target>,
    /// Their approximations.
    pub approximations: Vec<Approximations>,
    /// The first rows and columns of some of the matrices, with their indices in `targets`.
    #[serde(skip)]
    shown: Vec<(usize, Vec<f32>)>,
}

impl MatrixStudy {
    /// Makes every fit that the folder does not hold yet, writes `table.md`, `matrices.json` and `matrices.html` there,
    /// and returns the table; `None` if asked to stop on the way.
    ///
    /// # Errors
    /// [`TrainError`] if the teacher or the text cannot be read or the folder cannot be written;
    /// [`TrainError::Mismatch`] if the folder holds a study with other settings.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        let is_new = self.is_new()?;
        let settings = &self.settings;
        let (model, text) = (&settings.teacher, &settings.text);
        let context = settings.context;
        let read =
            TeacherAndText::<B::InnerBackend>::open(model, text, context, &self.cache, device)?;
        // A study that cannot begin leaves the folder to another.
        if is_new {
            self.write(SETTINGS, &self.own_settings())?;
        }
        let heads = attention::sample(&read.network, settings.heads);
        let sequences = settings.sequences;
        let (teacher, windows) = (&read.teacher, &read.windows);
        let (matrices, places) = attention::matrices(teacher, windows, &heads, sequences, device)?;
        let [m, l, _] = matrices.dims();
        let found = m / heads.len().max(1);
        if found < sequences {
            say(format_args!(
                "the text has {found} sequences of {l} tokens, fewer than the {sequences} of --sequences"
            ));
        }
        say(format_args!("{m} matrices of {l} tokens"));
        let mut approximations = vec![];
        for class in Class::ALL {
            match self.fit::<B>(*class, &matrices)? {
                Some(fits) => approximations.extend(fits),
                None => return Ok(None),
            }
        }
        let shown = pictured(m).map(|i| (i, corner(&matrices, i)));
        let findings = Findings {
            settings: settings.clone(),
            backend: self.backend.clone(),
            targets: targets(&matrices, places, &settings.states),
            approximations,
            shown: shown.collect(),
        };
        let table = findings.table();
        self.write("table.md", table.as_bytes())?;
        let json = serde_json::to_vec_pretty(&findings).unwrap_or_default();
        self.write("matrices.json", &json)?;
        self.write("matrices.html", findings.page()?.as_bytes())?;
        Ok(Some(table))
    }

    /// Every approximation by `class`; `None` if asked to stop.
    fn fit<B: TrainBackend>(
        &self,
        class: Class,
        matrices: &Tensor<B::InnerBackend, 3>,
    ) -> Result<Option<Vec<Approximations>>, TrainError> {
        let [m, l, _] = matrices.dims();
        let seeds: Vec<Option<u64>> = if class.is_by_steps() {
            self.settings.seeds.iter().copied().map(Some).collect()
        } else {
            vec![None]
        };
        let states = self.settings.states_of(class, l);
        let mut all = vec![];
        for seed in seeds {
            // Closed forms of several states share most of their work.
            let together: Vec<Vec<usize>> = if class.is_by_steps() {
                states.iter().map(|state| vec![*state]).collect()
            } else {
                vec![states.clone()]
            };
            for states in together {
                let known = states.iter().map(|state| self.known(class, *state, seed));
                let known = known.collect::<Result<Option<Vec<_>>, _>>()?;
                if let Some(known) = known {
                    all.extend(known);
                    continue;
                }
                say(format_args!("{}, states {states:?}", class.title()));
                let budget = Budget {
                    steps: self.settings.steps,
                    lr: self.settings.lr,
                    seed: seed.unwrap_or_default(),
                    stop: &|| self.stop.is_asked(),
                };
                let mut whole: Option<Vec<Part>> = None;
                let at_once = (ENTRIES / (l * l)).max(1);
                for start in (0..m).step_by(at_once) {
                    // A closed form does not check for a stop while it works.
                    if self.stop.is_asked() {
                        return Ok(None);
                    }
                    let some = matrices.clone().narrow(0, start, at_once.min(m - start));
                    let Some(fitted) = class.fit::<B>(&some, &states, &budget) else {
                        return Ok(None);
                    };
                    if !fitted.iter().all(Fitted::is_finite) {
                        return Err(TrainError::Mismatch(format!(
                            "the fit of {} matrices is no longer finite; choose a lower --lr",
                            class.title()
                        )));
                    }
                    let parts = fitted.into_iter().map(|fitted| Part::of(fitted, start, m));
                    whole = Some(match whole {
                        None => parts.collect(),
                        Some(before) => before
                            .into_iter()
                            .zip(parts)
                            .map(|(before, part)| before.with(part))
                            .collect(),
                    });
                }
                for (state, part) in states.iter().zip(whole.unwrap_or_default()) {
                    let found = Approximations {
                        class: class.name().into(),
                        state: class.has_state().then_some(*state),
                        seed,
                        parameters: class.parameters(l, *state),
                        trace: part.trace,
                        shown: part.shown,
                    };
                    let json = serde_json::to_vec(&found).unwrap_or_default();
                    self.write(&fit_file(class, *state, seed), &json)?;
                    all.push(found);
                }
            }
        }
        Ok(Some(all))
    }

    /// The fit that the folder holds already, if any.
    fn known(
        &self,
        class: Class,
        state: usize,
        seed: Option<u64>,
    ) -> Result<Option<Approximations>, TrainError> {
        let path = self.folder.join(fit_file(class, state, seed));
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(io_error(&path))?;
        let read = serde_json::from_slice(&bytes);
        read.map(Some).map_err(|error| {
            TrainError::Mismatch(format!(
                "{}: not what a study has written ({error}); remove it, and the fit is made again",
                path.display()
            ))
        })
    }

    /// The settings, which mark the folder as that of this study.
    fn own_settings(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.settings).unwrap_or_default()
    }

    /// Whether the folder has no study yet, and can be written; an error if it belongs to another study.
    fn is_new(&self) -> Result<bool, TrainError> {
        let path = self.folder.join(SETTINGS);
        if !path.exists() {
            atomic_file::check(&path).map_err(io_error(&path))?;
            return Ok(true);
        }
        let before = std::fs::read(&path).map_err(io_error(&path))?;
        if before == self.own_settings() {
            return Ok(false);
        }
        Err(TrainError::Mismatch(format!(
            "{}: holds a study with other settings, which its {SETTINGS} has; choose another folder by --out",
            self.folder.display()
        )))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        write(&self.folder.join(name), bytes)
    }
}

/// Writes a file atomically, and makes its folder if needed.
fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io_error(folder))?;
    }
    atomic_file::write(path, bytes).map_err(io_error(path))
}

/// The file of one fit.
fn fit_file(class: Class, state: usize, seed: Option<u64>) -> String {
    let mut name = format!("fits/{}", class.name());
    if class.has_state() {
        name += &format!("-state-{state}");
    }
    if let Some(seed) = seed {
        name += &format!("-seed-{seed}");
    }
    name + ".json"
}

impl Settings {
    /// The states of `class` in the tables: the configured states, and those with which `class` has about as many
    /// parameters as a low-rank matrix with one of the configured states.
    fn states_of(&self, class: Class, l: usize) -> Vec<usize> {
        if !class.has_state() {
            return vec![0];
        }
        let equal = self.states.iter();
        let equal = equal.filter_map(|n| class.largest_state(l, Class::LowRank.parameters(l, *n)));
        let mut all: Vec<usize> = self.states.iter().copied().chain(equal).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The fit of some of the matrices.
struct Part {
    trace: Vec<Point>,
    shown: Vec<Vec<f32>>,
}

impl Part {
    /// The part of `fitted` that is about the matrices from `start` on, of `m` matrices.
    fn of<B: Backend>(fitted: Fitted<B>, start: usize, m: usize) -> Self {
        let [some, _, _] = fitted.matrices.dims();
        let own = pictured(m).filter(|i| (start..start + some).contains(i));
        Self {
            shown: own.map(|i| corner(&fitted.matrices, i - start)).collect(),
            trace: fitted.trace,
        }
    }

    /// Appends the fit of the following matrices, which must have the same number of steps.
    fn with(mut self, other: Self) -> Self {
        for (own, other) in self.trace.iter_mut().zip(other.trace) {
            own.seconds += other.seconds;
            own.distances.extend(other.distances);
        }
        self.shown.extend(other.shown);
        self
    }
}

/// The indices of the matrices on the page, spread evenly over `m`.
fn pictured(m: usize) -> impl Iterator<Item = usize> {
    let n = PICTURES.min(m);
    (0..n).map(move |i| i * m / n)
}

/// The first rows and columns of a matrix of `[m, l, l]`.
fn corner<B: Backend>(matrices: &Tensor<B, 3>, i: usize) -> Vec<f32> {
    let [_, l, _] = matrices.dims();
    let n = SHOWN.min(l);
    let corner = matrices
        .clone()
        .narrow(0, i, 1)
        .narrow(1, 0, n)
        .narrow(2, 0, n);
    corner.into_data().iter::<f32>().collect()
}

/// The norms of the matrices, and the lower bounds of their distances.
fn targets<B: Backend>(
    matrices: &Tensor<B, 3>,
    places: Vec<Place>,
    states: &[usize],
) -> Vec<Target> {
    let [_, l, _] = matrices.dims();
    let norms = classes::distances(matrices.clone());
    let values: Vec<f64> = matrices.to_data().iter::<f64>().collect();
    let floors: Vec<Vec<f64>> = values
        .par_chunks(l * l)
        .map(|matrix| {
            let floors = states.iter().map(|n| singular::floor(matrix, l, *n));
            floors.collect()
        })
        .collect();
    let each = places.into_iter().zip(norms).zip(floors);
    each.map(|((place, norm), floors)| Target {
        place,
        norm,
        floors,
    })
    .collect()
}
