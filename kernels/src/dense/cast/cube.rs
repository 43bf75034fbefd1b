//! As a CubeCL kernel, several tensors a launch, a vector a unit.

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::CastAll;
use crate::cube::each_row::cubes as cubes_of;
use crate::cube::{
    address_type, computes_in_f32, empty, flat_vector_size, inner, tensor, together,
};

const UNITS: usize = 256;

/// A tensor's cubes are those before its place in `ends` and from that of the tensor before it on.
#[cube(launch_unchecked, address_type = "dynamic")]
fn cast_kernel<F: Float, T: Float, N: Size>(
    xs: &Sequence<Array<Vector<F, N>>>,
    ys: &mut Sequence<Array<Vector<T, N>>>,
    ends: &Sequence<u32>,
    vectors: &Sequence<u32>,
    #[comptime] count: usize,
    #[define(F)] _from: StorageType,
    #[define(T)] _to: StorageType,
) {
    let cube = CUBE_POS as u32;
    let mut first = 0u32;
    #[unroll]
    for i in 0..count {
        let end = *ends.index(i);
        let at = (cube - first) as usize * UNITS + UNIT_POS as usize;
        if cube >= first && cube < end && at < *vectors.index(i) as usize {
            let y = ys.index_mut(i);
            y[at] = Vector::cast_from(xs.index(i)[at]);
        }
        first = end;
    }
}

impl<R, F, I, T> CastAll for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn cast_all(xs: Vec<Tensor<Self, 1>>, dtype: DType) -> Vec<Tensor<Self, 1>> {
        let has_kernel = |x: &Tensor<Self, 1>| {
            computes_in_f32(x.dtype())
                && computes_in_f32(dtype)
                && x.dtype() != dtype
                && x.shape().num_elements() > 0
        };
        let mut done: Vec<Option<Tensor<Self, 1>>> = vec![];
        let mut operands = vec![];
        for (at, x) in xs.into_iter().enumerate() {
            if has_kernel(&x) {
                done.push(None);
                let x = into_contiguous(inner(x));
                let y = empty(&x, [x.meta.num_elements()], dtype);
                operands.push((at, x, y));
            } else {
                done.push(Some(x.cast(dtype)));
            }
        }
        let Some((_, like, _)) = operands.first() else {
            return done.into_iter().flatten().collect();
        };
        let most = together::most(like, 2, 0);
        let key = |(_, x, y): &(usize, CubeTensor<R>, CubeTensor<R>)| {
            (x.dtype, flat_vector_size(&[x, y]))
        };
        for group in together::groups(operands, most, key) {
            let (own, n) = key(&group[0]);
            let pairs: Vec<_> = group.iter().map(|(_, x, y)| (x, y)).collect();
            launch(&pairs, own, dtype, n);
            for (at, _, y) in group {
                done[at] = Some(tensor(y));
            }
        }
        done.into_iter().flatten().collect()
    }
}

/// Casts tensors of `own` to others of `dtype`, `n` elements at a time.
fn launch<R: CubeRuntime>(
    pairs: &[(&CubeTensor<R>, &CubeTensor<R>)],
    own: DType,
    dtype: DType,
    n: usize,
) {
    let vectors: Vec<usize> = pairs
        .iter()
        .map(|(x, _)| x.meta.num_elements() / n)
        .collect();
    let ends = together::ends(vectors.iter().map(|vectors| vectors.div_ceil(UNITS)));
    let [across, down] = cubes_of(ends.last().copied().unwrap_or(0) as usize);
    let widths = pairs.iter().map(|(x, y)| address_type(&[x, y]));
    // SAFETY: units beyond the vectors of a tensor do nothing in it, and a unit writes its own.
    unsafe {
        cast_kernel::launch_unchecked::<R>(
            &pairs[0].0.client,
            CubeCount::Static(across, down, 1),
            CubeDim::new_1d(UNITS as u32),
            widths.max().unwrap_or_default(),
            n,
            pairs
                .iter()
                .map(|(x, _)| (*x).clone().into_array_arg())
                .collect(),
            pairs
                .iter()
                .map(|(_, y)| (*y).clone().into_array_arg())
                .collect(),
            ends.into_iter().collect(),
            vectors.into_iter().map(|vectors| vectors as u32).collect(),
            pairs.len(),
            own.into(),
            dtype.into(),
        );
    }
}
