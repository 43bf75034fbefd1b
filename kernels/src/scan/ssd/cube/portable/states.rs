//! Steps 2 and 3: what each chunk adds to the state, and the recurrence over chunks.

use cubecl::prelude::*;

use super::super::decay::Decays;
use super::tile::{ACROSS, DOWN, Micro, Tile, tokens, units};

/// Step 2, for one chunk of one head, and one tile of the state: `sum_t decay_t rows_t columns_t^T`.
///
/// Forwards, `rows` is x, `columns` is B and the decay of `t` runs to the chunk's end: what the chunk
/// adds to the state that leaves it. Backwards, they are dy and C, and the decay runs from the chunk's
/// start: what it adds to the gradient of the state that enters it.
///
/// Cubes: chunks, batch times heads, tiles of the state.
#[cube(launch, address_type = "dynamic")]
pub fn chunk_states<E: Float>(
    rows_blhp: &Tensor<E>,
    columns_blgn: &Tensor<E>,
    a_log_blh: &Tensor<f32>,
    // [2, b, h, chunks, p, n], of which this fills one half.
    states: &mut Tensor<f32>,
    // [b, h, chunks]
    chunk_decays: &mut Tensor<f32>,
    #[comptime] backwards: bool,
    #[comptime] chunk: usize,
    #[define(E)] _dtype: StorageType,
) {
    let l = rows_blhp.shape(1);
    let h = rows_blhp.shape(2);
    let p = rows_blhp.shape(3);
    let n = columns_blgn.shape(3);
    let k = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize / h;
    let head = CUBE_POS_Y as usize % h;
    let group = head / (h / columns_blgn.shape(2));
    let across = n.div_ceil(chunk);
    let first_p = CUBE_POS_Z as usize / across * chunk;
    let first_n = CUBE_POS_Z as usize % across * chunk;
    let first_token = k * chunk;
    let present = min(l - first_token, chunk);

    let mut decays = Decays::new(chunk);
    let mut rows = Tile::new(chunk);
    let mut columns = Tile::new(chunk);
    decays.load(a_log_blh, batch, first_token, present, head);
    rows.stage(
        rows_blhp,
        tokens(rows_blhp, batch, first_token, present, head, first_p),
    );
    columns.stage(
        columns_blgn,
        tokens(columns_blgn, batch, first_token, present, group, first_n),
    );
    sync_cube();
    #[unroll]
    for i in 0..comptime!(DOWN * ACROSS) {
        let at = UNIT_POS as usize + comptime!(i * units(chunk));
        let t = at / chunk;
        let decay = decays.towards(t, backwards);
        let scaled = rows.get(t, at % chunk) * decay;
        rows.set(t, at % chunk, scaled);
    }
    sync_cube();

    let mut state = Micro::new(chunk);
    state.add_product(&rows, &columns, true, false);

    let chunks = CUBE_COUNT_X as usize;
    let index = CUBE_POS_Y as usize * chunks + k;
    let mut state_pn = index * p * n;
    if comptime!(backwards) {
        state_pn += states.stride(0);
    }
    #[unroll]
    for i in 0..DOWN {
        #[unroll]
        for j in 0..ACROSS {
            let row = first_p + state.row(i);
            let column = first_n + state.column(j);
            if row < p && column < n {
                states[state_pn + row * n + column] = state.get(i, j);
            }
        }
    }
    if UNIT_POS == 0 && CUBE_POS_Z == 0 {
        chunk_decays[index] = decays.between(0, chunk);
    }
}

/// How many chunks ahead [`pass_states`] reads. None of its reads depends on the state, but the compiler must not move
/// a read before a write to the same buffer, so the reads are placed ahead explicitly.
const AHEAD: usize = 8;

/// Step 3, for one element of each head's state: from what each chunk adds to the state that enters
/// it (backwards: the gradient of the state that leaves it), in place, and to the last one.
///
/// Cubes: elements of a state over units, batch times heads.
#[cube(launch, address_type = "dynamic")]
pub fn pass_states(
    // [2, b, h, chunks, p, n]
    states: &mut Tensor<f32>,
    // [b, h, chunks]
    chunk_decays: &Tensor<f32>,
    // [b, h, p, n]
    initial: &ComptimeOption<Tensor<f32>>,
    // [b, h, p, n]
    last: &mut Tensor<f32>,
    #[comptime] backwards: bool,
    // Whether `states` has two halves, of which a pass backwards takes the second.
    #[comptime] halves: bool,
) {
    let elements = last.shape(2) * last.shape(3);
    let chunks = chunk_decays.shape(2);
    let element = ABSOLUTE_POS_X as usize;
    if element >= elements {
        terminate!();
    }
    let matrix = CUBE_POS_Y as usize;
    let mut state = 0.0f32;
    #[comptime]
    match initial {
        ComptimeOption::Some(initial) => {
            let at = matrix / initial.shape(1) * initial.stride(0)
                + matrix % initial.shape(1) * initial.stride(1)
                + element / initial.shape(3) * initial.stride(2)
                + element % initial.shape(3) * initial.stride(3);
            state = initial[at];
        }
        ComptimeOption::None => {}
    }
    let mut first = element;
    if comptime!(backwards && halves) {
        first += states.stride(0);
    }
    let mut added = Array::<f32>::new(AHEAD);
    let mut decays = Array::<f32>::new(AHEAD);
    for batch in 0..chunks.div_ceil(AHEAD) {
        #[unroll]
        for i in 0..AHEAD {
            let step = min(batch * AHEAD + i, chunks - 1);
            let chunk = matrix * chunks + nth(step, chunks, backwards);
            added[i] = states[first + chunk * elements];
            decays[i] = chunk_decays[chunk];
        }
        #[unroll]
        for i in 0..AHEAD {
            let step = batch * AHEAD + i;
            if step < chunks {
                let chunk = matrix * chunks + nth(step, chunks, backwards);
                states[first + chunk * elements] = state;
                state = state * decays[i] + added[i];
            }
        }
    }
    last[matrix * elements + element] = state;
}

/// The chunk of the `step`-th step.
#[cube]
fn nth(step: usize, chunks: usize, #[comptime] backwards: bool) -> usize {
    if comptime!(backwards) {
        chunks - 1 - step
    } else {
        step
    }
}
