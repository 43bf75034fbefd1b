//! The kernels and their launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::launch_cache::{ARRAY, Described, Launcher, array, launch, optional, settings};
use crate::cube::output_pool::output;
use crate::cube::recording;
use crate::cube::{address_type, own, vector_size};
use crate::scan::causal_conv::Activation;

/// Units of a cube.
const UNITS: usize = 256;
/// Sums that a cube has room for: 12 KiB.
pub(super) const PARTIALS: usize = 3072;

/// How a cube's units share a head's `[p, n]`: neighbours along n, `lanes` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Layout {
    p: usize,
    n: usize,
    /// Elements along n that are read together.
    vector: usize,
    lanes: usize,
    /// Pairs along n that are turned, a multiple of both: a unit has both numbers of each pair, or none.
    pairs: usize,
}

impl Layout {
    /// For states that can be read so many elements of n at a time.
    fn new(p: usize, n: usize, vector: usize, pairs: usize) -> Self {
        let vector = if pairs.is_multiple_of(vector) {
            vector
        } else {
            1
        };
        let vectors = n / vector;
        let fits = |lanes: &usize| {
            let in_memory = p * (lanes + 1) <= PARTIALS;
            *lanes <= vectors && in_memory && (pairs / vector).is_multiple_of(*lanes)
        };
        let lanes = (0..=UNITS.ilog2()).rev().map(|log| 1 << log).find(fits);
        Self {
            p,
            n,
            vector,
            lanes: lanes.unwrap_or(1),
            pairs,
        }
    }

    /// Rows of the state that are read together.
    fn rows(self) -> usize {
        UNITS / self.lanes
    }

    /// Vectors of a unit along n.
    fn across(self) -> usize {
        (self.n / self.vector).div_ceil(self.lanes)
    }

    /// Of these, the vectors of first numbers of pairs.
    fn turned(self) -> usize {
        self.pairs / self.vector / self.lanes
    }

    /// Vectors of a unit along p.
    fn down(self) -> usize {
        self.p.div_ceil(self.rows())
    }
}

#[cube]
fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

/// The output at `channel` of the convolution's step, whose window begins at `window`, in elements. With
/// `rolls`, it moves on. A window is read and written in as few vectors as hold it.
#[cube]
fn convolve<F: Float, W: Float, V: Size>(
    input: F,
    conv_bcw: &mut Array<Vector<F, V>>,
    taps_cw: &Array<Vector<W, V>>,
    bias_c: &ComptimeOption<Array<W>>,
    window: usize,
    tap: usize,
    channel: usize,
    rolls: bool,
    #[comptime] w: usize,
    #[comptime] together: usize,
    #[comptime] silu: bool,
) -> f32 {
    let mut taps = Array::<f32>::new(w);
    let mut elements = Array::<F>::new(w);
    #[unroll]
    for i in 0..comptime!(w / together) {
        let tap = taps_cw[tap + i];
        let element = conv_bcw[window / together + i];
        #[unroll]
        for j in 0..together {
            taps[comptime!(i * together + j)] = f32::cast_from(tap[j]);
            elements[comptime!(i * together + j)] = element[j];
        }
    }
    let mut sum = taps[w - 1] * f32::cast_from(input);
    #[comptime]
    match bias_c {
        ComptimeOption::Some(bias) => {
            sum += f32::cast_from(bias[channel]);
        }
        ComptimeOption::None => {}
    }
    #[unroll]
    for k in 1..w {
        elements[k - 1] = elements[k];
        sum += taps[k - 1] * f32::cast_from(elements[k]);
    }
    elements[w - 1] = input;
    if rolls {
        #[unroll]
        for i in 0..comptime!(w / together) {
            let mut vector = Vector::<F, V>::empty();
            #[unroll]
            for j in 0..together {
                vector[j] = elements[comptime!(i * together + j)];
            }
            conv_bcw[window / together + i] = vector;
        }
    }
    if silu {
        sum *= sigmoid(sum);
    }
    sum
}

/// Normalises the `n` numbers of `read` from `first` on, if there is a norm.
#[cube]
fn normalise<W: Float>(
    read: &mut SharedMemory<f32>,
    gamma: &ComptimeOption<Array<W>>,
    #[comptime] first: usize,
    epsilon: f32,
    #[comptime] n: usize,
) {
    #[comptime]
    match gamma {
        ComptimeOption::Some(gamma) => {
            // Every unit adds up the squares for itself: they are few, and all units read the same one at a time.
            let mut sum = 0.0f32;
            for i in 0..n {
                let value = read[first + i];
                sum = fma(value, value, sum);
            }
            let inverse = 1.0 / (sum / comptime!(n as f32) + epsilon).sqrt();
            sync_cube();
            for i in range_stepped(UNIT_POS as usize, n, UNITS) {
                read[first + i] = read[first + i] * inverse * f32::cast_from(gamma[i]);
            }
            sync_cube();
        }
        ComptimeOption::None => {}
    }
}

/// Turns the unit's share of the state, `[down, across]`, if there are angles.
#[cube]
fn turn<A: Float, N: Size>(
    state: &mut Array<Vector<f32, N>>,
    cos: &ComptimeOption<Array<Vector<A, N>>>,
    sin: &ComptimeOption<Array<Vector<A, N>>>,
    lane: usize,
    #[comptime] layout: Layout,
) {
    #[comptime]
    match cos {
        ComptimeOption::Some(cos) =>
        {
            #[comptime]
            match sin {
                ComptimeOption::Some(sin) => {
                    let (across, half) = comptime!((layout.across(), layout.turned()));
                    #[unroll]
                    for i in 0..half {
                        let at = lane + i * layout.lanes;
                        let cos = Vector::<f32, N>::cast_from(cos[at]);
                        let sin = Vector::<f32, N>::cast_from(sin[at]);
                        #[unroll]
                        for j in 0..comptime!(layout.down()) {
                            let place = j * across + i;
                            let (first, second) = (state[place], state[place + half]);
                            state[place] = first * cos - second * sin;
                            state[place + half] = second * cos + first * sin;
                        }
                    }
                }
                ComptimeOption::None => {}
            }
        }
        ComptimeOption::None => {}
    }
}

/// Writes a head's output, and over its state and, with `own_group`, the windows of all of its channels;
/// without, only of those of x.
///
/// Arrays and not tensors: a tensor's shape would be written to the device for every launch.
#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<F: Float, W: Float, A: Float, N: Size, V: Size>(
    projected: &Array<F>,
    output: &mut Array<F>,
    conv_bcw: &mut Array<Vector<F, V>>,
    ssm_bhpn: &mut Array<Vector<f32, N>>,
    taps_cw: &Array<Vector<W, V>>,
    bias_c: &ComptimeOption<Array<W>>,
    d_h: &Array<W>,
    z_bias: &ComptimeOption<Array<W>>,
    a_log_bias: &ComptimeOption<Array<W>>,
    b_gamma: &ComptimeOption<Array<W>>,
    c_gamma: &ComptimeOption<Array<W>>,
    cos: &ComptimeOption<Array<Vector<A, N>>>,
    sin: &ComptimeOption<Array<Vector<A, N>>>,
    c: usize,
    taps_row: usize,
    b_epsilon: f32,
    c_epsilon: f32,
    #[comptime] layout: Layout,
    #[comptime] own_group: bool,
    #[comptime] w: usize,
    #[comptime] together: usize,
    #[comptime] silu: bool,
    #[comptime] _given: [bool; 5],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameters: StorageType,
    #[define(A)] _angles: StorageType,
) {
    let (p, n, lanes) = comptime!((layout.p, layout.n, layout.lanes));
    let (rows, across, down) = comptime!((layout.rows(), layout.across(), layout.down()));
    let vectors = comptime!(n / layout.vector);
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let groups = (c - h * p) / (2 * n);
    let group = head / (h / groups);
    let unit = UNIT_POS as usize;
    let (lane, row) = (unit % lanes, unit / lanes);

    // The state's reads are under way while the convolution computes.
    let base = (batch * h + head) * comptime!(p * vectors);
    let mut state = Array::<Vector<f32, N>>::new(comptime!(across * down));
    #[unroll]
    for j in 0..down {
        #[unroll]
        for i in 0..across {
            let (at_p, at_n) = (row + j * rows, lane + i * lanes);
            if at_p < p && at_n < vectors {
                state[j * across + i] = ssm_bhpn[base + at_p * vectors + at_n];
            }
        }
    }

    // x, B and C of this head, and its gate.
    let token = batch * (c + h * p + h);
    let mut read = SharedMemory::<f32>::new(comptime!(2 * (p + n)));
    for i in range_stepped(unit, comptime!(2 * (p + n)), UNITS) {
        if i < p + 2 * n {
            let mut channel = head * p + i;
            if i >= p + n {
                channel = h * p + (groups + group) * n + i - p - n;
            } else if i >= p {
                channel = h * p + group * n + i - p;
            }
            let rolls = own_group || i < p;
            let input = projected[token + channel];
            let window = (batch * c + channel) * w;
            let tap = channel * taps_row;
            read[i] = convolve(
                input, conv_bcw, taps_cw, bias_c, window, tap, channel, rolls, w, together, silu,
            );
        } else {
            let channel = head * p + i - p - 2 * n;
            let mut z = f32::cast_from(projected[token + c + channel]);
            #[comptime]
            match z_bias {
                ComptimeOption::Some(bias) => {
                    z += f32::cast_from(bias[channel]);
                }
                ComptimeOption::None => {}
            }
            read[i] = z * sigmoid(z);
        }
    }
    let d = f32::cast_from(d_h[head]);
    let mut a_log = f32::cast_from(projected[token + c + h * p + head]);
    #[comptime]
    match a_log_bias {
        ComptimeOption::Some(bias) => {
            a_log += f32::cast_from(bias[head]);
        }
        ComptimeOption::None => {}
    }
    let decay = sigmoid(-a_log);
    sync_cube();
    normalise(&mut read, b_gamma, p, b_epsilon, n);
    normalise(&mut read, c_gamma, comptime!(p + n), c_epsilon, n);
    turn(&mut state, cos, sin, lane, layout);

    let mut sums = Array::<f32>::new(down);
    #[unroll]
    for j in 0..down {
        sums[j] = 0.0;
    }
    #[unroll]
    for i in 0..across {
        let at_n = lane + i * lanes;
        if at_n < vectors {
            let mut b_n = Vector::<f32, N>::new(0.0f32);
            let mut c_n = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for k in 0..N::value() {
                b_n[k] = read[p + at_n * N::value() + k];
                c_n[k] = read[p + n + at_n * N::value() + k];
            }
            #[unroll]
            for j in 0..down {
                let at_p = row + j * rows;
                if at_p < p {
                    let kept = state[j * across + i] * Vector::new(decay);
                    let after = kept + Vector::new(read[at_p]) * b_n;
                    ssm_bhpn[base + at_p * vectors + at_n] = after;
                    let products = after * c_n;
                    #[unroll]
                    for k in 0..N::value() {
                        sums[j] += products[k];
                    }
                }
            }
        }
    }

    let mut partials = SharedMemory::<f32>::new(comptime!(p * (lanes + 1)));
    #[unroll]
    for j in 0..down {
        let at_p = row + j * rows;
        if at_p < p {
            partials[at_p * comptime!(lanes + 1) + lane] = sums[j];
        }
    }
    sync_cube();
    for row in range_stepped(unit, p, UNITS) {
        let mut y = d * read[row];
        for lane in 0..lanes {
            y += partials[row * comptime!(lanes + 1) + lane];
        }
        output[(batch * h + head) * p + row] = F::cast_from(y * read[p + 2 * n + row]);
    }
}

/// Moves on the windows of B and C, where several heads read each.
#[cube(launch_unchecked, address_type = "dynamic")]
fn roll_kernel<F: Float>(
    projected: &Array<F>,
    conv_bcw: &mut Array<F>,
    first: usize,
    c: usize,
    columns: usize,
    #[comptime] w: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (batch, channel) = (CUBE_POS_Y as usize, first + ABSOLUTE_POS_X as usize);
    if channel >= c {
        terminate!();
    }
    let window = (batch * c + channel) * w;
    #[unroll]
    for k in 1..w {
        conv_bcw[window + k - 1] = conv_bcw[window + k];
    }
    conv_bcw[window + w - 1] = projected[batch * columns + channel];
}

/// What the step's kernel is made with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Made {
    width: AddressType,
    layout: Layout,
    own_group: bool,
    w: usize,
    together: usize,
    silu: bool,
    /// Whether there is a bias of the convolution, of the gate, and of A_log; norms; and angles.
    given: [bool; 5],
    dtype: DType,
    parameters: DType,
    angles: DType,
}

thread_local! {
    static STEP: Described<Made> = Described::default();
}

/// The op's inputs on the device.
pub(super) struct Operands<R: CubeRuntime> {
    pub projected: CubeTensor<R>,
    pub taps: CubeTensor<R>,
    pub bias: Option<CubeTensor<R>>,
    pub activation: Activation,
    pub d: CubeTensor<R>,
    pub z_bias: Option<CubeTensor<R>>,
    pub a_log_bias: Option<CubeTensor<R>>,
    /// Of B and of C, gamma and epsilon.
    pub bc_norms: Option<[(CubeTensor<R>, f32); 2]>,
    /// Cosines and sines.
    pub turn: Option<[CubeTensor<R>; 2]>,
    pub conv: CubeTensor<R>,
    pub ssm: CubeTensor<R>,
}

/// How many elements of a convolution's window `[b, c, w]` are read together: all of them, if the device
/// can.
fn window_vector<R: CubeRuntime>(conv: &CubeTensor<R>) -> usize {
    let w = conv.meta.shape()[2];
    let mut sizes = conv.client.io_optimized_vector_sizes(conv.dtype.size());
    if sizes.any(|size| size == w) { w } else { 1 }
}

/// The gated output, and the states of the convolution and the scan.
pub(super) fn step<R: CubeRuntime>(
    inputs: Operands<R>,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
    let dtype = inputs.projected.dtype;
    let projected = into_contiguous(inputs.projected);
    let conv = if inputs.conv.dtype == dtype {
        own(inputs.conv)
    } else {
        own(cast(inputs.conv, dtype))
    };
    let ssm = own(inputs.ssm);
    let [b, h, p, n] = ssm.meta.shape().dims();
    let [_, c, w]: [usize; 3] = conv.meta.shape().dims();
    let client = ssm.client.clone();
    let output = output(&projected, [b, h * p], dtype);
    let own_group = c == h * (p + 2 * n);
    let together = window_vector(&conv);
    let pairs = inputs.turn.as_ref();
    let pairs = pairs.map_or(0, |[cos, _]| cos.meta.shape()[1]);
    let layout = Layout::new(p, n, vector_size(&[&ssm]), pairs);
    // In half precision, rows as short as these may be padded; they are read as they lie.
    let rows = |taps: &CubeTensor<R>| {
        let strides = taps.meta.strides();
        (strides[2] == 1 && strides[0].is_multiple_of(together)).then_some(strides[0])
    };
    let (taps, taps_row) = match rows(&inputs.taps) {
        Some(row) => (inputs.taps, row),
        None => (into_contiguous(inputs.taps), w),
    };
    let made = Made {
        width: address_type(&[&projected, &conv, &ssm]),
        layout,
        own_group,
        w,
        together,
        silu: inputs.activation == Activation::Silu,
        given: [
            inputs.bias.is_some(),
            inputs.z_bias.is_some(),
            inputs.a_log_bias.is_some(),
            inputs.bc_norms.is_some(),
            inputs.turn.is_some(),
        ],
        dtype,
        parameters: taps.dtype,
        angles: inputs
            .turn
            .as_ref()
            .map_or(DType::F32, |[cos, _]| cos.dtype),
    };
    let mut gammas = None;
    let mut epsilons = [0.0; 2];
    if let Some([(b_gamma, b_epsilon), (c_gamma, c_epsilon)]) = inputs.bc_norms {
        gammas = Some([b_gamma, c_gamma]);
        epsilons = [b_epsilon, c_epsilon];
    }
    let settings = settings(UNITS, made.width);
    let mut launcher = Launcher::<R>::new(settings.clone());
    let element = Type::new(dtype.into());
    let parameter = Type::new(made.parameters.into());
    let state = Type::new(DType::F32.into()).with_vector_size(layout.vector);
    launcher.array(array(&projected), element);
    launcher.array(array(&output), element);
    launcher.array(array(&conv), element.with_vector_size(together));
    launcher.array(array(&ssm), state);
    launcher.array(array(&taps), parameter.with_vector_size(together));
    let vectors = [
        inputs.bias,
        Some(inputs.d),
        inputs.z_bias,
        inputs.a_log_bias,
    ];
    for x in vectors.into_iter().flatten() {
        launcher.array(array(&into_contiguous(x)), parameter);
    }
    for gamma in gammas.into_iter().flatten() {
        launcher.array(array(&into_contiguous(gamma)), parameter);
    }
    let angle = Type::new(made.angles.into()).with_vector_size(layout.vector);
    for angles in inputs.turn.into_iter().flatten() {
        launcher.array(array(&into_contiguous(angles)), angle);
    }
    launcher.size(c);
    launcher.size(taps_row / together);
    for epsilon in epsilons {
        launcher.scalar(epsilon);
    }
    let describe = |made: Made| {
        step_kernel::StepKernel::<R>::new(
            settings,
            client.clone(),
            ARRAY,
            ARRAY,
            ARRAY,
            ARRAY,
            ARRAY,
            optional(made.given[0]),
            ARRAY,
            optional(made.given[1]),
            optional(made.given[2]),
            optional(made.given[3]),
            optional(made.given[3]),
            optional(made.given[4]),
            optional(made.given[4]),
            (),
            (),
            (),
            (),
            layout.vector,
            together,
            layout,
            own_group,
            w,
            together,
            made.silu,
            made.given,
            dtype.into(),
            made.parameters.into(),
            made.angles.into(),
        )
    };
    let kernel = STEP.with(|known| known.get(&output, made, describe));
    let count = CubeCount::Static(h as u32, b as u32, 1);
    // SAFETY: nothing else holds the three tensors that are written. Each cube writes its head's own
    // parts of them, and reads no other cube's; shapes were asserted by the caller.
    unsafe { launch(launcher, count, kernel, &output) };
    if !own_group {
        let first = h * p;
        recording::launches();
        // SAFETY: each unit writes one window, among those that the step has only read.
        unsafe {
            roll_kernel::launch_unchecked::<R>(
                &client,
                CubeCount::Static((c - first).div_ceil(UNITS) as u32, b as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                made.width,
                array(&projected),
                array(&conv),
                first,
                c,
                c + h * p + h,
                w,
                dtype.into(),
            );
        }
    }
    (output, conv, ssm)
}
