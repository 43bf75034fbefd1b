//! The forms in which a weight is stored in memory: a float dtype, 8 bits, or 4 bits.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{Projections, quantise};
use crate::dtype::narrow;

/// Numbers of a row that share a scale in 4 bits: those that a GPU reads at once.
pub const GROUP: usize = 32;

/// What the numbers of a weight are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// In a float dtype.
    Float,
    /// In 8 bits; see [`Weight::Int8`].
    Int8,
    /// In 4 bits; see [`Weight::Int4`].
    Int4,
}

impl Form {
    /// Numbers in one element of the tensor that holds them.
    pub fn in_element(self) -> usize {
        match self {
            Self::Float => 1,
            Self::Int8 => 4,
            Self::Int4 => 8,
        }
    }

    /// The form that a weight with rows of `d_in` numbers really gets if this form is asked for. If a row is not a
    /// whole number of groups, it is 8 bits instead of 4; if a row is not a whole number of 32-bit words, it is floats.
    pub fn of_rows(self, d_in: usize) -> Self {
        match self {
            Self::Int4 if d_in.is_multiple_of(GROUP) => Self::Int4,
            Self::Int4 | Self::Int8 if d_in.is_multiple_of(4) => Self::Int8,
            _ => Self::Float,
        }
    }
}

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
    /// In 4 bits: `scale * q` with a whole `q` from -8 to 7, and a scale for each [`GROUP`] of a row.
    ///
    /// The scale is the one, of a few that were tried, with the smallest sum of squared errors. It is an f16 number, which
    /// may be negative, of 8 significant bits: so a product with `q` has 11, which TF32 and f16 hold.
    Int4 {
        /// `[d_out, d_in / 8]`, eight numbers in 32 bits, the first in the lowest four, each as `q + 8`.
        packed: Tensor<B, 2, Int>,
        /// `[d_out * d_in / 64, rounded up]`: the scales of all groups, row by row, as the bits of f16 numbers, two in
        /// 32 bits, the first in the lower half. Not every GPU reads f16.
        scales: Tensor<B, 1, Int>,
    },
}

impl<B: Backend> Weight<B> {
    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Int8 { packed, .. } | Self::Int4 { packed, .. } => {
                let [d_out, words] = packed.dims();
                [d_out, self.form().in_element() * words]
            }
        }
    }

    /// What its numbers are stored as.
    pub fn form(&self) -> Form {
        match self {
            Self::Float(_) => Form::Float,
            Self::Int8 { .. } => Form::Int8,
            Self::Int4 { .. } => Form::Int4,
        }
    }

    /// Bytes that its tensors hold.
    pub fn bytes(&self) -> usize {
        fn bytes<B: Backend, const D: usize>(x: &Tensor<B, D, Int>) -> usize {
            x.shape().num_elements() * x.dtype().size()
        }
        match self {
            Self::Float(weight) => weight.shape().num_elements() * weight.dtype().size(),
            Self::Int8 { packed, scales } => bytes(packed) + 4 * scales.shape().num_elements(),
            Self::Int4 { packed, scales } => bytes(packed) + bytes(scales),
        }
    }

    /// Converts a weight in floats to the form that [`Form::of_rows`] gives for `form`. A weight in 8 or 4 bits stays
    /// as it is.
    ///
    /// The conversion runs on the host, when a model is loaded.
    pub fn to_form(self, form: Form) -> Self {
        let Self::Float(weight) = self else {
            return self;
        };
        let [d_out, d_in] = weight.dims();
        let form = form.of_rows(d_in);
        if form == Form::Float {
            return Self::Float(weight);
        }
        let device = weight.device();
        let values = weight.into_data().convert::<f32>();
        let values = values.as_slice::<f32>().unwrap_or_default();
        // As one row, which CubeCL does not pad.
        let words = |words: Vec<i32>| {
            let n = words.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(words, [n]), &device)
        };
        if form == Form::Int8 {
            let (packed, scales) = quantise::to_int8(values, d_in);
            return Self::Int8 {
                packed: words(packed).reshape([d_out, d_in / 4]),
                scales: Tensor::from_data(TensorData::new(scales, [d_out]), (&device, DType::F32)),
            };
        }
        let (packed, scales) = quantise::to_int4(values);
        Self::Int4 {
            packed: words(packed).reshape([d_out, d_in / 8]),
            scales: words(quantise::in_pairs(&scales)),
        }
    }

    /// [`to_form`](Self::to_form) in 8 bits.
    pub fn to_int8(self) -> Self {
        self.to_form(Form::Int8)
    }

    /// [`to_form`](Self::to_form) in 4 bits.
    pub fn to_int4(self) -> Self {
        self.to_form(Form::Int4)
    }
}

impl<B: Projections> Weight<B> {
    /// The weight as floats of `dtype`, without a copy if it has this dtype already.
    pub fn to_float(&self, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) => narrow(weight.clone(), dtype),
            Self::Int8 { packed, scales } => {
                B::int8_to_float(packed.clone(), scales.clone(), dtype)
            }
            Self::Int4 { packed, scales } => {
                B::int4_to_float(packed.clone(), scales.clone(), dtype)
            }
        }
    }
}
