//! The launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::variant::Variant;
use super::{Operands, STATS, SUMS, UNITS, decay, mma, normaliser, tiles};
use crate::cube::rows::view;
use crate::cube::{address_type, empty, vector_size};

/// The gradients to the student's parts.
pub(super) struct Gradients<R: CubeRuntime> {
    pub a_log: CubeTensor<R>,
    pub b: CubeTensor<R>,
    pub c: CubeTensor<R>,
    pub d: CubeTensor<R>,
}

/// Arrays and not tensors: a tensor's shape would be written to the device for every launch.
fn arg<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    x.clone().into_array_arg()
}

/// What every launch needs to know.
struct Plan<R: CubeRuntime> {
    client: ComputeClient<R>,
    width: AddressType,
    /// `[b, l, h]`.
    sizes: [usize; 3],
    n: usize,
    p: usize,
    variant: Variant,
    /// Of the scores before the softmax.
    scale: f32,
}

impl<R: CubeRuntime> Plan<R> {
    /// The plan, and the inputs as its kernels read them.
    fn of(mut inputs: Operands<R>) -> (Self, Operands<R>) {
        let variant = Variant::of(&inputs);
        if let Variant::TensorCores { .. } = variant {
            inputs = inputs.in_vectors();
        }
        let Operands { b, c, q, k, .. } = &inputs;
        let [_, _, _, n] = b.meta.shape().dims();
        let [_, _, _, p] = q.meta.shape().dims();
        let plan = Self {
            client: b.client.clone(),
            width: address_type(&[b, c, q, k]),
            sizes: inputs.a_log.meta.shape().dims(),
            n,
            p,
            variant,
            scale: 1.0 / (p as f32).sqrt(),
        };
        (plan, inputs)
    }

    fn heads(&self) -> usize {
        self.sizes[0] * self.sizes[2]
    }

    /// One cube a block of rows or columns, head and batch. On tensor cores, cubes of all heads come before those of the
    /// next block, which has less to do.
    fn blocks(&self) -> CubeCount {
        let [b, l, h] = self.sizes.map(|size| size as u32);
        let blocks = l.div_ceil(self.variant.rows() as u32);
        match self.variant {
            Variant::Portable { .. } => CubeCount::Static(blocks, h, b),
            Variant::TensorCores { .. } => CubeCount::Static(h, b, blocks),
        }
    }

    fn line(&self) -> CubeDim {
        CubeDim::new_1d(UNITS as u32)
    }

    fn each_head(&self) -> CubeCount {
        CubeCount::Static(self.heads() as u32, 1, 1)
    }

    /// The running sums of the log-decays, `D` and the softmax's denominators: `[b * h, STATS, l]`.
    fn statistics(&self, inputs: &Operands<R>) -> CubeTensor<R> {
        let Operands { a_log, d, q, k, .. } = inputs;
        let starts = inputs.starts.as_ref().map(arg).into();
        let l = self.sizes[1];
        let stats = empty(a_log, [self.heads(), STATS, l], DType::F32);
        // SAFETY: a unit reads and writes its own share of the `l` steps of its cube's head.
        unsafe {
            decay::statistics_kernel::launch_unchecked::<R>(
                &self.client,
                self.each_head(),
                self.line(),
                self.width,
                arg(a_log),
                arg(d),
                arg(&stats),
                view(a_log),
                a_log.dtype.into(),
                d.dtype.into(),
            );
        }
        let (cubes, cube) = (self.blocks(), self.variant.cube());
        // SAFETY: rows and columns beyond the last are neither read nor written.
        match self.variant {
            Variant::Portable { r } => unsafe {
                normaliser::portable_kernel::launch_unchecked::<R>(
                    &self.client,
                    cubes,
                    cube,
                    self.width,
                    arg(q),
                    arg(k),
                    starts,
                    arg(&stats),
                    self.scale,
                    view(q),
                    view(k),
                    self.p,
                    r,
                    q.dtype.into(),
                );
            },
            Variant::TensorCores { down } => unsafe {
                mma::normaliser_kernel::launch_unchecked::<R>(
                    &self.client,
                    cubes,
                    cube,
                    self.width,
                    arg(q),
                    arg(k),
                    starts,
                    arg(&stats),
                    self.scale * mma::SHARE,
                    view(q),
                    view(k),
                    self.p,
                    down,
                    q.dtype.into(),
                );
            },
        }
        stats
    }

    /// A pass over the rows or, with `columns`, over the columns. Writes its slots of `sums`, and
    /// returns the gradient to C or B but for the heads' factors, `[b, h, l, n]`, if it is wanted.
    fn pass(
        &self,
        inputs: &Operands<R>,
        stats: &CubeTensor<R>,
        sums: &CubeTensor<R>,
        columns: bool,
        gradients: bool,
    ) -> CubeTensor<R> {
        let Operands { b, c, q, k, .. } = inputs;
        let starts = inputs.starts.as_ref().map(arg).into();
        let [batch, l, h] = self.sizes;
        let shape = if gradients {
            [batch, h, l, self.n]
        } else {
            [1; 4]
        };
        let gradient = empty(b, shape, DType::F32);
        let [own_student, other_student, own_teacher, other_teacher] =
            if columns { [b, c, k, q] } else { [c, b, q, k] };
        let (cubes, cube) = (self.blocks(), self.variant.cube());
        // SAFETY: as above; the gradient is written only if it is there.
        match self.variant {
            Variant::Portable { r } => unsafe {
                tiles::pass_kernel::launch_unchecked::<R>(
                    &self.client,
                    cubes,
                    cube,
                    self.width,
                    arg(own_student),
                    arg(other_student),
                    arg(own_teacher),
                    arg(other_teacher),
                    arg(stats),
                    starts,
                    arg(&gradient),
                    arg(sums),
                    self.scale,
                    view(own_student),
                    view(other_student),
                    view(own_teacher),
                    view(other_teacher),
                    self.n,
                    self.p,
                    r,
                    columns,
                    gradients,
                    b.dtype.into(),
                    q.dtype.into(),
                );
            },
            Variant::TensorCores { down } => unsafe {
                mma::pass_kernel::launch_unchecked::<R>(
                    &self.client,
                    cubes,
                    cube,
                    self.width,
                    arg(own_student),
                    arg(other_student),
                    arg(own_teacher),
                    arg(other_teacher),
                    arg(stats),
                    starts,
                    arg(&gradient),
                    arg(sums),
                    self.scale * mma::SHARE,
                    view(own_student),
                    view(other_student),
                    view(own_teacher),
                    view(other_teacher),
                    self.n,
                    self.p,
                    down,
                    columns,
                    gradients,
                    b.dtype.into(),
                );
            },
        }
        gradient
    }

    /// From the sums: what is known of each head, the loss, and the gradients to a_log and D.
    fn heads_and_loss(
        &self,
        inputs: &Operands<R>,
        sums: &CubeTensor<R>,
        gradients: bool,
    ) -> (CubeTensor<R>, CubeTensor<R>, [CubeTensor<R>; 2]) {
        let Operands { a_log, d, .. } = inputs;
        let heads = empty(a_log, [decay::HEADS, self.heads()], DType::F32);
        let loss = empty(a_log, [1], DType::F32);
        let shape = if gradients { self.sizes } else { [1; 3] };
        let da_log = empty(a_log, shape, a_log.dtype);
        let dd = empty(d, [self.sizes[2]], d.dtype);
        // SAFETY: a unit reads and writes its own share of the `l` steps of its cube's head.
        unsafe {
            decay::head_kernel::launch_unchecked::<R>(
                &self.client,
                self.each_head(),
                self.line(),
                self.width,
                arg(a_log),
                arg(sums),
                arg(&heads),
                arg(&da_log),
                view(a_log),
                gradients,
                a_log.dtype.into(),
            );
        }
        // SAFETY: all indices are below the number of heads.
        unsafe {
            decay::loss_kernel::launch_unchecked::<R>(
                &self.client,
                CubeCount::Static(1, 1, 1),
                self.line(),
                arg(&heads),
                arg(&loss),
                arg(&dd),
                self.heads(),
                self.sizes[2],
                d.dtype.into(),
            );
        }
        (heads, loss, [da_log, dd])
    }

    /// `[b, h, l, n]` to the gradient to `like [b, l, g, n]`.
    fn groups(
        &self,
        per_head: CubeTensor<R>,
        heads: &CubeTensor<R>,
        like: &CubeTensor<R>,
    ) -> CubeTensor<R> {
        let shape: [usize; 4] = like.meta.shape().dims();
        let gradient = empty(like, shape, like.dtype);
        let vector = vector_size(&[&per_head, &gradient]);
        let vectors = shape.iter().product::<usize>() / vector;
        let cubes = calculate_cube_count_elemwise(&self.client, vectors, self.line());
        // SAFETY: units beyond the last vector leave at once.
        unsafe {
            decay::group_kernel::launch_unchecked::<R>(
                &self.client,
                cubes,
                self.line(),
                address_type(&[&per_head, &gradient]),
                vector,
                arg(&per_head),
                arg(heads),
                arg(&gradient),
                self.heads(),
                self.sizes[2],
                shape[1],
                shape[2],
                shape[3] / vector,
                like.dtype.into(),
            );
        }
        gradient
    }

    fn sums(&self, like: &CubeTensor<R>) -> CubeTensor<R> {
        empty(like, [self.heads(), SUMS, self.sizes[1]], DType::F32)
    }
}

pub(super) fn forward<R: CubeRuntime>(inputs: Operands<R>) -> CubeTensor<R> {
    let (plan, inputs) = Plan::of(inputs);
    let stats = plan.statistics(&inputs);
    let sums = plan.sums(&inputs.b);
    plan.pass(&inputs, &stats, &sums, false, false);
    plan.heads_and_loss(&inputs, &sums, false).1
}

pub(super) fn with_gradients<R: CubeRuntime>(inputs: Operands<R>) -> (CubeTensor<R>, Gradients<R>) {
    let (plan, inputs) = Plan::of(inputs);
    let stats = plan.statistics(&inputs);
    let sums = plan.sums(&inputs.b);
    let dc = plan.pass(&inputs, &stats, &sums, false, true);
    let db = plan.pass(&inputs, &stats, &sums, true, true);
    let (heads, loss, [a_log, d]) = plan.heads_and_loss(&inputs, &sums, true);
    let gradients = Gradients {
        a_log,
        b: plan.groups(db, &heads, &inputs.b),
        c: plan.groups(dc, &heads, &inputs.c),
        d,
    };
    (loss, gradients)
}
