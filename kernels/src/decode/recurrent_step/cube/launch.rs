//! The launches.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::kernels::{roll_kernel, step_kernel};
use super::layout::{Layout, UNITS};
use crate::cube::launch_cache::{ARRAY, Described, Launcher, array, launch, optional, settings};
use crate::cube::output_pool::output;
use crate::cube::recording;
use crate::cube::{address_type, own, vector_size};
use crate::scan::causal_conv::Activation;

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
