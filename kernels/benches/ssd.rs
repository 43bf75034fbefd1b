//! Times the scan on a CubeCL device, next to the time that its traffic takes at least.
//!
//! ```text
//! cargo bench -p kernels --features cuda --bench ssd
//! ```
//!
//! The floor is every input read once and every output written once, at the bandwidth that a copy
//! measures. Medians of several runs, each between two synchronisations, over two sets of inputs.

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn main() {
    println!("built without cuda and wgpu: nothing to time");
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn main() {
    device::main();
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device {
    use std::time::Instant;

    use burn::tensor::backend::Backend;
    use burn::tensor::{DType, Distribution, Tensor};
    use kernels::KernelBackend;
    #[cfg(feature = "cuda")]
    use kernels::backends::Cuda as Device;
    #[cfg(not(feature = "cuda"))]
    use kernels::backends::Wgpu as Device;
    use kernels::ssd::reference;

    fn random<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<Device, D> {
        let device = Default::default();
        Tensor::<Device, D>::random(shape, Distribution::Normal(0.0, 1.0), &device).cast(dtype)
    }

    /// The median time of one call in milliseconds.
    fn time<T>(mut call: impl FnMut(usize) -> T) -> f64 {
        const RUNS: usize = 7;
        let device = Default::default();
        let sync = || Device::sync(&device).expect("the device works");
        for i in 0..3 {
            call(i);
        }
        sync();
        let begun = Instant::now();
        call(0);
        sync();
        // Enough calls in a run that its synchronisation does not show.
        let calls = (0.02 / begun.elapsed().as_secs_f64()).clamp(1.0, 20.0) as usize;
        let mut times: Vec<_> = (0..RUNS)
            .map(|_| {
                let begun = Instant::now();
                for i in 0..calls {
                    call(i);
                }
                sync();
                begun.elapsed().as_secs_f64() * 1e3 / calls as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[RUNS / 2]
    }

    struct Inputs {
        x: Tensor<Device, 4>,
        a_log: Tensor<Device, 3>,
        b: Tensor<Device, 4>,
        c: Tensor<Device, 4>,
        dy: Tensor<Device, 4>,
    }

    pub fn main() {
        // A software adapter takes no buffer of 256 MB.
        let copied: usize = if cfg!(feature = "cuda") {
            64 << 20
        } else {
            4 << 20
        };
        let wide = [0, 1].map(|_| random([copied], DType::F32));
        let ms = time(|i| wide[i % 2].clone() * 1.5);
        let bandwidth = 8.0 * copied as f64 / ms / 1e6;
        drop(wide);
        println!("copy: {bandwidth:.0} GB/s");
        println!("b l h g p n | dtype | fwd ms | fwd+bwd ms | share of floor fwd, fwd+bwd");
        let shapes: &[([usize; 6], DType)] = if cfg!(feature = "cuda") {
            &[
                ([8, 2048, 32, 32, 64, 64], DType::BF16),
                ([1, 2048, 32, 32, 64, 64], DType::BF16),
                ([1, 8192, 32, 32, 64, 64], DType::BF16),
                ([1, 32768, 32, 32, 64, 64], DType::BF16),
                ([1, 131072, 32, 32, 64, 64], DType::BF16),
                ([8, 2048, 32, 4, 64, 64], DType::BF16),
                ([8, 2048, 16, 16, 128, 128], DType::BF16),
                ([8, 2048, 32, 32, 64, 16], DType::F16),
                ([8, 2048, 32, 32, 64, 64], DType::F32),
            ]
        } else {
            &[
                ([1, 256, 4, 4, 64, 64], DType::F32),
                ([1, 1024, 4, 4, 64, 64], DType::F32),
            ]
        };
        for (shape, dtype) in shapes {
            row(*shape, *dtype, bandwidth);
        }
    }

    fn row([batch, l, h, g, p, n]: [usize; 6], dtype: DType, bandwidth: f64) {
        let inputs = [0, 1].map(|_| Inputs {
            x: random([batch, l, h, p], dtype),
            a_log: random([batch, l, h], DType::F32),
            b: random([batch, l, g, n], dtype),
            c: random([batch, l, g, n], dtype),
            dy: random([batch, l, h, p], dtype),
        });
        let forward = time(|i| {
            let Inputs { x, a_log, b, c, .. } = &inputs[i % 2];
            let (x, a_log, b, c) = (x.clone(), a_log.clone(), b.clone(), c.clone());
            Device::ssd_scan_forward(x, a_log, b, c, None, 64)
        });
        let backward = time(|i| {
            let Inputs { x, a_log, b, c, dy } = &inputs[i % 2];
            let (x, a_log, b, c) = (x.clone(), a_log.clone(), b.clone(), c.clone());
            Device::ssd_scan_backward(x, a_log, b, c, None, dy.clone(), 64)
        });
        let tokens = (batch * l) as f64;
        let size = dtype.size() as f64;
        let (wide, narrow) = (
            tokens * (h * p) as f64 * size,
            tokens * (g * n) as f64 * size,
        );
        let decays = tokens * h as f64 * 4.0;
        let forward_bytes = 2.0 * wide + 2.0 * narrow + decays;
        let both_bytes = forward_bytes + 3.0 * wide + 4.0 * narrow + 2.0 * decays;
        let floor = |bytes: f64| bytes / bandwidth / 1e6;
        println!(
            "{batch} {l} {h} {g} {p} {n} | {dtype:?} | {forward:.3} | {:.3} | {:.2}, {:.2}",
            forward + backward,
            floor(forward_bytes) / forward,
            floor(both_bytes) / (forward + backward),
        );
        if cfg!(not(feature = "cuda")) {
            let composed = time(|_| {
                let Inputs { x, a_log, b, c, .. } = &inputs[0];
                let (x, a_log, b, c) = (x.clone(), a_log.clone(), b.clone(), c.clone());
                reference::forward(x, a_log, b, c, None, 64)
            });
            println!("  in tensor operations: {composed:.3} forward");
        }
    }
}
