//! Steps 1 and 4, which are one kernel for the output and for three of its gradients.

use cubecl::prelude::*;

use super::super::decay::Decays;
use super::tile::{ACROSS, DOWN, Micro, Tile, Window, Zeros, tokens};

/// The direction of an output's sum, and how the output reads the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Whether an output depends on the tokens after it, as the gradients of x and B do, and not on those before it.
    pub backwards: bool,
    /// Whether the state's rows are the output's features, as p is for y and dx, and not its columns.
    pub rows_are_features: bool,
}

/// `out_t = sum_s decay(t, s) (query_t . key_s) value_s + decay_t query_t state`, with s up to t, and
/// summed over the heads that share the output's.
///
/// | out | query | key | value | looks     | state      |
/// |-----|-------|-----|-------|-----------|------------|
/// | y   | C     | B   | x     | forwards  | entering   |
/// | dC  | dy    | x   | B     | forwards  | entering   |
/// | dx  | B     | C   | dy    | backwards | d(leaving) |
/// | dB  | x     | dy  | C     | backwards | d(leaving) |
///
/// Cubes: chunks, batch times the output's heads, tiles of the output's features.
#[cube(launch, address_type = "dynamic")]
pub fn outputs<E: Float>(
    query: &Tensor<E>,
    key: &Tensor<E>,
    value: &Tensor<E>,
    a_log_blh: &Tensor<f32>,
    // [2, b, h, chunks, p, n]: the states, then their gradients.
    states: &Tensor<f32>,
    out: &mut Tensor<E>,
    #[comptime] kind: Kind,
    #[comptime] chunk: usize,
    #[define(E)] _dtype: StorageType,
) {
    let l = out.shape(1);
    let heads_out = out.shape(2);
    let features = out.shape(3);
    let h = a_log_blh.shape(2);
    let inner = query.shape(3);
    let k = CUBE_POS_X as usize;
    let chunks = CUBE_COUNT_X as usize;
    let batch = CUBE_POS_Y as usize / heads_out;
    let head_out = CUBE_POS_Y as usize % heads_out;
    let first_feature = CUBE_POS_Z as usize * chunk;
    let first_token = k * chunk;
    let present = min(l - first_token, chunk);

    let zeros = comptime!(if kind.backwards {
        Zeros::Below
    } else {
        Zeros::Above
    });
    let mut decays = Decays::new(chunk);
    let mut left = Tile::new(chunk);
    let mut right = Tile::new(chunk);
    let mut scores = Micro::new(chunk);
    let mut from_state = Micro::new(chunk);
    let mut total = Micro::new(chunk);

    let shared = h / heads_out;
    for i in 0..shared {
        let head = head_out * shared + i;
        sync_cube();
        decays.load(a_log_blh, batch, first_token, present, head);
        let query_head = head / (h / query.shape(2));
        let key_head = head / (h / key.shape(2));
        let value_head = head / (h / value.shape(2));
        let mut state = ((batch * h + head) * chunks + k) * inner * features;
        if comptime!(kind.backwards) {
            state += states.stride(0);
        }

        scores.clear();
        from_state.clear();
        for block in 0..inner.div_ceil(chunk) {
            let first_inner = block * chunk;
            sync_cube();
            left.stage(
                query,
                tokens(query, batch, first_token, present, query_head, first_inner),
            );
            right.stage(
                key,
                tokens(key, batch, first_token, present, key_head, first_inner),
            );
            sync_cube();
            scores.add_scores(&left, &right, zeros);
            sync_cube();
            if comptime!(kind.rows_are_features) {
                right.stage(
                    states,
                    Window {
                        first: state + first_feature * inner + first_inner,
                        row_stride: inner,
                        column_stride: 1usize,
                        rows: features - first_feature,
                        columns: inner - first_inner,
                    },
                );
            } else {
                right.stage(
                    states,
                    Window {
                        first: state + first_inner * features + first_feature,
                        row_stride: features,
                        column_stride: 1usize,
                        rows: inner - first_inner,
                        columns: features - first_feature,
                    },
                );
            }
            sync_cube();
            from_state.add_product(&left, &right, false, kind.rows_are_features);
        }

        sync_cube();
        #[unroll]
        for i in 0..DOWN {
            let t = scores.row(i);
            #[unroll]
            for j in 0..ACROSS {
                let s = scores.column(j);
                let weight = scores.get(i, j) * decays.within(t, s, kind.backwards);
                left.set(t, s, weight);
            }
        }
        right.stage(
            value,
            tokens(
                value,
                batch,
                first_token,
                present,
                value_head,
                first_feature,
            ),
        );
        sync_cube();
        total.add_triangle(&left, &right, zeros);
        #[unroll]
        for i in 0..DOWN {
            let t = total.row(i);
            let decay = decays.towards(t, comptime!(!kind.backwards));
            #[unroll]
            for j in 0..ACROSS {
                let sum = total.get(i, j) + decay * from_state.get(i, j);
                total.set(i, j, sum);
            }
        }
    }

    #[unroll]
    for i in 0..DOWN {
        let t = total.row(i);
        #[unroll]
        for j in 0..ACROSS {
            let feature = first_feature + total.column(j);
            if t < present && feature < features {
                let index = ((batch * l + first_token + t) * heads_out + head_out) * features;
                out[index + feature] = E::cast_from(total.get(i, j));
            }
        }
    }
}
