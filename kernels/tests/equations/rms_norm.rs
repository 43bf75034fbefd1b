//! Root-mean-square normalisation.

use kernels::TrainBackend;
use kernels::dense::rms_norm::reference;
use kernels::runtime::NdArray64;
use tests::assert_close;

use crate::support::*;

const EPSILON: f64 = 1e-5;

fn rms_norm<B: TrainBackend>(x: &Values, gamma: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma) = (trace.input::<2>(x), trace.input(gamma));
    trace.finish(kernels::rms_norm(x, gamma, EPSILON))
}

fn rms_norm_definition<B: TrainBackend>(x: &Values, gamma: &Values) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (x, gamma) = (trace.input(x), trace.input(gamma));
    trace.finish(reference::forward(x, gamma, EPSILON))
}

#[test]
fn rms_norm_is_right() {
    for [t, d] in [[1, 3], [7, 48], [300, 192], [2, 129]] {
        let gamma = random(2, &[d], 1.0);
        check!(
            "rms norm",
            rms_norm,
            rms_norm_definition,
            &random(1, &[t, d], 3.0),
            &gamma
        );
    }
}

/// Written out, one number at a time, and each gradient against a difference quotient.
#[test]
fn rms_norm_equals_its_equation() {
    let [t, d] = [3, 5];
    let (x, gamma) = (random(1, &[t, d], 2.0), random(2, &[d], 1.0));
    let normed = |x: &[f64], gamma: &[f64]| -> Vec<f64> {
        let rows = x.chunks(d).flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / d as f64;
            let scaled = row.iter().map(move |v| v / (mean + EPSILON).sqrt());
            scaled.zip(gamma).map(|(v, gamma)| v * gamma)
        });
        rows.collect()
    };
    let y = kernels::rms_norm::<NdArray64, 2>(tensor(x.clone()), tensor(gamma.clone()), EPSILON);
    let expected = normed(&x.1, &gamma.1);
    assert_close("y", values(y), (vec![t, d], expected), 1e-14);

    let weights = random(77, &[t, d], 1.0).1;
    let loss = |x: &[f64], gamma: &[f64]| -> f64 {
        let y = normed(x, gamma);
        y.iter().zip(&weights).map(|(y, weight)| y * weight).sum()
    };
    let [_, dx, dgamma] = rms_norm::<Exact>(&x, &gamma).try_into().unwrap();
    let slopes = |of: &[f64], loss: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let slope = |i: usize| {
            let at = |by: f64| {
                let mut moved = of.to_vec();
                moved[i] += by;
                loss(&moved)
            };
            (at(1e-5) - at(-1e-5)) / 2e-5
        };
        (0..of.len()).map(slope).collect()
    };
    let expected = slopes(&x.1, &|x| loss(x, &gamma.1));
    assert_close("dx", dx, (vec![t, d], expected), 1e-8);
    let expected = slopes(&gamma.1, &|gamma| loss(&x.1, gamma));
    assert_close("dgamma", dgamma, (vec![d], expected), 1e-8);
}
