//! Stage 1's loss.

use burn::tensor::backend::Backend;
use kernels::losses::mixing_matrices::reference;
use kernels::runtime::NdArray64;
use kernels::{AttentionParts, TrainBackend, TransferParts, Window};
use tests::assert_close;

use crate::support::*;

struct Distance {
    a_log: Values,
    b: Values,
    c: Values,
    d: Values,
    q: Values,
    k: Values,
    window: Option<Window>,
}

impl Distance {
    fn random([batch, l, h, g, n, kv, p]: [usize; 7], a_log: f64) -> Self {
        Self {
            a_log: random(1, &[batch, l, h], a_log),
            b: random(2, &[batch, l, g, n], 0.5),
            c: random(3, &[batch, l, g, n], 0.5),
            d: random(4, &[h], 1.0),
            q: random(5, &[batch, l, h, p], 2.0),
            k: random(6, &[batch, l, kv, p], 2.0),
            window: None,
        }
    }

    fn teacher<B: Backend>(&self) -> AttentionParts<B> {
        AttentionParts {
            q: tensor(self.q.clone()),
            k: tensor(self.k.clone()),
            window: self.window,
            documents: None,
        }
    }
}

fn distance<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = TransferParts {
        a_log: trace.input(&case.a_log),
        b: trace.input(&case.b),
        c: trace.input(&case.c),
        d: trace.input(&case.d),
    };
    trace.finish(kernels::mixing_distance(student, case.teacher()))
}

fn distance_definition<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = TransferParts {
        a_log: trace.input(&case.a_log),
        b: trace.input(&case.b),
        c: trace.input(&case.c),
        d: trace.input(&case.d),
    };
    trace.finish(reference::forward(student, case.teacher()))
}

#[test]
fn mixing_distance_is_right() {
    for sizes in [
        [1, 1, 1, 1, 1, 1, 2],
        [2, 37, 4, 4, 8, 4, 12],
        [2, 70, 4, 2, 5, 1, 6],
        [1, 200, 3, 3, 16, 3, 16],
    ] {
        for a_log in [1.0, 6.0] {
            let case = Distance::random(sizes, a_log);
            check!(
                format!("distance {sizes:?} {a_log}"),
                distance,
                distance_definition,
                &case
            );
        }
    }
}

/// A teacher's window changes the distance where it hides something, and nowhere else.
#[test]
fn distance_from_a_window() {
    let mut case = Distance::random([2, 37, 4, 2, 8, 2, 12], 2.0);
    let plain = distance::<Exact>(&case);
    for (window, sinks, is_seen) in [(5, 2, false), (36, 0, false), (30, 7, true)] {
        case.window = Some(Window { window, sinks });
        let name = format!("distance within {window} and {sinks}");
        check!(name, distance, distance_definition, &case);
        let found = distance::<Exact>(&case);
        assert_eq!(found == plain, is_seen, "{name}");
    }
}

/// The distance must be that of the matrices that the scan and the attention apply.
#[test]
fn transfer_matrix_is_what_the_scan_applies() {
    let [batch, l, h, g, n, p] = [2, 45, 4, 2, 6, 3];
    let case = Distance::random([batch, l, h, g, n, 1, 2], 3.0);
    let x = tensor::<NdArray64, 4>(random(9, &[batch, l, h, p], 1.0));
    let parts = TransferParts {
        a_log: tensor(case.a_log.clone()),
        b: tensor(case.b.clone()),
        c: tensor(case.c.clone()),
        d: tensor(case.d.clone()),
    };
    let matrix = kernels::transfer_matrix::<NdArray64>(parts.clone());
    let applied = matrix.matmul(x.clone().swap_dims(1, 2)).swap_dims(1, 2);
    let (y, _) = kernels::ssd_scan(x.clone(), parts.a_log, parts.b, parts.c, None, 16);
    let scanned = y + x * parts.d.reshape([1, 1, h, 1]);
    assert_close("T x", values(applied), values(scanned), 1e-12);
}
