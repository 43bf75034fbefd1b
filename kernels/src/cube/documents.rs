//! Where the documents of packed rows begin, for kernels.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::documents::DocumentStarts;

/// Whether kernels read the starts of these documents.
pub(crate) fn read<R, B>(documents: &Option<DocumentStarts<B>>) -> bool
where
    R: CubeRuntime,
    B: Backend<IntTensorPrimitive = CubeTensor<R>>,
{
    let mut starts = documents.iter().map(|documents| documents.starts());
    starts.all(|starts_bl| starts_bl.into_primitive().dtype == DType::I32)
}

/// The starts, `[b, l]` without gaps.
pub(crate) fn starts<R, B>(documents: Option<DocumentStarts<B>>) -> Option<CubeTensor<R>>
where
    R: CubeRuntime,
    B: Backend<IntTensorPrimitive = CubeTensor<R>>,
{
    let starts_bl = documents?.starts();
    Some(into_contiguous(starts_bl.into_primitive()))
}

/// The tokens of a row in an array `[b, l]`.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct RowTokens {
    first: usize,
    pub(crate) count: usize,
}

/// The tokens of row `batch`, which has `l` of them.
#[cube]
pub(crate) fn row_tokens(batch: usize, l: usize) -> RowTokens {
    RowTokens {
        first: batch * l,
        count: l,
    }
}

/// The index in its row of the first token of the document that `token` belongs to. A `token` beyond the row counts as
/// the row's last token. Without starts the result is 0, and no code is generated.
#[cube]
pub(crate) fn start_of(
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    token: usize,
) -> usize {
    let mut start = 0usize;
    #[comptime]
    match starts_bl {
        ComptimeOption::Some(starts_bl) => {
            start = starts_bl[tokens.first + clamp_max(token, tokens.count - 1)] as usize;
        }
        ComptimeOption::None => {}
    }
    start
}
