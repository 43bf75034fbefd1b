//! What every program that computes on a GPU compiles: Burn's kernels and this crate's, for the backends of this
//! build.
//!
//! These kernels are generic over the GPU runtime, so each program would compile them again; Burn's matrix products
//! alone are most of an unoptimised test program. Unoptimised crates can share generic code that one of them has
//! compiled. With the cargo feature `instances`, this crate compiles all of them once, for all test programs of a
//! build. An optimised build does not need the feature. A function that is missing in the list still works; each
//! program then compiles it itself.

use std::hint::black_box;

use burn::tensor::ops::FloatTensorOps;

use crate::decode::{
    attention_step::AttentionStep, projections::Projections, recurrent_step::RecurrentStep,
};
use crate::dense::{attention::Attention, embedding::Embedding, linear::Linear};
use crate::dense::{layer_norm::LayerNorm, rms_norm::RmsNorm, rotary::Rotary, swiglu::SwiGlu};
use crate::losses::mixing_matrices::MixingMatrices;
use crate::optim::adamw::AdamW;
use crate::scan::{causal_conv::CausalConv, skip_gate::SkipGate, ssd::SsdScan};

/// Compiles the functions for a backend, by taking their addresses.
macro_rules! compiled {
    ($backend:ty: $($function:ident)+) => {
        let _ = black_box([$(<$backend>::$function as *const ()),+]);
    };
}

/// All functions of the lists below for a backend.
macro_rules! instances {
    ($backend:ty) => {
        compiled!($backend: float_matmul);
        compiled!($backend: float_sum float_sum_dim float_mean_dim float_max_dim float_argmax float_cumsum);
        compiled!($backend: float_random float_zeros float_ones float_full float_cat float_cast float_repeat_dim);
        compiled!($backend: float_add float_sub float_mul float_div float_powf_scalar float_clamp);
        compiled!($backend: float_add_scalar float_sub_scalar float_mul_scalar float_div_scalar);
        compiled!($backend: float_exp float_log float_sqrt float_abs float_sin float_cos float_tanh float_recip);
        compiled!($backend: float_select float_select_add float_gather float_scatter_add);
        compiled!($backend: float_slice float_slice_assign float_mask_where float_mask_fill float_flip);
        compiled!($backend: linear_forward linear_gelu linear_onto linear_backward);
        compiled!($backend: attention_forward attention_forward_saving attention_backward);
        compiled!($backend: embedding_forward embedding_gradient rotary_forward rotary_of_heads);
        compiled!($backend: layer_norm_forward layer_norm_backward rms_norm_forward rms_norm_backward);
        compiled!($backend: swiglu_forward swiglu_backward skip_gate_forward skip_gate_backward);
        compiled!($backend: causal_conv_forward causal_conv_backward);
        compiled!($backend: ssd_scan_forward ssd_scan_backward gated_scan_forward gated_scan_backward);
        compiled!($backend: mixing_distance_forward mixing_distance_with_gradients);
        compiled!($backend: projections_into projections_out_of projections_head projections_rows);
        compiled!($backend: recurrent_step attention_step windowed_attention_step adamw_steps squared_norms);
    };
}

/// Does nothing. It is public so that the functions that it names are compiled into this crate.
#[doc(hidden)]
pub fn instances() {
    #[cfg(feature = "cuda")]
    instances!(super::Cuda);
    #[cfg(feature = "wgpu")]
    instances!(super::Wgpu);
}
