//! Initialisations of a student's mixers: what they take over from the teacher's attention before training.
//!
//! An initialisation is one file of this folder, whose type implements [`Initialise`]. The list at the end of this
//! file makes [`Initialisation`] of them: a new one is a file, its `mod` line, and one entry of that list.
//!
//! The input of each initialisation is a student whose mixers are drawn as published, and whose other parameters are
//! copied from its teacher. It changes the parts of a mixer: [`TokenMixer::mamba`](crate::TokenMixer::mamba), and the
//! attention beside it.

mod calibrated;
mod copy;
mod descent;
mod even;
mod fitted;
mod gates;
mod own_stream;
mod projection;
mod published;
mod ridge;
mod solve;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use crate::lm::CausalLm;
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::precision::to_dtype;

/// Why a student cannot be initialised in this way.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InitError {
    /// A layer's mixer lacks what the initialisation sets.
    #[error("layer {layer}: {reason}")]
    Layer {
        /// The layer, from 0.
        layer: usize,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// There is no text to calibrate on.
    #[error("there is no text to calibrate on")]
    NoText,
    /// It was asked to stop before it was done.
    #[error("asked to stop")]
    Stopped,
}

/// Asked whether to stop, while text is read.
pub(crate) type Stop<'a> = &'a dyn Fn() -> bool;

/// How close a layer is to its teacher after the initialisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// The layer, from 0.
    pub layer: usize,
    /// The relative error before the output projection: the norm of the difference between the mixer's output and the
    /// attention's, divided by the norm of the attention's.
    pub error: f64,
}

impl Fit {
    /// The fit of a layer from the sum of the squared errors, `lacking`, and the sum of the squares of the target,
    /// `whole`.
    fn new(layer: usize, lacking: f64, whole: f64) -> Self {
        // Where nothing is wanted, nothing lacks.
        let error = if whole > 0.0 {
            (lacking / whole).sqrt()
        } else {
            0.0
        };
        Self { layer, error }
    }
}

/// One way to start.
pub(crate) trait Initialise {
    /// The options of a state-space mixer in the place of attention `of_teacher`, with those that it needs.
    fn options(
        &self,
        mixer: DiscreteMamba2Config,
        _of_teacher: &AttentionConfig,
        _d_model: usize,
    ) -> DiscreteMamba2Config {
        mixer
    }

    /// Whether it reads text.
    fn reads_text(&self) -> bool {
        false
    }

    /// Checks that every mixer of the student has the parameters that this initialisation sets. It reads no values, so
    /// no parameter is drawn.
    ///
    /// # Errors
    /// [`InitError`] names the layer that does not fit.
    fn check<B: KernelBackend>(
        &self,
        _student: &CausalLm<B>,
        _teacher: &CausalLm<B>,
    ) -> Result<(), InitError> {
        Ok(())
    }

    /// Sets the mixers' parameters, which are [checked](Self::check). `text` is ids `[b, l]`, none unless it reads
    /// text.
    ///
    /// # Errors
    /// [`InitError::Stopped`], and others that name the layer that does not fit.
    fn initialise<B: KernelBackend>(
        &self,
        student: &mut CausalLm<B>,
        teacher: &CausalLm<B>,
        text: &[Tensor<B, 2, Int>],
        stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError>;
}

macro_rules! initialisations {
    ($($(#[$doc:meta])* $kind:ident: $module:ident::$type:ident = $name:literal;)*) => {
        /// How a student's mixers start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum Initialisation {
            $($(#[$doc])* $kind,)*
        }

        impl Initialisation {
            /// What configurations call them.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// That of a configuration.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind),)*
                    _ => None,
                }
            }

            fn options(
                self,
                mixer: DiscreteMamba2Config,
                of_teacher: &AttentionConfig,
                d_model: usize,
            ) -> DiscreteMamba2Config {
                match self {
                    $(Self::$kind => $module::$type.options(mixer, of_teacher, d_model),)*
                }
            }

            /// Whether it reads text.
            pub fn reads_text(self) -> bool {
                match self {
                    $(Self::$kind => $module::$type.reads_text(),)*
                }
            }

            /// Checks that every mixer of `student` has the parameters that this initialisation sets. It reads no
            /// values, so no parameter is drawn.
            ///
            /// # Errors
            /// [`InitError`] names the layer that does not fit, and the option that would.
            pub fn check<B: KernelBackend>(
                self,
                student: &CausalLm<B>,
                teacher: &CausalLm<B>,
            ) -> Result<(), InitError> {
                if self != Self::Published {
                    check_mixers(student, teacher)?;
                }
                match self {
                    $(Self::$kind => $module::$type.check(student, teacher),)*
                }
            }

            fn start<B: KernelBackend>(
                self,
                student: &mut CausalLm<B>,
                teacher: &CausalLm<B>,
                text: &[Tensor<B, 2, Int>],
                stop: Stop<'_>,
            ) -> Result<Vec<Fit>, InitError> {
                match self {
                    $(Self::$kind => $module::$type.initialise(student, teacher, text, stop),)*
                }
            }
        }
    };
}

initialisations! {
    /// As published: nothing of the teacher's attention is taken over.
    #[default]
    Published: published::Published = "published";
    /// The attention's projections, with an identity convolution and an open gate.
    Copy: copy::Copy = "copy";
    /// A copy with decays and scales that are fitted to the attention's outputs on text.
    Calibrated: calibrated::Calibrated = "calibrated";
    /// A calibrated copy whose B and C have the same size, for training.
    Even: even::Even = "even";
    /// A calibrated copy with a constant feature, and output projections by ridge regression.
    Ridge: ridge::Ridge = "ridge";
    /// A copy that is fitted layer by layer on the student's own stream, in closed form.
    Fitted: fitted::Fitted = "fitted";
    /// The same with some steps of Adam in each layer, on the same text.
    Tuned: fitted::Tuned = "tuned";
}

impl Initialisation {
    /// Returns the options of `mixer` with the changes that this initialisation needs. `of_teacher` is the teacher's
    /// mixer that `mixer` replaces, and `d_model` the width of the network. A mixer without a state-space part is
    /// returned unchanged.
    pub fn options_of(
        self,
        mixer: MixerConfig,
        of_teacher: &MixerConfig,
        d_model: usize,
    ) -> MixerConfig {
        let MixerConfig::Attention(of_teacher) = of_teacher else {
            return mixer;
        };
        mixer.with_mamba(|mamba| self.options(mamba, of_teacher, d_model))
    }

    /// Initialises the mixers of `student`, whose other parameters must already be the `teacher`'s, and returns the fit
    /// of each calibrated layer. Attention beside a state-space mixer is copied from the teacher. `text` is batches of
    /// ids, `[b, l]` each; an initialisation that reads no text ignores it. While text is read, `stop` is called before
    /// each layer of each batch. Nothing is random: the same text gives the same student.
    ///
    /// # Errors
    /// [`InitError`] names the layer that does not fit, before anything is changed, or whose parameters would not be
    /// finite; [`InitError::Stopped`] if `stop` says so.
    pub fn apply<B: KernelBackend>(
        self,
        student: &mut CausalLm<B>,
        teacher: &CausalLm<B>,
        text: &[Tensor<B, 2, Int>],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Fit>, InitError> {
        self.check(student, teacher)?;
        let both = student.backbone.layers.iter_mut();
        for (layer, of_teacher) in both.zip(&teacher.backbone.layers) {
            if let Some(theirs) = of_teacher.mixer.softmax() {
                layer.mixer.take_over(theirs);
            }
        }
        let fits = self.start(student, teacher, text, stop)?;
        for layer in layers(student, teacher) {
            let mut zeros = Zeros(true);
            student.backbone.layers[layer].mixer.visit(&mut zeros);
            if !zeros.0 {
                let reason = "the mixer would start with parameters that are not finite; choose another start".into();
                return Err(InitError::Layer { layer, reason });
            }
        }
        Ok(fits)
    }
}

/// Whether the sum of each value's difference from itself is 0: unless a value is not finite.
struct Zeros(bool);

impl<B: Backend> ModuleVisitor<B> for Zeros {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let values = parameter.val();
        let sum = (values.clone() - values).sum().into_data();
        self.0 &= sum.iter::<f32>().all(|sum| sum == 0.0);
    }
}

impl MixerConfig {
    /// The same with the options of its state-space mixer, if it has one, replaced by `with` them.
    fn with_mamba(
        mut self,
        with: impl FnOnce(DiscreteMamba2Config) -> DiscreteMamba2Config,
    ) -> Self {
        if let Some(mamba) = self.mamba_mut() {
            *mamba = with(mamba.clone());
        }
        self
    }
}

/// Checks that every mixer that replaces the teacher's attention has parameters that an initialisation sets.
fn check_mixers<B: KernelBackend>(
    student: &CausalLm<B>,
    teacher: &CausalLm<B>,
) -> Result<(), InitError> {
    let both = student.backbone.layers.iter().zip(&teacher.backbone.layers);
    for (layer, (own, theirs)) in both.enumerate() {
        let (own, theirs) = (&own.mixer, &theirs.mixer);
        if own.mamba().is_none() && theirs.softmax().is_some() && !own.is_kept_from(theirs) {
            let kind = own.config().kind();
            let reason = format!("a {kind} mixer takes nothing over; it can start as published");
            return Err(InitError::Layer { layer, reason });
        }
    }
    Ok(())
}

/// Puts `value` into `parameter`, which keeps its id and its dtype.
fn set<B: Backend, const D: usize>(parameter: &mut Param<Tensor<B, D>>, value: Tensor<B, D>) {
    let dtype = parameter.val().dtype();
    *parameter = Param::initialized(parameter.id, to_dtype(value, dtype));
}

/// The layers of a student that have a state-space mixer in the place of the teacher's attention.
fn layers<B: KernelBackend>(student: &CausalLm<B>, teacher: &CausalLm<B>) -> Vec<usize> {
    let both = student.backbone.layers.iter().zip(&teacher.backbone.layers);
    let both = both.enumerate().filter(|(_, (student, teacher))| {
        student.mixer.mamba().is_some() && teacher.mixer.softmax().is_some()
    });
    both.map(|(layer, _)| layer).collect()
}

/// Runs `ids [b, l]` through the teacher, and gives `visit` what each layer's mixer reads, `[b, l, d_model]`, with the
/// layer's number.
///
/// # Errors
/// [`InitError::Stopped`] if `stop`, which is asked before each layer, says so.
fn each_layer<B: KernelBackend>(
    teacher: &CausalLm<B>,
    ids: Tensor<B, 2, Int>,
    stop: Stop<'_>,
    mut visit: impl FnMut(usize, Tensor<B, 3>),
) -> Result<(), InitError> {
    let mut x = teacher.backbone.embedding.forward(ids);
    for (i, layer) in teacher.backbone.layers.iter().enumerate() {
        if stop() {
            return Err(InitError::Stopped);
        }
        visit(i, layer.input_layernorm.forward(x.clone()));
        x = layer.forward(x);
    }
    Ok(())
}
