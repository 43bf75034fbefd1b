//! Measures the time that the device needs for a call.

use std::time::Instant;

use burn::tensor::{DType, Distribution, Tensor};
use kernels::KernelBackend;
use kernels::runtime::synchronise;

const ROUNDS: usize = 7;

/// The host's time for a call, in seconds, that is hidden by the copies.
const HOST: f64 = 150e-6;

/// A clock that is read between two synchronisations. On a GPU, a round of calls is queued behind copies, whose time is
/// subtracted. While the copies run, the host queues all calls of the round, so that the host's time for a call is not
/// measured, as it is hidden in a long queue of other work.
pub struct Clock<B: KernelBackend> {
    device: B::Device,
    long: Tensor<B, 1>,
    /// Seconds that a copy of `long` takes.
    copy: f64,
    queue: bool,
}

impl<B: KernelBackend> Clock<B> {
    /// Measures a copy of `elements` numbers.
    pub fn new(elements: usize, queue: bool) -> Self {
        let device = B::Device::default();
        let long = random([elements], DType::F32);
        let mut clock = Self {
            device,
            long,
            copy: 0.0,
            queue: false,
        };
        let long = clock.long.clone();
        clock.copy = clock.time(|_| long.clone().add_scalar(1.0));
        clock.queue = queue;
        clock
    }

    /// Bytes a second, reading and writing.
    pub fn bandwidth(&self) -> f64 {
        8.0 * self.long.dims()[0] as f64 / self.copy
    }

    /// Seconds of a call: the median over rounds. Calls are numbered, to take inputs in turn.
    pub fn time<T>(&self, mut call: impl FnMut(usize) -> T) -> f64 {
        for i in 0..2 {
            drop(call(i));
        }
        self.wait();
        let begun = Instant::now();
        drop(call(0));
        self.wait();
        // So many that a round's synchronisation does not show.
        let calls = (0.02 / begun.elapsed().as_secs_f64()).clamp(1.0, 40.0) as usize;
        let copies = if self.queue {
            (calls as f64 * HOST / self.copy).ceil() as usize
        } else {
            0
        };
        let queued = median(|| self.round(copies, 0, &mut call));
        let whole = median(|| self.round(copies, calls, &mut call));
        (whole - queued) / calls as f64
    }

    fn round<T>(&self, copies: usize, calls: usize, call: &mut impl FnMut(usize) -> T) -> f64 {
        let begun = Instant::now();
        for _ in 0..copies {
            drop(self.long.clone().add_scalar(1.0));
        }
        for i in 0..calls {
            drop(call(i));
        }
        self.wait();
        begun.elapsed().as_secs_f64()
    }

    fn wait(&self) {
        synchronise::<B>(&self.device).expect("the device works");
    }
}

fn median(mut seconds: impl FnMut() -> f64) -> f64 {
    let mut all = [(); ROUNDS].map(|()| seconds());
    all.sort_by(f64::total_cmp);
    all[ROUNDS / 2]
}

/// Normal numbers.
pub fn random<B: KernelBackend, const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let normal = Distribution::Normal(0.0, 1.0);
    Tensor::<B, D>::random(shape, normal, &Default::default()).cast(dtype)
}
