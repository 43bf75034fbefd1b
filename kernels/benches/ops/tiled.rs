//! The product in tiles, at the sizes of Phi-1.5's layers and SmolLM2's, on every CubeCL backend of this build that has
//! a device: beside the product that layers take there, and Burn's matmul. A table of its own.

use burn::tensor::{DType, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use kernels::KernelBackend;
use kernels::dense::linear::{Linear, tiled};
use kernels::runtime::Backend;

use crate::clock::{Clock, random};

/// Tokens, and the sizes of a layer's input and output.
const LAYERS: [[usize; 3]; 14] = [
    [128, 2048, 2048],
    [128, 2048, 8192],
    [128, 8192, 2048],
    [2048, 2048, 2048],
    [2048, 2048, 8192],
    [2048, 8192, 2048],
    [2048, 2048, 51200],
    [8192, 2048, 2048],
    [8192, 2048, 8192],
    [8192, 8192, 2048],
    [2048, 576, 576],
    [2048, 576, 1536],
    [2048, 1536, 576],
    [2048, 576, 49152],
];

/// Operations beyond which Burn's matmul is not waited for.
const TOO_LONG: usize = 100_000_000_000;

/// The tables.
pub fn print() {
    #[cfg(feature = "wgpu")]
    if Backend::Wgpu.probe().is_ok() {
        table::<cubecl::wgpu::WgpuRuntime, f32, i32, u32>("wgpu");
    }
    #[cfg(feature = "cuda")]
    if Backend::Cuda.probe().is_ok() {
        table::<cubecl::cuda::CudaRuntime, f32, i32, u8>("cuda");
    }
}

type On<R, F, I, T> = CubeBackend<R, F, I, T>;

fn table<R, F, I, T>(backend: &str)
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
    On<R, F, I, T>: KernelBackend,
{
    let clock = Clock::<On<R, F, I, T>>::new(1 << 27, true);
    println!("\n{backend}: copy {:.1} GB/s\n", 1e-9 * clock.bandwidth());
    println!(
        "| product | dtype | in tiles, ms | TFLOP/s | % of copy bandwidth | the layer's own, ms | TFLOP/s | Burn's, ms \
         | TFLOP/s |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|");
    let device = Default::default();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if <On<R, F, I, T> as burn::tensor::backend::Backend>::supports_dtype(&device, dtype) {
            for sizes in LAYERS {
                layer(&clock, sizes, dtype);
            }
        }
    }
}

/// A layer's forward pass, and for many tokens its gradients.
fn layer<R, F, I, T>(clock: &Clock<On<R, F, I, T>>, [t, i, o]: [usize; 3], dtype: DType)
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
    On<R, F, I, T>: KernelBackend,
{
    let x = [(); 2].map(|()| random::<On<R, F, I, T>, 2>([t, i], dtype));
    let dy = [(); 2].map(|()| random::<On<R, F, I, T>, 2>([t, o], dtype));
    let weight = random::<On<R, F, I, T>, 2>([o, i], dtype);
    let name = |what: &str| format!("{t} x {i} to {o}, {what}");
    let (bytes, operations) = ((t * i + i * o + t * o) * dtype.size(), 2 * t * i * o);
    let row = |name: String, factors: &dyn Fn(usize) -> [Tensor<_, 2>; 2], own: f64| {
        let tiles = clock.time(|round| {
            let [a, b] = factors(round);
            tiled::product(a, b)
        });
        let burn = (operations <= TOO_LONG).then(|| {
            clock.time(|round| {
                let [a, b] = factors(round);
                a.matmul(b.transpose())
            })
        });
        let ms = |seconds: f64| format!("{:.4}", 1e3 * seconds);
        let rate = |seconds: f64| format!("{:.2}", 1e-12 * operations as f64 / seconds);
        println!(
            "| {name:32} | {dtype:?} | {:>9} | {:>7} | {:5.1} | {:>9} | {:>7} | {:>9} | {:>7} |",
            ms(tiles),
            rate(tiles),
            100.0 * bytes as f64 / clock.bandwidth() / tiles,
            ms(own),
            rate(own),
            burn.map_or("-".into(), ms),
            burn.map_or("-".into(), rate),
        );
    };
    let own =
        clock.time(|round| Linear::linear_forward(x[round % 2].clone(), weight.clone(), None));
    let forward = |round: usize| [x[round % 2].clone(), weight.clone()];
    row(name("forward"), &forward, own);
    if t < 1024 || o > 10_000 {
        return;
    }
    let backward = |wanted: [bool; 3]| {
        clock.time(|round| {
            let (x, dy) = (x[round % 2].clone(), dy[round % 2].clone());
            Linear::linear_backward(x, weight.clone(), dy, wanted)
        })
    };
    let own = backward([true, false, false]);
    let dx = |round: usize| [dy[round % 2].clone(), weight.clone().transpose()];
    row(name("dx"), &dx, own);
    let own = backward([false, true, false]);
    let dweight = |round: usize| {
        let (x, dy) = (x[round % 2].clone(), dy[round % 2].clone());
        [dy.transpose(), x.transpose()]
    };
    row(name("dW"), &dweight, own);
}
