//! Launches that fail.

use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;
use cubecl::prelude::*;
use kernels::KernelBackend;
use kernels::runtime::{Backend, BackendError, Work, synchronise};

use crate::support::*;

/// A kernel that cannot be expanded: this panics on the device's thread.
#[cube(launch)]
fn broken_kernel(output: &mut Array<f32>) {
    if UNIT_POS == 0 {
        output[0] = comptime!(not_to_be_had());
    }
}

fn not_to_be_had() -> f32 {
    panic!("there is no such number")
}

/// Asks for more shared memory than any device has.
#[cube(launch)]
fn greedy_kernel(output: &mut Array<f32>) {
    let mut shared = SharedMemory::<f32>::new(1usize << 26);
    shared[UNIT_POS as usize] = output[UNIT_POS as usize];
    sync_cube();
    output[UNIT_POS as usize] = shared[UNIT_POS as usize + 1];
}

/// A failure is reported only once, to the first caller that asks, so only one test may run at a time.
static TURN: Mutex<()> = Mutex::new(());

fn launch(greedy: bool) {
    let x = Tensor::<Cube, 1>::zeros([2], &Default::default());
    let x = x.into_primitive().tensor();
    let client = x.client.clone();
    let (cubes, units) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(1));
    if greedy {
        greedy_kernel::launch(&client, cubes, units, x.into_array_arg());
    } else {
        broken_kernel::launch(&client, cubes, units, x.into_array_arg());
    }
}

#[test]
fn a_failed_launch_is_an_error() {
    with_device(|| {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Default::default();
        synchronise::<Cube>(&device).expect("nothing has failed yet");

        launch(false);
        let error = synchronise::<Cube>(&device).expect_err("a panic in queued work");
        assert!(error.to_string().contains("no such number"), "{error}");

        launch(true);
        let error = synchronise::<Cube>(&device).expect_err("a launch beyond the limits");
        assert!(matches!(error, BackendError::Failed { .. }), "{error}");

        synchronise::<Cube>(&device).expect("an error is reported once");
        let one = Tensor::<Cube, 1>::ones([1], &device);
        assert_eq!(one.into_scalar(), 1.0, "the device works on");
    });
}

#[test]
fn dispatch_fails_with_its_work() {
    struct Broken;

    impl Work for Broken {
        type Output = ();

        fn run<B: KernelBackend>(self, _device: B::Device) {
            launch(false);
        }
    }

    with_device(|| {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = Backend::preferred().expect("a CubeCL backend is in this build");
        let error = backend.dispatch(Broken).expect_err("its work failed");
        assert!(error.to_string().contains("no such number"), "{error}");
    });
}
