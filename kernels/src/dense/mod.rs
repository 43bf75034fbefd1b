//! The layers that Transformers and Mamba networks share.

pub mod attention;
pub mod bias;
pub mod cast;
pub mod columns;
pub mod embedding;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod rms_norm;
pub mod rotary;
pub mod swiglu;
