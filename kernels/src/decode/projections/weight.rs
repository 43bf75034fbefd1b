//! A weight as it lies in memory: in a float dtype, or in 8 bits.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::Projections;
use crate::dtype::narrow;

/// `[d_out, d_in]`.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// In any float dtype.
    Float(Tensor<B, 2>),
    /// In 8 bits: `scale * q` with a whole `q` from -127 to 127.
    ///
    /// Rows of a trained weight differ more from each other than numbers within a row do, so each has
    /// its scale, and its largest number is `127 * scale`.
    Int8 {
        /// `[d_out, d_in / 4]`, four numbers in 32 bits, the first in the lowest eight.
        packed: Tensor<B, 2, Int>,
        /// `[d_out]`, f32.
        scales: Tensor<B, 1>,
    },
}

impl<B: Backend> Weight<B> {
    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Int8 { packed, .. } => {
                let [d_out, words] = packed.dims();
                [d_out, 4 * words]
            }
        }
    }

    /// Bytes that its tensors hold.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(weight) => weight.shape().num_elements() * weight.dtype().size(),
            Self::Int8 { packed, scales } => {
                let packed = packed.shape().num_elements() * packed.dtype().size();
                packed + 4 * scales.shape().num_elements()
            }
        }
    }

    /// The nearest weight in 8 bits; as it is if its rows cannot be packed, `d_in` not being a multiple
    /// of four.
    ///
    /// Done on the host, a few rows at a time, when a model is loaded.
    pub fn to_int8(self) -> Self {
        let Self::Float(weight) = self else {
            return self;
        };
        let [d_out, d_in] = weight.dims();
        if !d_in.is_multiple_of(4) {
            return Self::Float(weight);
        }
        let device = weight.device();
        let values = weight.into_data().convert::<f32>();
        let values = values.as_slice::<f32>().unwrap_or_default();
        let mut scales = Vec::with_capacity(d_out);
        let mut words = Vec::with_capacity(d_out * d_in / 4);
        for row in values.chunks_exact(d_in) {
            let largest = row.iter().fold(0.0_f32, |largest, v| {
                if v.is_nan() || largest.is_nan() {
                    f32::NAN
                } else {
                    largest.max(v.abs())
                }
            });
            let scale = largest / 127.0;
            let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            scales.push(scale);
            words.extend(row.chunks_exact(4).map(|four| {
                // What is no number stays none: its row's scale is NaN.
                let byte = |v: &f32| (v * steps).round().clamp(-127.0, 127.0) as i8 as u8;
                i32::from_le_bytes([0, 1, 2, 3].map(|i| byte(&four[i])))
            }));
        }
        // As one row, which CubeCL does not pad.
        let n = words.len();
        let packed = Tensor::<B, 1, Int>::from_data(TensorData::new(words, [n]), &device);
        Self::Int8 {
            packed: packed.reshape([d_out, d_in / 4]),
            scales: Tensor::from_data(TensorData::new(scales, [d_out]), (&device, DType::F32)),
        }
    }
}

impl<B: Projections> Weight<B> {
    /// In `dtype`, without a copy where it is that already.
    pub fn to_float(&self, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) => narrow(weight.clone(), dtype),
            Self::Int8 { packed, scales } => {
                narrow(B::int8_to_float(packed.clone(), scales.clone()), dtype)
            }
        }
    }
}
