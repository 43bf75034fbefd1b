//! The table and its rows.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::runtime::{Backend, Work, keep_kernels, report_failures};

use crate::clock::Clock;
use crate::{
    attention, causal_conv, layers, linear, losses, mixing_matrices, pass, projections,
    recurrent_step, scan,
};

/// What a row is about.
pub struct Row {
    pub op: &'static str,
    pub shape: String,
    pub dtype: DType,
    /// Seconds forward, and forward and backward.
    pub seconds: [Option<f64>; 2],
    /// Bytes that must be moved in the last of these.
    pub bytes: usize,
    /// Operations of matrix products in the last of these.
    pub operations: usize,
    /// The same in tensor operations.
    pub composed: [Option<f64>; 2],
}

/// How the rows are made.
pub struct Bench<B: KernelBackend> {
    pub clock: Clock<B>,
    /// Small shapes, and tensor operations beside the op.
    pub small: bool,
    pub dtypes: Vec<DType>,
    words: Vec<String>,
}

impl<B: KernelBackend> Bench<B> {
    /// Whether the command line asks for rows of `op`.
    pub fn wants(&self, op: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| word == op)
    }

    pub fn row(&self, row: Row) {
        let ms = |seconds: Option<f64>| seconds.map_or("-".into(), |s| format!("{:.4}", 1e3 * s));
        let [forward, both] = row.seconds.map(ms);
        let [composed_forward, composed_both] = row.composed.map(ms);
        let [first, last] = row.seconds;
        let seconds = last.or(first).expect("a row has a time");
        let share = 100.0 * row.bytes as f64 / self.clock.bandwidth() / seconds;
        let rate = match row.operations {
            0 => "-".into(),
            operations => format!("{:.2}", 1e-12 * operations as f64 / seconds),
        };
        println!(
            "| {:24} | {:32} | {:?} | {forward:>9} | {both:>9} | {share:5.1} | {rate:>6} | \
             {composed_forward:>9} | {composed_both:>9} |",
            row.op, row.shape, row.dtype
        );
    }
}

/// Prints all rows, on the preferred backend of this build.
pub fn print() {
    report_failures();
    keep_kernels();
    let backend = Backend::preferred().expect("a backend is built in");
    if let Err(error) = backend.dispatch(Print) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

struct Print;

impl Work for Print {
    type Output = ();

    fn run<B: KernelBackend>(self, _device: B::Device) {
        rows::<B>();
    }
}

fn rows<B: KernelBackend>() {
    let cpu = cfg!(not(any(feature = "cuda", feature = "wgpu")));
    let small = cpu || std::env::var("KERNELS_BENCH").is_ok_and(|value| value == "small");
    let mut dtypes = vec![DType::F32, DType::BF16];
    dtypes.retain(|dtype| !small && B::supports_dtype(&Default::default(), *dtype));
    if small {
        dtypes = vec![DType::F32];
    }
    let bench = Bench {
        clock: Clock::<B>::new(if small { 1 << 24 } else { 1 << 27 }, !small),
        small,
        dtypes,
        // Cargo adds a flag.
        words: std::env::args()
            .skip(1)
            .filter(|word| word != "--bench")
            .collect(),
    };
    println!("copy {:.1} GB/s\n", 1e-9 * bench.clock.bandwidth());
    println!(
        "| op | shape | dtype | forward ms | forward and backward ms | % of copy bandwidth \
         | TFLOP/s | tensor operations: forward ms | and backward ms |"
    );
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|");
    scan::rows(&bench);
    causal_conv::rows(&bench);
    mixing_matrices::rows(&bench);
    attention::rows(&bench);
    recurrent_step::rows(&bench);
    projections::rows(&bench);
    pass::rows(&bench);
    linear::rows(&bench);
    layers::rows(&bench);
    losses::rows(&bench);
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if !bench.small && bench.wants("tiles") {
        crate::tiled::print();
    }
}
