//! The projections of a decoding step, at the sizes of Phi-1.5 and its student.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::decode::projections::{
    self, Activation, Form, Input, Normalisation, Projection, Weight,
};

use crate::clock::random;
use crate::table::{Bench, Row};

pub fn rows<B: KernelBackend>(bench: &Bench<B>) {
    if !bench.wants("projections") {
        return;
    }
    let [d, mixer, mlp, vocabulary] = if bench.small {
        [192, 780, 768, 4096]
    } else {
        [2048, 8224, 8192, 51200]
    };
    for &dtype in &bench.dtypes {
        // Packed beside the last dtype only: what is not a weight is f32 in any case.
        let last = bench.dtypes.last() == Some(&dtype);
        let forms: &[Form] = if last {
            &[Form::Float, Form::Int8, Form::Int4]
        } else {
            &[Form::Float]
        };
        for &form in forms {
            for b in [1, 2, 4, 8] {
                let case = Case { b, d, dtype, form };
                case.out(bench, "fan out", &[mixer, mlp]);
                case.back(bench, "fan in", &[d, mlp]);
                case.out(bench, "head", &[vocabulary]);
            }
        }
    }
}

struct Case {
    b: usize,
    d: usize,
    dtype: DType,
    form: Form,
}

impl Case {
    fn projection<B: KernelBackend>(&self, d_out: usize, d_in: usize) -> Projection<B> {
        // Packed as any numbers are.
        let words = |shape: [usize; 2]| random::<B, 2>(shape, DType::F32).mul_scalar(1e9).int();
        let weight = match self.form {
            Form::Float => Weight::Float(random([d_out, d_in], self.dtype)),
            Form::Int8 => Weight::Int8 {
                packed: words([d_out, d_in / 4]),
                scales: random([d_out], DType::F32),
            },
            Form::Int4 => Weight::Int4 {
                packed: words([d_out, d_in / 8]),
                scales: words([1, d_out * d_in / 64]).flatten(0, 1),
            },
        };
        Projection {
            weight,
            bias: Some(random([d_out], self.dtype)),
        }
    }

    fn out<B: KernelBackend>(&self, bench: &Bench<B>, op: &'static str, widths: &[usize]) {
        let d = self.d;
        let x = random::<B, 2>([self.b, d], DType::F32);
        let norm = Normalisation {
            gamma: random([d], self.dtype),
            beta: Some(random([d], self.dtype)),
            epsilon: 1e-5,
        };
        let set = |_| -> Vec<_> {
            let each = widths.iter();
            each.map(|&width| (self.projection(width, d), Activation::GeluNew))
                .collect()
        };
        let sets: Vec<_> = (0..3).map(set).collect();
        let seconds = bench
            .clock
            .time(|i| projections::into(x.clone(), norm.clone(), sets[i % 3].clone()));
        let rows: usize = widths.iter().sum();
        let bytes = sets[0].iter().map(|(it, _)| it.weight.bytes()).sum();
        self.row(
            bench,
            op,
            format!("{d} to {rows}"),
            seconds,
            bytes,
            rows * d,
        );
    }

    fn back<B: KernelBackend>(&self, bench: &Bench<B>, op: &'static str, widths: &[usize]) {
        let d = self.d;
        let x = random::<B, 2>([self.b, d], DType::F32);
        let set = |_| -> Vec<(Input<B>, _)> {
            let each = widths.iter();
            each.map(|&width| {
                (
                    random::<B, 2>([self.b, width], DType::F32).into(),
                    self.projection(d, width),
                )
            })
            .collect()
        };
        let sets: Vec<_> = (0..3).map(set).collect();
        let seconds = bench
            .clock
            .time(|i| projections::out_of(x.clone(), sets[i % 3].clone()));
        let columns: usize = widths.iter().sum();
        let bytes = sets[0].iter().map(|(_, it)| it.weight.bytes()).sum();
        self.row(
            bench,
            op,
            format!("{columns} to {d}"),
            seconds,
            bytes,
            columns * d,
        );
    }

    fn row<B: KernelBackend>(
        &self,
        bench: &Bench<B>,
        op: &'static str,
        shape: String,
        seconds: f64,
        bytes: usize,
        products: usize,
    ) {
        let form = match self.form {
            Form::Float => "",
            Form::Int8 => ", 8-bit",
            Form::Int4 => ", 4-bit",
        };
        bench.row(Row {
            op,
            shape: format!("b{} {shape}{form}", self.b),
            dtype: self.dtype,
            seconds: [Some(seconds), None],
            bytes,
            operations: 2 * self.b * products,
            composed: [None; 2],
        });
    }
}
