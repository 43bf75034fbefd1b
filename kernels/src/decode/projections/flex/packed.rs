//! Packed weights as slices.

use burn::tensor::{DType, Int, Tensor};
use burn_flex::{Flex, FlexTensor};

use crate::decode::projections::{Form, Projection, Weight};
use crate::flex::{Values, is_f32};

/// 32-bit integers as one slice.
pub(super) struct Words(FlexTensor);

impl Words {
    /// `None` where they are not 32 bits wide, or their bytes not in order.
    pub(super) fn of<const D: usize>(packed: Tensor<Flex, D, Int>) -> Option<Self> {
        // Numbers of 8 bits are read in their order in memory.
        if cfg!(target_endian = "big") {
            return None;
        }
        let packed = packed.into_primitive();
        let packed = if packed.as_slice::<i32>().is_some() {
            packed
        } else {
            packed.to_contiguous()
        };
        packed.as_slice::<i32>().is_some().then_some(Self(packed))
    }

    pub(super) fn slice(&self) -> &[i32] {
        self.0.as_slice().expect("32 bits, made contiguous")
    }
}

/// The scales of a packed weight.
pub(super) enum Scales {
    /// `[d_out]`, of a weight in 8 bits.
    OfRows(Values),
    /// Two in a word, of a weight in 4 bits.
    OfGroups(Words),
}

impl Scales {
    pub(super) fn form(&self) -> Form {
        match self {
            Self::OfRows(_) => Form::Int8,
            Self::OfGroups(_) => Form::Int4,
        }
    }

    pub(super) fn slices(&self) -> ScaleSlices<'_> {
        match self {
            Self::OfRows(scales) => ScaleSlices::OfRows(scales),
            Self::OfGroups(pairs) => ScaleSlices::OfGroups(pairs.slice()),
        }
    }
}

/// The same as slices. To get a slice from a tensor takes longer than the product of a row, so this is done once.
#[derive(Clone, Copy)]
pub(super) enum ScaleSlices<'a> {
    OfRows(&'a [f32]),
    OfGroups(&'a [i32]),
}

/// A projection with a packed weight, as slices.
#[derive(Clone, Copy)]
pub(super) struct Slices<'a> {
    pub words: &'a [i32],
    pub scales: ScaleSlices<'a>,
    pub bias: Option<&'a [f32]>,
    pub d_out: usize,
    pub width: usize,
}

/// A projection with a packed weight.
pub(super) struct Packed {
    /// `[d_out, width]`.
    words: Words,
    scales: Scales,
    /// `[d_out]`.
    bias: Option<Values>,
    d_out: usize,
    width: usize,
}

impl Packed {
    /// `None` where the weight is in floats, or its numbers or scales are not 32 bits wide.
    pub(super) fn of(projection: &Projection<Flex>) -> Option<Self> {
        let (packed, scales) = match &projection.weight {
            Weight::Int8 { packed, scales } if is_f32(scales) => {
                (packed, Scales::OfRows(Values::of(scales.clone())))
            }
            Weight::Int4 { packed, scales } => {
                (packed, Scales::OfGroups(Words::of(scales.clone())?))
            }
            _ => return None,
        };
        let [d_out, width] = packed.dims();
        Some(Self {
            words: Words::of(packed.clone())?,
            scales,
            bias: (projection.bias.clone()).map(|bias| Values::of(bias.cast(DType::F32))),
            d_out,
            width,
        })
    }

    pub(super) fn slices(&self) -> Slices<'_> {
        Slices {
            words: self.words.slice(),
            scales: self.scales.slices(),
            bias: self.bias.as_deref(),
            d_out: self.d_out,
            width: self.width,
        }
    }
}
