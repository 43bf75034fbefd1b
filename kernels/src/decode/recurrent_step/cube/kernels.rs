//! The kernels: a step of one head, and the convolution's windows that several heads read.

use cubecl::prelude::*;

use super::layout::{Layout, UNITS};

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
pub(super) fn step_kernel<F: Float, W: Float, A: Float, N: Size, V: Size>(
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
pub(super) fn roll_kernel<F: Float>(
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
