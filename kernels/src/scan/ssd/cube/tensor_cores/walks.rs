//! A scan cut into segments, and the launches of its walks.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::portable::pass_states;
use super::super::{Epilogue, Gradients, Inputs};
use super::backward::EpilogueParts;
use super::forward::{CHUNK, Emit, Plan};
use super::product::PLANE;
use super::segments::{Price, chunks_of_segment};
use super::{backward, copies_ahead, forward, staged, staged_backward};
use crate::cube::{address_type, empty};

/// Units of a cube that passes states.
const PASSING_UNITS: u32 = 128;

/// A scan cut into segments for its device.
pub(super) struct Walks<'a, R: CubeRuntime> {
    inputs: &'a Inputs<R>,
    batch: usize,
    l: usize,
    h: usize,
    g: usize,
    p: usize,
    n: usize,
    segments: usize,
    chunks_of_segment: usize,
    address_type: AddressType,
}

impl<'a, R: CubeRuntime> Walks<'a, R> {
    pub(super) fn new(inputs: &'a Inputs<R>, price: Price) -> Self {
        let x = &inputs.x_blhp;
        let [batch, l, h, p] = x.meta.shape().dims();
        let [_, _, g, n] = inputs.b_blgn.meta.shape().dims();
        let hardware = &x.client.properties().hardware;
        let multiprocessors = hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
        let chunks = l.div_ceil(CHUNK);
        let chunks_of_segment = chunks_of_segment(batch * h, chunks, multiprocessors, price);
        let elements = batch * h * (l + CHUNK) * p.max(n);
        let address_type =
            address_type(&[x, &inputs.b_blgn, &inputs.c_blgn]).max(AddressType::from_len(elements));
        Self {
            inputs,
            batch,
            l,
            h,
            g,
            p,
            n,
            segments: chunks.div_ceil(chunks_of_segment),
            chunks_of_segment,
            address_type,
        }
    }

    pub(super) fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> CubeTensor<R> {
        empty(&self.inputs.x_blhp, shape, dtype)
    }

    /// Room for the state that enters each chunk.
    pub(super) fn states_of_chunks(&self) -> CubeTensor<R> {
        let chunks = self.l.div_ceil(CHUNK);
        let shape = [self.batch * self.h, chunks, self.p, self.n];
        self.empty(shape, self.inputs.x_blhp.dtype)
    }

    fn cubes(&self) -> CubeCount {
        CubeCount::Static(self.segments as u32, (self.batch * self.h) as u32, 1)
    }

    /// The states that enter the segments, and, where there are several of them, the last one.
    pub(super) fn entering(&self) -> (Option<CubeTensor<R>>, Option<CubeTensor<R>>) {
        let initial = self.inputs.initial_bhpn.clone().map(into_contiguous);
        if self.segments == 1 {
            return (initial, None);
        }
        let Inputs { x_blhp, b_blgn, .. } = self.inputs;
        let (entering, last) = self.pass(x_blhp, b_blgn, initial, false);
        (Some(entering), Some(last))
    }

    /// From what each segment adds, backwards or forwards: what enters each, and what leaves the last.
    fn pass(
        &self,
        rows: &CubeTensor<R>,
        columns: &CubeTensor<R>,
        initial: Option<CubeTensor<R>>,
        backwards: bool,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let ends = self.states();
        let decays = self.empty([self.batch, self.h, self.segments], DType::F32);
        let nothing = self.empty([8], rows.dtype);
        let of = self.kind(Emit::Last, backwards, true);
        self.launch_walk(rows, columns, (&nothing, None), None, [&ends, &decays], of);
        let last = self.empty([self.batch, self.h, self.p, self.n], DType::F32);
        let elements = (self.p * self.n) as u32;
        let matrices = (self.batch * self.h) as u32;
        pass_states::launch::<R>(
            &last.client,
            CubeCount::Static(elements.div_ceil(PASSING_UNITS), matrices, 1),
            CubeDim::new_1d(PASSING_UNITS),
            self.address_type,
            ends.clone().into_tensor_arg(),
            decays.into_tensor_arg(),
            initial.map(CubeTensor::into_tensor_arg).into(),
            last.clone().into_tensor_arg(),
            backwards,
            false,
        );
        (ends, last)
    }

    /// Room for one f32 state a segment.
    fn states(&self) -> CubeTensor<R> {
        self.empty(
            [self.batch, self.h, self.segments * self.p, self.n],
            DType::F32,
        )
    }

    fn kind(&self, emit: Emit, backwards: bool, ends: bool) -> Plan {
        // A walk that computes only states does not apply the epilogue.
        let passes = emit == Emit::Outputs || backwards;
        Plan {
            emit,
            backwards,
            ends,
            gate: passes && self.inputs.epilogue.z_blc.is_some(),
            p: self.p,
            n: self.n,
        }
    }

    /// Walks forwards into `out`, to the last state if there is one segment only. A walk for outputs also leaves the
    /// states that enter the chunks in `states`.
    pub(super) fn walk(
        &self,
        emit: Emit,
        out: &CubeTensor<R>,
        states: Option<&CubeTensor<R>>,
        entering: Option<CubeTensor<R>>,
    ) -> CubeTensor<R> {
        let last = self.empty([self.batch, self.h, self.p, self.n], DType::F32);
        let decays = self.empty([self.batch, self.h, 1], DType::F32);
        let Inputs { x_blhp, b_blgn, .. } = self.inputs;
        let of = self.kind(emit, false, self.segments == 1);
        self.launch_walk(
            x_blhp,
            b_blgn,
            (out, states),
            entering,
            [&last, &decays],
            of,
        );
        last
    }

    fn launch_walk(
        &self,
        rows: &CubeTensor<R>,
        columns: &CubeTensor<R>,
        (out, states): (&CubeTensor<R>, Option<&CubeTensor<R>>),
        entering: Option<CubeTensor<R>>,
        [ends, decays]: [&CubeTensor<R>; 2],
        of: Plan,
    ) {
        let Epilogue {
            d_h,
            z_blc,
            z_bias_c,
        } = self.inputs.epilogue.clone();
        // Only one with a gate reads it.
        let (z_blc, z_bias_c) = if of.gate {
            (z_blc, z_bias_c)
        } else {
            (None, None)
        };
        let given = [
            d_h.is_some(),
            z_blc.is_some(),
            z_bias_c.is_some(),
            entering.is_some(),
            states.is_some(),
        ];
        macro_rules! launch {
            ($walk:ident, $units:expr) => {
                $walk::walk::launch_unchecked::<R>(
                    &rows.client,
                    self.cubes(),
                    CubeDim::new_1d($units as u32),
                    self.address_type,
                    rows.clone().into_tensor_arg(),
                    columns.clone().into_tensor_arg(),
                    self.inputs.c_blgn.clone().into_tensor_arg(),
                    self.inputs.a_log_blh.clone().into_tensor_arg(),
                    d_h.map(CubeTensor::into_tensor_arg).into(),
                    z_blc.map(CubeTensor::into_tensor_arg).into(),
                    z_bias_c.map(CubeTensor::into_tensor_arg).into(),
                    entering.map(CubeTensor::into_tensor_arg).into(),
                    out.clone().into_tensor_arg(),
                    states.map(|states| states.clone().into_tensor_arg()).into(),
                    ends.clone().into_tensor_arg(),
                    decays.clone().into_tensor_arg(),
                    self.chunks_of_segment,
                    of,
                    given,
                    rows.dtype.into(),
                )
            };
        }
        // SAFETY: every index is bound by the shapes that `take` and `ssd_scan` have checked, and by the
        // number of tokens.
        unsafe {
            if copies_ahead(self.inputs, of.backwards, of.gate) {
                launch!(staged, staged::UNITS);
            } else {
                launch!(forward, forward::PLANES * PLANE);
            }
        }
    }

    /// Whether the walk back copies its inputs to shared memory ahead ([`staged_backward`]), where two cubes fit a
    /// multiprocessor nevertheless: without a gate.
    fn copies_ahead_back(&self, parts: EpilogueParts) -> bool {
        let properties = self.inputs.x_blhp.client.properties();
        let shared = staged_backward::shared_memory(self.p, self.n);
        properties.features.copy_async
            && properties.hardware.max_shared_memory_size >= shared
            && staged_backward::takes(self.p, self.n)
            && !parts.gate
    }

    /// All gradients, from the states that enter the chunks.
    pub(super) fn walk_back(&self, dy: &CubeTensor<R>, states: CubeTensor<R>) -> Gradients<R> {
        let Inputs {
            x_blhp,
            b_blgn,
            c_blgn,
            a_log_blh,
            ..
        } = self.inputs;
        let dtype = x_blhp.dtype;
        let (leaving, initial) = match self.segments {
            1 => (None, None),
            _ => {
                let (leaving, initial) = self.pass(dy, c_blgn, None, true);
                (Some(leaving), Some(initial))
            }
        };
        // Sums over heads are added up in f32.
        let sum_dtype = if self.g == self.h { dtype } else { DType::F32 };
        let heads = [self.batch, self.l, self.h, self.n];
        let dx = self.empty([self.batch, self.l, self.h, self.p], dtype);
        let db = self.empty(heads, sum_dtype);
        let dc = self.empty(heads, sum_dtype);
        let da_log = self.empty([self.batch, self.l, self.h], DType::F32);
        let ends = self.states();
        let Epilogue {
            d_h,
            z_blc,
            z_bias_c,
        } = self.inputs.epilogue.clone();
        let parts = EpilogueParts {
            skip: d_h.is_some(),
            gate: z_blc.is_some(),
        };
        let dz = if parts.gate {
            self.empty([self.batch, self.l, self.h, self.p], dtype)
        } else {
            self.empty([8], dtype)
        };
        let shares = self.empty([self.batch, self.h, self.segments, self.p + 1], DType::F32);
        let given = [
            d_h.is_some(),
            z_blc.is_some(),
            z_bias_c.is_some(),
            leaving.is_some(),
        ];
        // SAFETY: as in `launch_walk`.
        unsafe {
            if self.copies_ahead_back(parts) {
                let given = [d_h.is_some(), leaving.is_some()];
                staged_backward::walk_back::launch_unchecked::<R>(
                    &dx.client,
                    self.cubes(),
                    CubeDim::new_1d(staged_backward::UNITS as u32),
                    self.address_type,
                    x_blhp.clone().into_tensor_arg(),
                    b_blgn.clone().into_tensor_arg(),
                    c_blgn.clone().into_tensor_arg(),
                    dy.clone().into_tensor_arg(),
                    a_log_blh.clone().into_tensor_arg(),
                    d_h.map(CubeTensor::into_tensor_arg).into(),
                    states.into_tensor_arg(),
                    leaving.map(CubeTensor::into_tensor_arg).into(),
                    dx.clone().into_tensor_arg(),
                    db.clone().into_tensor_arg(),
                    dc.clone().into_tensor_arg(),
                    da_log.clone().into_tensor_arg(),
                    shares.clone().into_tensor_arg(),
                    ends.clone().into_tensor_arg(),
                    self.chunks_of_segment,
                    self.p,
                    self.n,
                    parts,
                    given,
                    dtype.into(),
                    sum_dtype.into(),
                );
            } else {
                backward::walk_back::launch_unchecked::<R>(
                    &dx.client,
                    self.cubes(),
                    CubeDim::new_1d((backward::PLANES * PLANE) as u32),
                    self.address_type,
                    x_blhp.clone().into_tensor_arg(),
                    b_blgn.clone().into_tensor_arg(),
                    c_blgn.clone().into_tensor_arg(),
                    dy.clone().into_tensor_arg(),
                    a_log_blh.clone().into_tensor_arg(),
                    d_h.map(CubeTensor::into_tensor_arg).into(),
                    z_blc.map(CubeTensor::into_tensor_arg).into(),
                    z_bias_c.map(CubeTensor::into_tensor_arg).into(),
                    states.into_tensor_arg(),
                    leaving.map(CubeTensor::into_tensor_arg).into(),
                    dx.clone().into_tensor_arg(),
                    db.clone().into_tensor_arg(),
                    dc.clone().into_tensor_arg(),
                    da_log.clone().into_tensor_arg(),
                    dz.clone().into_tensor_arg(),
                    shares.clone().into_tensor_arg(),
                    ends.clone().into_tensor_arg(),
                    self.chunks_of_segment,
                    self.p,
                    self.n,
                    parts,
                    given,
                    dtype.into(),
                    sum_dtype.into(),
                );
            }
        }
        Gradients {
            x_blhp: dx,
            b_blgn: db,
            c_blgn: dc,
            a_log_blh: da_log,
            // One segment's end is the whole's.
            initial_bhpn: initial.unwrap_or(ends),
            z_blhp: parts.gate.then_some(dz),
            shares_bhsf: Some(shares),
        }
    }
}
