//! As CubeCL kernels: one pass over memory forward, and one backward with a small sum after it.
//!
//! A unit has a few neighbouring channels and walks through [`STEPS`] time steps with the inputs
//! that a tap reaches in registers, so that each is read once. Everything is summed in f32.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Activation;
use crate::cube::{address_type, empty, vector_size};

/// Units of a cube along the channels: neighbours in memory for neighbouring units.
const LANES: u32 = 32;
/// Units of a cube along time.
const ROWS: u32 = 8;
/// Time steps of a unit. Each run of them reads `w - 1` inputs that another run reads too.
const STEPS: usize = 32;

/// Where in the tensors a unit works.
#[derive(CubeType, Clone, Copy)]
struct Place {
    batch: usize,
    /// The first of its channels.
    channel: usize,
}

/// The input at `padded` steps into the sequence and the `w - 1` inputs before it.
#[cube]
fn input<F: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    place: Place,
    padded: usize,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if padded >= w - 1 {
        value = Vector::cast_from(read(x_blc, place, padded - (w - 1)));
    } else {
        #[comptime]
        match history_bwc {
            ComptimeOption::Some(history) => {
                value = Vector::cast_from(read(history, place, padded));
            }
            ComptimeOption::None => {}
        }
    }
    value
}

/// The elements at time `t`.
#[cube]
fn read<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, place: Place, t: usize) -> Vector<F, N> {
    let at = place.batch * x.stride(0) + t * x.stride(1) + place.channel * x.stride(2);
    x[at / N::value()]
}

/// The taps of the unit's channels.
#[cube]
fn read_taps<W: Float, N: Size>(
    weight_cw: &Tensor<W>,
    place: Place,
    #[comptime] w: usize,
) -> Array<Vector<f32, N>> {
    let mut taps = Array::<Vector<f32, N>>::new(w);
    #[unroll]
    for k in 0..w {
        let mut tap = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..N::value() {
            let at = (place.channel + lane) * weight_cw.stride(0) + k * weight_cw.stride(1);
            tap[lane] = f32::cast_from(weight_cw[at]);
        }
        taps[k] = tap;
    }
    taps
}

#[cube]
fn read_bias<W: Float, N: Size>(
    bias_c: &ComptimeOption<Tensor<W>>,
    place: Place,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    #[comptime]
    match bias_c {
        ComptimeOption::Some(bias) =>
        {
            #[unroll]
            for lane in 0..N::value() {
                value[lane] = f32::cast_from(bias[(place.channel + lane) * bias.stride(0)]);
            }
        }
        ComptimeOption::None => {}
    }
    value
}

/// Moves a window one step on.
#[cube]
fn push<N: Size>(window: &mut Array<Vector<f32, N>>, value: Vector<f32, N>, #[comptime] w: usize) {
    #[unroll]
    for k in 1..w {
        window[k - 1] = window[k];
    }
    window[w - 1] = value;
}

/// The convolution's sum at the end of `window`.
#[cube]
fn sum<N: Size>(
    taps: &Array<Vector<f32, N>>,
    window: &Array<Vector<f32, N>>,
    bias: Vector<f32, N>,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut sum = bias;
    #[unroll]
    for k in 0..w {
        sum += taps[k] * window[k];
    }
    sum
}

#[cube]
fn sigmoid<N: Size>(v: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + Vector::exp(Vector::<f32, N>::new(0.0f32) - v))
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    y_blc: &mut Tensor<Vector<F, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    let l = y_blc.shape(1);
    if place.channel >= y_blc.shape(2) || first >= l {
        terminate!();
    }
    let last = clamp_max(first + STEPS, l);

    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(w);
    #[unroll]
    for k in 1..w {
        window[k] = input(x_blc, history_bwc, place, first + k - 1, w);
    }
    for t in first..last {
        push(&mut window, Vector::cast_from(read(x_blc, place, t)), w);
        let mut y = sum(&taps, &window, bias, w);
        if silu {
            y *= sigmoid(y);
        }
        let at = place.batch * y_blc.stride(0) + t * y_blc.stride(1) + place.channel;
        y_blc[at / N::value()] = Vector::cast_from(y);
    }
}

/// The gradient to the sum at the end of `window`, from that to the output at time `t`; zero where
/// there is no output.
#[cube]
fn sum_gradient<F: Float, N: Size>(
    dy_blc: &Tensor<Vector<F, N>>,
    place: Place,
    t: usize,
    taps: &Array<Vector<f32, N>>,
    window: &Array<Vector<f32, N>>,
    bias: Vector<f32, N>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
) -> Vector<f32, N> {
    let mut gradient = Vector::<f32, N>::new(0.0f32);
    if t < dy_blc.shape(1) {
        gradient = Vector::cast_from(read(dy_blc, place, t));
        if silu {
            let v = sum(taps, window, bias, w);
            let s = sigmoid(v);
            let one = Vector::<f32, N>::new(1.0f32);
            gradient *= s * (one + v * (one - s));
        }
    }
    gradient
}

/// The gradient to the input that meets the sums in `gradients` through the last tap to the first.
#[cube]
fn input_gradient<N: Size>(
    taps: &Array<Vector<f32, N>>,
    gradients: &Array<Vector<f32, N>>,
    #[comptime] w: usize,
) -> Vector<f32, N> {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for k in 0..w {
        sum += taps[k] * gradients[w - 1 - k];
    }
    sum
}

/// The gradient to `x`, and each cube's share of those to the taps and, in the last row, to the bias.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    dy_blc: &Tensor<Vector<F, N>>,
    dx_blc: &mut Tensor<Vector<F, N>>,
    shares_skc: &mut Tensor<Vector<f32, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let (l, c) = (dx_blc.shape(1), dx_blc.shape(2));
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    let first = ABSOLUTE_POS_Y as usize * STEPS;
    let zero = Vector::<f32, N>::new(0.0f32);
    let mut sums = Array::<Vector<f32, N>>::new(w + 1);
    #[unroll]
    for k in 0..w + 1 {
        sums[k] = zero;
    }

    if place.channel < c && first < l {
        let last = clamp_max(first + STEPS, l);
        let taps = read_taps::<W, N>(weight_cw, place, w);
        let bias = read_bias::<W, N>(bias_c, place);
        let mut window = Array::<Vector<f32, N>>::new(w);
        let mut gradients = Array::<Vector<f32, N>>::new(w);
        #[unroll]
        for k in 0..w {
            gradients[k] = zero;
            window[k] = zero;
        }
        #[unroll]
        for k in 1..w {
            window[k] = input(x_blc, history_bwc, place, first + k - 1, w);
        }
        // The last inputs of the run meet sums after it.
        for t in first..last + w - 1 {
            let mut x = zero;
            if t < l {
                x = Vector::cast_from(read(x_blc, place, t));
            }
            push(&mut window, x, w);
            let gradient = sum_gradient(dy_blc, place, t, &taps, &window, bias, w, silu);
            push(&mut gradients, gradient, w);
            if t < last {
                #[unroll]
                for k in 0..w {
                    sums[k] += window[k] * gradient;
                }
                sums[w] += gradient;
            }
            if t + 1 >= first + w {
                let t = t + 1 - w;
                let at = place.batch * dx_blc.stride(0) + t * dx_blc.stride(1) + place.channel;
                dx_blc[at / N::value()] = Vector::cast_from(input_gradient(&taps, &gradients, w));
            }
        }
    }

    let mut shared = SharedMemory::<Vector<f32, N>>::new((LANES * ROWS) as usize);
    let share = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    #[unroll]
    for k in 0..w + 1 {
        shared[UNIT_POS as usize] = sums[k];
        sync_cube();
        if UNIT_POS_Y == 0 && place.channel < c {
            let mut total = zero;
            #[unroll]
            for row in 0..ROWS {
                total += shared[(row * LANES + UNIT_POS_X) as usize];
            }
            shares_skc[((share * (w + 1) + k) * c + place.channel) / N::value()] = total;
        }
        sync_cube();
    }
}

/// Adds up the shares, in their order.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_shares_kernel<W: Float>(
    shares_skc: &Tensor<f32>,
    dweight_cw: &mut Tensor<W>,
    dbias_c: &mut Tensor<W>,
    #[comptime] w: usize,
    #[define(W)] _weight_dtype: StorageType,
) {
    let c = dbias_c.shape(0);
    let row = (w + 1) * c;
    if ABSOLUTE_POS >= row {
        terminate!();
    }
    let mut total = 0.0f32;
    for share in 0..shares_skc.shape(0) {
        total += shares_skc[share * row + ABSOLUTE_POS];
    }
    let (k, channel) = (ABSOLUTE_POS / c, ABSOLUTE_POS % c);
    if k < w {
        dweight_cw[channel * w + k] = W::cast_from(total);
    } else {
        dbias_c[channel] = W::cast_from(total);
    }
}

/// The gradient to the inputs before the first, which meet the first sums.
#[cube(launch_unchecked, address_type = "dynamic")]
fn history_kernel<F: Float, W: Float, N: Size>(
    x_blc: &Tensor<Vector<F, N>>,
    weight_cw: &Tensor<W>,
    bias_c: &ComptimeOption<Tensor<W>>,
    history_bwc: &ComptimeOption<Tensor<Vector<F, N>>>,
    dy_blc: &Tensor<Vector<F, N>>,
    dhistory_bwc: &mut Tensor<Vector<F, N>>,
    #[comptime] w: usize,
    #[comptime] silu: bool,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _weight_dtype: StorageType,
) {
    let (l, c) = (x_blc.shape(1), dhistory_bwc.shape(2));
    let place = Place {
        batch: CUBE_POS_Z as usize,
        channel: ABSOLUTE_POS_X as usize * N::value(),
    };
    if place.channel >= c {
        terminate!();
    }
    let taps = read_taps::<W, N>(weight_cw, place, w);
    let bias = read_bias::<W, N>(bias_c, place);
    let mut window = Array::<Vector<f32, N>>::new(w);
    let mut gradients = Array::<Vector<f32, N>>::new(w);
    window[0] = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for k in 0..w {
        gradients[k] = Vector::<f32, N>::new(0.0f32);
    }
    #[unroll]
    for k in 1..w {
        window[k] = input(x_blc, history_bwc, place, k - 1, w);
    }
    for t in 0..w - 1 {
        let mut x = Vector::<f32, N>::new(0.0f32);
        if t < l {
            x = Vector::cast_from(read(x_blc, place, t));
        }
        push(&mut window, x, w);
        push(
            &mut gradients,
            sum_gradient(dy_blc, place, t, &taps, &window, bias, w, silu),
            w,
        );
        let at = (place.batch * (w - 1) + t) * c + place.channel;
        dhistory_bwc[at / N::value()] = Vector::cast_from(input_gradient(&taps, &gradients, w));
    }
}

/// The inputs of the convolution, shaped as in [`causal_conv`](super::causal_conv).
#[derive(Clone)]
pub(crate) struct Inputs<R: CubeRuntime> {
    pub x: CubeTensor<R>,
    pub weight: CubeTensor<R>,
    pub bias: Option<CubeTensor<R>>,
    pub history: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Inputs<R> {
    /// Asserts that the kernels read what is there: they are not told every tensor's dtype.
    fn check(&self, dy: Option<&CubeTensor<R>>) {
        let like_x = self.history.iter().chain(dy);
        assert!(
            like_x.into_iter().all(|other| other.dtype == self.x.dtype),
            "causal_conv: history and gradient must have the dtype of x"
        );
        let mut bias = self.bias.iter();
        assert!(
            bias.all(|bias| bias.dtype == self.weight.dtype),
            "causal_conv: the bias must have the dtype of the weight"
        );
    }

    /// Channels of a unit, where `others` are read or written besides.
    fn channels(&self, others: &[&CubeTensor<R>]) -> usize {
        let mut tensors = vec![&self.x];
        tensors.extend(&self.history);
        tensors.extend(others);
        vector_size(&tensors)
    }

    /// Without the one that holds nothing, for a width of one.
    fn history(&self, w: usize) -> Option<CubeTensor<R>> {
        self.history.clone().filter(|_| w > 1)
    }
}

fn dims<R: CubeRuntime, const D: usize>(x: &CubeTensor<R>) -> [usize; D] {
    x.meta.shape().dims()
}

/// Cubes for `[b, l, c]` with `n` channels a unit.
fn cubes([b, l, c]: [usize; 3], n: usize) -> CubeCount {
    let along = |units: usize, cube: u32| units.div_ceil(cube as usize) as u32;
    CubeCount::Static(
        along(c / n, LANES),
        along(l.div_ceil(STEPS), ROWS),
        b as u32,
    )
}

pub(crate) fn forward<R: CubeRuntime>(inputs: Inputs<R>, activation: Activation) -> CubeTensor<R> {
    inputs.check(None);
    let (shape, [_, w]) = (dims(&inputs.x), dims(&inputs.weight));
    let y = empty(&inputs.x, shape, inputs.x.dtype);
    let n = inputs.channels(&[&y]);
    let client = y.client.clone();
    let history = inputs.history(w);
    let Inputs {
        x, weight, bias, ..
    } = inputs;
    // SAFETY: a unit reads and writes its own channels and time steps, which are inside `shape`, and
    // reads the `w - 1` steps before them, from the history where they precede the first.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            cubes(shape, n),
            CubeDim::new_2d(LANES, ROWS),
            address_type(&[&x, &y]),
            n,
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.map(CubeTensor::into_tensor_arg).into(),
            history.map(CubeTensor::into_tensor_arg).into(),
            y.clone().into_tensor_arg(),
            w,
            activation == Activation::Silu,
            x.dtype.into(),
            weight.dtype.into(),
        );
    }
    y
}

/// Gradients, as in [`ConvGradients`](super::ConvGradients).
pub(crate) struct Gradients<R: CubeRuntime> {
    pub x: Option<CubeTensor<R>>,
    pub weight: Option<CubeTensor<R>>,
    pub bias: Option<CubeTensor<R>>,
    pub history: Option<CubeTensor<R>>,
}

pub(crate) fn backward<R: CubeRuntime>(
    inputs: Inputs<R>,
    activation: Activation,
    dy: CubeTensor<R>,
    wanted: [bool; 4],
) -> Gradients<R> {
    inputs.check(Some(&dy));
    let (shape, [c, w]) = (dims(&inputs.x), dims(&inputs.weight));
    let [b, l, _] = shape;
    let (dtype, weight_dtype) = (inputs.x.dtype, inputs.weight.dtype);
    let silu = activation == Activation::Silu;
    let shares = b * l.div_ceil(STEPS * ROWS as usize);
    let dx = empty(&inputs.x, shape, dtype);
    let sums = empty(&inputs.x, [shares, w + 1, c], DType::F32);
    let dweight = empty(&inputs.x, [c, w], weight_dtype);
    let dbias = empty(&inputs.x, [c], weight_dtype);
    let n = inputs.channels(&[&dy, &dx, &sums]);
    let client = dx.client.clone();
    let history = inputs.history(w);
    let dhistory = (wanted[3] && w > 1).then(|| empty(&inputs.x, [b, w - 1, c], dtype));
    let Inputs {
        x, weight, bias, ..
    } = inputs;
    let arg = |x: &CubeTensor<R>| x.clone().into_tensor_arg();
    let width = address_type(&[&x, &dy, &dx, &sums]);
    // SAFETY: as forward; besides, a unit reads the `w - 1` gradients after its time steps where there
    // are so many, and writes its cube's own share of the sums.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            cubes(shape, n),
            CubeDim::new_2d(LANES, ROWS),
            width,
            n,
            arg(&x),
            arg(&weight),
            bias.as_ref().map(arg).into(),
            history.as_ref().map(arg).into(),
            arg(&dy),
            arg(&dx),
            arg(&sums),
            w,
            silu,
            dtype.into(),
            weight_dtype.into(),
        );
    }
    let columns = ((w + 1) * c).div_ceil(256) as u32;
    // SAFETY: units beyond the columns of the sums leave at once.
    unsafe {
        sum_shares_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::Static(columns, 1, 1),
            CubeDim::new_1d(256),
            width,
            arg(&sums),
            arg(&dweight),
            arg(&dbias),
            w,
            weight_dtype.into(),
        );
    }
    if let Some(dhistory) = &dhistory {
        // SAFETY: a unit reads and writes its own channels, and of x and dy only steps they have.
        unsafe {
            history_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static((c / n).div_ceil(LANES as usize) as u32, 1, b as u32),
                CubeDim::new_1d(LANES),
                width,
                n,
                arg(&x),
                arg(&weight),
                bias.as_ref().map(arg).into(),
                history.as_ref().map(arg).into(),
                arg(&dy),
                arg(dhistory),
                w,
                silu,
                dtype.into(),
                weight_dtype.into(),
            );
        }
    }
    Gradients {
        x: wanted[0].then_some(dx),
        weight: wanted[1].then_some(dweight),
        bias: wanted[2].then_some(dbias),
        history: dhistory,
    }
}
