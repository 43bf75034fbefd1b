//! The sum of the ops' traits. An op has one line here, in the list at the end.

use burn::tensor::backend::AutodiffBackend;

use crate::machine::Machine;

/// Defines [`KernelBackend`] as the sum of the ops' traits.
macro_rules! kernel_backend {
    ($($op:path,)+) => {
        /// A Burn backend with this crate's ops.
        ///
        /// Callers use the functions of the op modules ([`ssd_scan`](crate::ssd_scan), [`linear`](crate::linear()), ...); the methods of the
        /// ops' traits are what a backend may override.
        pub trait KernelBackend: Machine $(+ $op)+ {}

        impl<B> KernelBackend for B where B: Machine $(+ $op)+ {}
    };
}

kernel_backend! {
    crate::decode::attention_step::AttentionStep,
    crate::decode::projections::Projections,
    crate::decode::queued_read::QueueRead,
    crate::decode::recurrent_step::RecurrentStep,
    crate::decode::replay::Replay,
    crate::decode::sample::Sample,
    crate::dense::attention::Attention,
    crate::dense::bias::Bias,
    crate::dense::cast::CastAll,
    crate::dense::columns::Columns,
    crate::dense::embedding::Embedding,
    crate::dense::gelu::GeluNew,
    crate::dense::layer_norm::LayerNorm,
    crate::dense::linear::Linear,
    crate::dense::rms_norm::RmsNorm,
    crate::dense::rotary::Rotary,
    crate::dense::swiglu::SwiGlu,
    crate::losses::divergence::likeliest::Likeliest,
    crate::losses::divergence::top_classes::TopClassesLoss,
    crate::losses::hidden_states::HiddenStates,
    crate::losses::mixing_matrices::MixingMatrices,
    crate::losses::predictions::Predictions,
    crate::losses::scale::Scale,
    crate::optim::adamw::AdamW,
    crate::scan::causal_conv::CausalConv,
    crate::scan::skip_gate::SkipGate,
    crate::scan::ssd::SsdScan,
}

/// A [`KernelBackend`] that differentiates, over an inner one for what needs no gradient.
pub trait TrainBackend: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}

impl<B> TrainBackend for B where B: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}
