//! The scan's kernels, forward and backward.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use kernels::runtime::NdArray64 as Exact;
use kernels::{Epilogue, GatedScan, GatedScanGradients, KernelBackend, ScanInputs};
use tests::Numbers;

use crate::device::{Cube as Device, with_device};

/// One of `0..count`.
fn below(numbers: &mut Numbers, count: usize) -> usize {
    ((numbers.number() + 1.0) / 2.0 * count as f64) as usize
}

#[derive(Clone, Copy, Debug)]
enum Decay {
    /// `a_log` in plus or minus this.
    Within(f64),
    /// At a few tokens the state is lost completely, at the others almost nothing is lost.
    Extremes,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// b, l, h, g, p, n.
    sizes: [usize; 6],
    decay: Decay,
    initial: bool,
    /// Whether x, B and C are slices of one wider tensor.
    strided: bool,
    /// Whether there is a skip, a gate, and a bias in it.
    epilogue: [bool; 3],
}

impl Case {
    fn new(sizes: [usize; 6]) -> Self {
        Self {
            sizes,
            decay: Decay::Within(3.0),
            initial: false,
            strided: false,
            epilogue: [false; 3],
        }
    }

    fn initial(self) -> Self {
        Self {
            initial: true,
            ..self
        }
    }

    fn strided(self) -> Self {
        Self {
            strided: true,
            ..self
        }
    }

    fn epilogue(self, epilogue: [bool; 3]) -> Self {
        Self { epilogue, ..self }
    }
}

/// The inputs of a case, rounded to the dtype that the device gets them in.
struct Inputs {
    x: Tensor<Exact, 4>,
    a_log: Tensor<Exact, 3>,
    b: Tensor<Exact, 4>,
    c: Tensor<Exact, 4>,
    initial: Option<Tensor<Exact, 4>>,
    dy: Tensor<Exact, 4>,
    d: Option<Tensor<Exact, 1>>,
    z: Option<Tensor<Exact, 3>>,
    z_bias: Option<Tensor<Exact, 1>>,
}

fn exact<const D: usize>(shape: [usize; D], dtype: DType, values: Vec<f64>) -> Tensor<Exact, D> {
    let rounded = TensorData::new(values, shape).convert_dtype(dtype);
    let options = (&Default::default(), DType::F64);
    Tensor::from_data(rounded.convert::<f64>(), options)
}

fn on_device<const D: usize>(x: &Tensor<Exact, D>, dtype: DType) -> Tensor<Device, D> {
    let data = x.to_data().convert_dtype(dtype);
    Tensor::from_data(data, (&Default::default(), dtype))
}

fn inputs(case: Case, dtype: DType, numbers: &mut Numbers) -> Inputs {
    let [batch, l, h, g, p, n] = case.sizes;
    let mut random = |shape: [usize; 4], dtype| {
        let count = shape.iter().product();
        exact(shape, dtype, (0..count).map(|_| numbers.number()).collect())
    };
    let x = random([batch, l, h, p], dtype);
    let b = random([batch, l, g, n], dtype);
    let c = random([batch, l, g, n], dtype);
    let dy = random([batch, l, h, p], dtype);
    let state = random([batch, h, p, n], DType::F32);
    let mut draw = || match case.decay {
        Decay::Within(scale) => scale * numbers.number(),
        Decay::Extremes if numbers.number() > 0.9 => 40.0 * numbers.number().abs(),
        Decay::Extremes => -8.0 + 32.0 * numbers.number().min(0.0),
    };
    let a_log = (0..batch * l * h).map(|_| draw()).collect();
    let mut random = |count: usize| (0..count).map(|_| 2.0 * numbers.number()).collect();
    let (d, z, z_bias) = (random(h), random(batch * l * h * p), random(h * p));
    let [skip, gate, bias] = case.epilogue;
    Inputs {
        x,
        a_log: exact([batch, l, h], DType::F32, a_log),
        b,
        c,
        initial: case.initial.then_some(state),
        dy,
        d: skip.then(|| exact([h], dtype, d)),
        z: gate.then(|| exact([batch, l, h * p], dtype, z)),
        z_bias: bias.then(|| exact([h * p], dtype, z_bias)),
    }
}

/// The gate as a slice of a wider tensor.
fn gate_sliced(z: &Tensor<Exact, 3>, dtype: DType) -> Tensor<Device, 3> {
    let width = z.dims()[2];
    on_device(&Tensor::cat(vec![z.clone(), z.clone()], 2), dtype).narrow(2, width, width)
}

/// x, B and C as slices of one tensor.
fn sliced(inputs: &Inputs, dtype: DType) -> [Tensor<Device, 4>; 3] {
    let parts = [&inputs.x, &inputs.b, &inputs.c];
    let flat = parts.map(|t| t.clone().flatten::<3>(2, 3));
    let wide = on_device(&Tensor::cat(flat.to_vec(), 2), dtype);
    let mut from = 0;
    parts.map(|t| {
        let [b, l, heads, width] = t.dims();
        let part = wide.clone().narrow(2, from, heads * width);
        from += heads * width;
        part.reshape([b, l, heads, width])
    })
}

/// Leaves freed buffers full of NaN where the next results may lie.
fn poison(elements: usize) {
    let device = Default::default();
    let buffers = [1, 2, 4, 8, 16].map(|share| {
        let count = (2 * elements / share).max(1);
        Tensor::<Device, 1>::full([count], f32::NAN, (&device, DType::F32))
    });
    Device::sync(&device).expect("the device works");
    drop(buffers);
}

fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// The outputs of a scan and their gradients, by name.
type Results = Vec<(&'static str, Vec<f64>)>;

/// The outputs of a scan and all gradients, with its epilogue if it has one.
fn results<B: KernelBackend>(
    scan: ScanInputs<B>,
    epilogue: Epilogue<B>,
    dy: Tensor<B, 4>,
) -> Results {
    const CHUNK: usize = 32;
    let dtype = scan.x.dtype();
    let (y, last, gradients) = if epilogue.d.is_none() && epilogue.z.is_none() {
        let (y, last) = B::ssd_scan_forward(scan.clone(), CHUNK);
        let scan = B::ssd_scan_backward(scan, dy, CHUNK);
        let (d, z, z_bias) = (None, None, None);
        (y, last, GatedScanGradients { scan, d, z, z_bias })
    } else {
        let GatedScan { out, state, kept } =
            B::gated_scan_forward(scan.clone(), epilogue.clone(), CHUNK, true);
        let gradients = B::gated_scan_backward(scan, epilogue, kept, dy, CHUNK);
        (out, state, gradients)
    };
    let GatedScanGradients { scan, d, z, z_bias } = gradients;
    assert_eq!([y.dtype(), scan.x.dtype(), scan.b.dtype()], [dtype; 3]);
    let mut results = vec![
        ("y", values(y)),
        ("last state", values(last)),
        ("dx", values(scan.x)),
        ("da_log", values(scan.a_log)),
        ("dB", values(scan.b)),
        ("dC", values(scan.c)),
        ("dinitial", values(scan.initial_state)),
    ];
    results.extend(d.map(|d| ("dD", values(d))));
    results.extend(z.map(|z| ("dz", values(z))));
    results.extend(z_bias.map(|z_bias| ("dz_bias", values(z_bias))));
    results
}

fn on_device_twice(case: Case, inputs: &Inputs, dtype: DType) -> [Results; 2] {
    let [b, l, h, _, p, n] = case.sizes;
    [(); 2].map(|_| {
        let [x, b_, c_] = if case.strided {
            sliced(inputs, dtype)
        } else {
            [&inputs.x, &inputs.b, &inputs.c].map(|t| on_device(t, dtype))
        };
        let scan = ScanInputs {
            x,
            a_log: on_device(&inputs.a_log, DType::F32),
            b: b_,
            c: c_,
            initial_state: inputs.initial.as_ref().map(|s| on_device(s, DType::F32)),
        };
        let epilogue = Epilogue {
            d: inputs.d.as_ref().map(|d| on_device(d, dtype)),
            z: inputs.z.as_ref().map(|z| {
                if case.strided {
                    gate_sliced(z, dtype)
                } else {
                    on_device(z, dtype)
                }
            }),
            z_bias: inputs.z_bias.as_ref().map(|bias| on_device(bias, dtype)),
        };
        let dy = on_device(&inputs.dy, dtype);
        poison(b * l.max(64) * h * p.max(n));
        let results = results::<Device>(scan, epilogue, dy);
        Device::sync(&Default::default()).expect("no launch fails");
        results
    })
}

/// `|actual - expected| / |expected|`, for a device that computes in `dtype`.
fn error(actual: &[f64], expected: &[f64], dtype: DType) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let pairs = actual.iter().zip(expected);
    let difference: f64 = pairs.map(|(a, e)| (a - e) * (a - e)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    // If almost nothing remains after the decay, a relative error makes no sense. In f16, whose numbers are 6e-8 apart
    // below 6e-5, this limit is reached much earlier.
    let least = match dtype {
        DType::F16 => (expected.len() as f64) * 6e-6 * 6e-6,
        _ => 1e-12,
    };
    (difference / norm.max(least)).sqrt()
}

/// The largest error that a dtype allows. f32 never goes through TF32.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        _ => 1e-2,
    }
}

/// The error of each result, once all are within what the dtype allows.
fn check(case: Case, dtype: DType, seed: u64) -> Vec<(f64, &'static str)> {
    let mut numbers = Numbers::new(seed);
    let inputs = inputs(case, dtype, &mut numbers);
    let [first, again] = on_device_twice(case, &inputs, dtype);
    let scan = ScanInputs {
        x: inputs.x,
        a_log: inputs.a_log,
        b: inputs.b,
        c: inputs.c,
        initial_state: inputs.initial,
    };
    let epilogue = Epilogue {
        d: inputs.d,
        z: inputs.z,
        z_bias: inputs.z_bias,
    };
    let expected = results::<Exact>(scan, epilogue, inputs.dy);
    assert_eq!(first.len(), expected.len());
    let mut errors = Vec::new();
    for (((name, actual), (_, again)), (_, expected)) in first.iter().zip(&again).zip(&expected) {
        errors.push((error(actual, expected, dtype), *name));
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        assert!(
            actual.iter().zip(again).all(same),
            "{name} differs between two runs: {dtype:?}, {case:?}"
        );
    }
    let shown: Vec<_> = errors
        .iter()
        .map(|(e, name)| format!("{name} {e:.0e}"))
        .collect();
    println!("{dtype:?} {case:?}: {}", shown.join(", "));
    // Not `>`: NaN must fail.
    let fine = errors.iter().all(|(error, _)| *error <= tolerance(dtype));
    assert!(fine, "{dtype:?} {case:?}: {}", shown.join(", "));
    errors
}

/// The dtypes that the device can hold.
fn dtypes() -> Vec<DType> {
    let device = Default::default();
    let mut dtypes = vec![DType::F32, DType::F16, DType::BF16];
    dtypes.retain(|dtype| Device::supports_dtype(&device, *dtype));
    dtypes
}

#[test]
fn fixed_shapes() {
    let cases = [
        Case::new([2, 70, 2, 2, 16, 16]),
        Case::new([2, 1, 2, 2, 16, 16]),
        Case::new([2, 64, 2, 1, 16, 16]),
        Case::new([2, 65, 2, 2, 16, 16]).initial(),
        Case::new([1, 200, 1, 1, 64, 64]).initial().strided(),
        Case::new([2, 150, 6, 2, 32, 16]).strided(),
        Case::new([1, 100, 3, 1, 128, 128]),
        Case::new([2, 77, 3, 3, 5, 3]).initial(),
        Case::new([1, 90, 2, 1, 100, 40]).strided(),
        Case::new([1, 600, 2, 2, 16, 64]),
        Case::new([2, 200, 4, 4, 64, 64]).epilogue([true, true, true]),
        Case::new([2, 130, 4, 2, 64, 16])
            .initial()
            .strided()
            .epilogue([true, true, false]),
        Case::new([1, 100, 2, 1, 16, 32]).epilogue([false, true, true]),
        Case::new([1, 100, 2, 1, 128, 128]).epilogue([true, true, true]),
        Case::new([1, 90, 2, 2, 32, 16]).epilogue([true, false, false]),
        // Heads and states of Mamba-2's own models, whose heads share one group.
        Case::new([1, 130, 4, 1, 64, 128]).initial(),
        Case::new([1, 130, 4, 1, 64, 128]).epilogue([true, true, true]),
        Case::new([1, 330, 2, 2, 128, 64]).epilogue([true, true, true]),
        Case::new([1, 77, 3, 3, 5, 3]).epilogue([true, true, true]),
    ];
    with_device(|| {
        for dtype in dtypes() {
            for (seed, case) in cases.into_iter().enumerate() {
                check(case, dtype, seed as u64 + 1);
            }
        }
    });
}

#[test]
fn extreme_decays() {
    let decays = [
        Decay::Extremes,
        Decay::Within(40.0),
        Decay::Within(12.0),
        Decay::Within(0.01),
    ];
    with_device(|| {
        for dtype in dtypes() {
            for (seed, decay) in decays.into_iter().enumerate() {
                let case = Case::new([2, 300, 2, 1, 16, 16]).initial();
                check(Case { decay, ..case }, dtype, seed as u64 + 100);
            }
        }
    });
}

#[test]
fn random_shapes() {
    let from_environment = |name, default| {
        let value = std::env::var(name).ok();
        value.map_or(default, |v| v.parse::<usize>().expect("a number"))
    };
    let first = from_environment("KERNELS_SEED", 1);
    let cases = from_environment("KERNELS_CASES", 12);
    let longest = from_environment("KERNELS_LENGTH", 400);
    with_device(|| {
        let dtypes = dtypes();
        for seed in first..first + cases {
            let mut numbers = Numbers::new(seed as u64);
            let g = 1 + below(&mut numbers, 3);
            let any = below(&mut numbers, 3) == 0;
            let mut size = || {
                if any {
                    1 + below(&mut numbers, 130)
                } else {
                    [16, 32, 64, 64, 128][below(&mut numbers, 5)]
                }
            };
            let (p, n) = (size(), size());
            let (b, l) = (1 + below(&mut numbers, 2), 1 + below(&mut numbers, longest));
            let h = g * (1 + below(&mut numbers, 3));
            let case = Case {
                sizes: [b, l, h, g, p, n],
                decay: match below(&mut numbers, 4) {
                    0 => Decay::Extremes,
                    1 => Decay::Within(40.0),
                    _ => Decay::Within(4.0),
                },
                initial: below(&mut numbers, 2) == 0,
                strided: below(&mut numbers, 2) == 0,
                epilogue: [
                    [false, false, false],
                    [true, true, true],
                    [true, true, false],
                    [true, false, false],
                ][below(&mut numbers, 4)],
            };
            check(case, dtypes[seed % dtypes.len()], 1000 + seed as u64);
        }
    });
}

/// The errors of the Triton kernels that the published model calls, in bf16 at this shape, against a
/// recurrence in 64-bit arithmetic: as norm ratios.
const TRITON: [(&str, f64); 5] = [
    ("y", 3.3e-3),
    ("dx", 3.3e-3),
    ("da_log", 1.3e-2),
    ("dB", 3.3e-3),
    ("dC", 3.3e-3),
];

#[test]
fn no_worse_than_triton() {
    with_device(|| {
        if !dtypes().contains(&DType::BF16) {
            return;
        }
        let case = Case::new([2, 512, 4, 4, 64, 64]);
        for (error, name) in check(case, DType::BF16, 300) {
            let theirs = TRITON.iter().find(|(theirs, _)| *theirs == name);
            if let Some((_, theirs)) = theirs {
                assert!(error <= *theirs, "{name}: {error:.2e} against {theirs:.2e}");
            }
        }
    });
}
