//! The launches of the portable variant: every matrix in square blocks of a chunk's length, so that two
//! f32 tiles of shared memory do for any p and n, and at most seven buffers a kernel.

mod decay_gradient;
mod outputs;
mod states;
mod tile;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

pub(super) use self::states::pass_states;

use self::outputs::Kind;
use self::states::chunk_states;
use super::{Gradients, Inputs};
use crate::cube::{address_type, empty};

const Y: Kind = Kind {
    backwards: false,
    rows_are_features: true,
};
const DC: Kind = Kind {
    backwards: false,
    rows_are_features: false,
};
const DX: Kind = Kind {
    backwards: true,
    rows_are_features: true,
};
const DB: Kind = Kind {
    backwards: true,
    rows_are_features: false,
};

/// Units of a cube that passes states.
const UNITS: u32 = 128;

/// The scan's output and the state after the last token.
pub(super) fn forward<R: CubeRuntime>(inputs: &Inputs<R>) -> (CubeTensor<R>, CubeTensor<R>) {
    let scan = Scan::new(inputs);
    let scratch = scan.scratch(1);
    let last = scan.states(&scratch);
    let Inputs {
        x_blhp,
        b_blgn,
        c_blgn,
        ..
    } = inputs;
    let y = scan.outputs(c_blgn, b_blgn, x_blhp, &scratch, x_blhp, Y);
    (y, last)
}

/// The gradients of `sum(y * dy)`.
pub(super) fn backward<R: CubeRuntime>(
    inputs: &Inputs<R>,
    dy_blhp: &CubeTensor<R>,
) -> Gradients<R> {
    let scan = Scan::new(inputs);
    let scratch = scan.scratch(2);
    scan.states(&scratch);
    let initial_bhpn = scan.state_gradients(dy_blhp, &scratch);
    let Inputs {
        x_blhp,
        b_blgn,
        c_blgn,
        ..
    } = inputs;
    Gradients {
        x_blhp: scan.outputs(b_blgn, c_blgn, dy_blhp, &scratch, x_blhp, DX),
        b_blgn: scan.outputs(x_blhp, dy_blhp, c_blgn, &scratch, b_blgn, DB),
        c_blgn: scan.outputs(dy_blhp, x_blhp, b_blgn, &scratch, c_blgn, DC),
        a_log_blh: scan.decay_gradient(dy_blhp, &scratch),
        initial_bhpn,
        z_blhp: None,
        shares_bhsf: None,
    }
}

/// A scan cut into chunks for its device.
struct Scan<'a, R: CubeRuntime> {
    inputs: &'a Inputs<R>,
    batch: usize,
    l: usize,
    h: usize,
    p: usize,
    n: usize,
    /// Tokens of a chunk, and rows and columns of every tile.
    chunk: usize,
    chunks: usize,
    units: CubeDim,
    address_type: AddressType,
}

/// What the steps pass on.
struct Scratch<R: CubeRuntime> {
    /// `[1 or 2, b, h, chunks, p, n]`: the states that enter the chunks, and the gradients of those that
    /// leave them.
    states: CubeTensor<R>,
    /// `[b, h, chunks]`.
    chunk_decays: CubeTensor<R>,
}

impl<'a, R: CubeRuntime> Scan<'a, R> {
    fn new(inputs: &'a Inputs<R>) -> Self {
        let [batch, l, h, p] = inputs.x_blhp.meta.shape().dims();
        let n = inputs.b_blgn.meta.shape()[3];
        let chunk = chunk_length(&inputs.x_blhp.client);
        let chunks = l.div_ceil(chunk);
        // The scratch is what may grow largest, next to the inputs.
        let elements = (2 * batch * h * chunks * p * n).max(batch * l * h * p.max(n));
        let address_type = address_type(&[&inputs.x_blhp, &inputs.b_blgn, &inputs.c_blgn])
            .max(AddressType::from_len(elements));
        Self {
            inputs,
            batch,
            l,
            h,
            p,
            n,
            chunk,
            chunks,
            units: CubeDim::new_1d(tile::units(chunk) as u32),
            address_type,
        }
    }

    fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> CubeTensor<R> {
        empty(&self.inputs.x_blhp, shape, dtype)
    }

    /// Room for `kinds` states a chunk.
    fn scratch(&self, kinds: usize) -> Scratch<R> {
        let states = [kinds, self.batch, self.h, self.chunks, self.p, self.n];
        Scratch {
            states: self.empty(states, DType::F32),
            chunk_decays: self.empty([self.batch, self.h, self.chunks], DType::F32),
        }
    }

    /// Steps 2 and 3: the states that enter the chunks, and the last one.
    fn states(&self, scratch: &Scratch<R>) -> CubeTensor<R> {
        let (x, b) = (&self.inputs.x_blhp, &self.inputs.b_blgn);
        self.pass(x, b, self.inputs.initial_bhpn.clone(), scratch, false)
    }

    /// Steps 2 and 3 from the end: the gradients of the states that leave the chunks, and that of the
    /// initial one.
    fn state_gradients(&self, dy: &CubeTensor<R>, scratch: &Scratch<R>) -> CubeTensor<R> {
        self.pass(dy, &self.inputs.c_blgn, None, scratch, true)
    }

    fn pass(
        &self,
        rows: &CubeTensor<R>,
        columns: &CubeTensor<R>,
        initial: Option<CubeTensor<R>>,
        scratch: &Scratch<R>,
        backwards: bool,
    ) -> CubeTensor<R> {
        let client = &rows.client;
        let matrices = (self.batch * self.h) as u32;
        let tiles = self.p.div_ceil(self.chunk) * self.n.div_ceil(self.chunk);
        chunk_states::launch::<R>(
            client,
            CubeCount::Static(self.chunks as u32, matrices, tiles as u32),
            self.units,
            self.address_type,
            rows.clone().into_tensor_arg(),
            columns.clone().into_tensor_arg(),
            self.inputs.a_log_blh.clone().into_tensor_arg(),
            scratch.states.clone().into_tensor_arg(),
            scratch.chunk_decays.clone().into_tensor_arg(),
            backwards,
            self.chunk,
            rows.dtype.into(),
        );
        let last = self.empty([self.batch, self.h, self.p, self.n], DType::F32);
        let elements = (self.p * self.n) as u32;
        pass_states::launch::<R>(
            client,
            CubeCount::Static(elements.div_ceil(UNITS), matrices, 1),
            CubeDim::new_1d(UNITS),
            self.address_type,
            scratch.states.clone().into_tensor_arg(),
            scratch.chunk_decays.clone().into_tensor_arg(),
            initial.map(CubeTensor::into_tensor_arg).into(),
            last.clone().into_tensor_arg(),
            backwards,
            true,
        );
        last
    }

    /// Steps 1 and 4, for an output of the shape and dtype of `like`.
    fn outputs(
        &self,
        query: &CubeTensor<R>,
        key: &CubeTensor<R>,
        value: &CubeTensor<R>,
        scratch: &Scratch<R>,
        like: &CubeTensor<R>,
        kind: Kind,
    ) -> CubeTensor<R> {
        let shape: [usize; 4] = like.meta.shape().dims();
        let [_, _, heads, features] = shape;
        let out = self.empty(shape, like.dtype);
        outputs::outputs::launch::<R>(
            &out.client,
            CubeCount::Static(
                self.chunks as u32,
                (self.batch * heads) as u32,
                features.div_ceil(self.chunk) as u32,
            ),
            self.units,
            self.address_type,
            query.clone().into_tensor_arg(),
            key.clone().into_tensor_arg(),
            value.clone().into_tensor_arg(),
            self.inputs.a_log_blh.clone().into_tensor_arg(),
            scratch.states.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            kind,
            self.chunk,
            like.dtype.into(),
        );
        out
    }

    fn decay_gradient(&self, dy_blhp: &CubeTensor<R>, scratch: &Scratch<R>) -> CubeTensor<R> {
        let da_log = self.empty([self.batch, self.l, self.h], DType::F32);
        decay_gradient::decay_gradient::launch::<R>(
            &da_log.client,
            CubeCount::Static(self.chunks as u32, (self.batch * self.h) as u32, 1),
            self.units,
            self.address_type,
            self.inputs.x_blhp.clone().into_tensor_arg(),
            self.inputs.b_blgn.clone().into_tensor_arg(),
            self.inputs.c_blgn.clone().into_tensor_arg(),
            dy_blhp.clone().into_tensor_arg(),
            self.inputs.a_log_blh.clone().into_tensor_arg(),
            scratch.states.clone().into_tensor_arg(),
            da_log.clone().into_tensor_arg(),
            self.chunk,
            dy_blhp.dtype.into(),
        );
        da_log
    }
}

/// The longest chunk whose tiles fit the device: 64 tokens want 34 KB of shared memory and 128 units,
/// 32 want 9 KB and 32, which WebGPU promises everywhere.
fn chunk_length<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    const LONG: usize = 64;
    let hardware = &client.properties().hardware;
    let bytes = 4 * (2 * LONG * (LONG + 1) + 2 * (LONG + 1));
    let units = tile::units(LONG);
    if hardware.max_shared_memory_size >= bytes && hardware.max_units_per_cube as usize >= units {
        LONG
    } else {
        LONG / 2
    }
}
