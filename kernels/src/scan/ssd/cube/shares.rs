//! What the segments of a walk back leave for the skip and the gate's bias, added up over sequences and segments.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::empty;

/// Shares that a unit reads before it adds them up, so that several reads are under way.
const AHEAD: usize = 8;

/// Cubes: heads; units: the channels of a head, and one for its skip.
#[cube(launch_unchecked)]
fn add_kernel<D: Float, Z: Float>(
    shares_bhsf: &Array<f32>,
    d_h: &mut ComptimeOption<Array<D>>,
    z_bias_c: &mut ComptimeOption<Array<Z>>,
    batch: u32,
    segments: u32,
    #[comptime] p: usize,
    #[comptime] _given: [bool; 2],
    #[define(D)] _d_dtype: StorageType,
    #[define(Z)] _z_dtype: StorageType,
) {
    let (head, heads) = (CUBE_POS, CUBE_COUNT);
    let column = UNIT_POS as usize;
    if column > p {
        terminate!();
    }
    let segments = segments as usize;
    let count = batch as usize * segments;
    let mut sum = 0.0f32;
    for start in range_stepped(0, count, AHEAD) {
        let mut read = Array::<f32>::new(AHEAD);
        #[unroll]
        for i in 0..AHEAD {
            let share = clamp_max(start + i, count - 1);
            let row = (share / segments * heads + head) * segments + share % segments;
            read[i] = shares_bhsf[row * (p + 1) + column];
        }
        #[unroll]
        for i in 0..AHEAD {
            if start + i < count {
                sum += read[i];
            }
        }
    }
    if column == p {
        #[comptime]
        match d_h {
            ComptimeOption::Some(d) => d[head] = D::cast_from(sum),
            ComptimeOption::None => {}
        }
    } else {
        #[comptime]
        match z_bias_c {
            ComptimeOption::Some(bias) => bias[head * p + column] = Z::cast_from(sum),
            ComptimeOption::None => {}
        }
    }
}

/// From `shares [b, h, segments, p + 1]` in f32 the gradients to the skip, `[h]`, and to the gate's bias, `[h * p]`, in
/// these dtypes: those that have one.
pub(super) fn add<R: CubeRuntime>(
    shares: CubeTensor<R>,
    [d, z_bias]: [Option<DType>; 2],
) -> [Option<CubeTensor<R>>; 2] {
    let [batch, h, segments, columns]: [usize; 4] = shares.meta.shape().dims();
    let p = columns - 1;
    let to_d = d.map(|dtype| empty(&shares, [h], dtype));
    let to_bias = z_bias.map(|dtype| empty(&shares, [h * p], dtype));
    let arg = |x: &CubeTensor<R>| x.clone().into_array_arg();
    // SAFETY: units beyond the columns leave, and the others read below the shares of their head and write their own
    // element.
    unsafe {
        add_kernel::launch_unchecked::<R>(
            &shares.client,
            CubeCount::Static(h as u32, 1, 1),
            CubeDim::new_1d(columns.next_multiple_of(32) as u32),
            arg(&shares),
            to_d.as_ref().map(arg).into(),
            to_bias.as_ref().map(arg).into(),
            batch as u32,
            segments as u32,
            p,
            [d.is_some(), z_bias.is_some()],
            d.unwrap_or(DType::F32).into(),
            z_bias.unwrap_or(DType::F32).into(),
        );
    }
    [to_d, to_bias]
}
