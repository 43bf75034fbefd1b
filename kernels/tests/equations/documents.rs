//! Rows of several documents: for each document, each op gives the same result as for the document alone, forward and
//! backward.
//!
//! Here an op is compared with itself, applied to one document at a time. Burn's autodiff gives the gradients of the
//! slices that are the documents.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::scan::causal_conv::{Activation, ConvInputs};
use kernels::{
    AttentionParts, DocumentStarts, TrainBackend, TransferParts, Visible, Window, attention_matrix,
    attention_within, causal_conv_of, mixing_distance, ssd_scan, transfer_matrix,
};

use crate::support::*;

/// The lengths of the documents of each row. All rows are equally long.
#[derive(Clone, Debug)]
struct Rows(Vec<Vec<usize>>);

impl Rows {
    fn length(&self) -> usize {
        self.0[0].iter().sum()
    }

    fn documents<B: Backend>(&self) -> DocumentStarts<B> {
        let mut starts: Vec<i64> = vec![];
        for row in &self.0 {
            let mut start = 0;
            for length in row {
                starts.extend(vec![start; *length]);
                start += *length as i64;
            }
        }
        let shape = [self.0.len(), self.length()];
        DocumentStarts::new(Tensor::from_data(
            TensorData::new(starts, shape),
            &Default::default(),
        ))
    }

    /// Calls `op` for each document with its row, its start and its length, and joins the results, `[1, length, ..]`
    /// each, to `[b, l, ..]`.
    fn each<B: Backend, const D: usize>(
        &self,
        op: impl Fn(usize, usize, usize) -> Tensor<B, D>,
    ) -> Tensor<B, D> {
        let rows = self.0.iter().enumerate().map(|(row, lengths)| {
            let mut start = 0;
            let parts = lengths.iter().map(|length| {
                let part = op(row, start, *length);
                start += length;
                part
            });
            Tensor::cat(parts.collect(), 1)
        });
        Tensor::cat(rows.collect(), 0)
    }
}

/// The document of `length` tokens from `start` on in `row` of `x [b, l, ..]`.
fn part<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    (row, start, length): (usize, usize, usize),
) -> Tensor<B, D> {
    x.clone().narrow(0, row, 1).narrow(1, start, length)
}

/// Documents of one token, many documents, whole chunks of 4 and of 16, and none that is cut.
fn cases() -> Vec<Rows> {
    let mut cases = vec![
        Rows(vec![vec![1]]),
        Rows(vec![vec![1, 1, 1]]),
        Rows(vec![vec![16, 4, 12], vec![32]]),
        Rows(vec![vec![5, 1, 1, 9, 2], vec![1, 17], vec![17, 1]]),
        Rows(vec![vec![70, 3, 64, 63]]),
    ];
    // Lengths from 1 to 8, and what is left of 37.
    for seed in 0..3 {
        let (_, numbers) = random(900 + seed, &[2, 37], 0.5);
        let rows = numbers.chunks(37).map(|numbers| {
            let (mut left, mut lengths) = (37, vec![]);
            for number in numbers {
                let length = (1 + ((number + 0.5) * 8.0) as usize).min(left);
                if length > 0 {
                    lengths.push(length);
                }
                left -= length;
            }
            lengths
        });
        cases.push(Rows(rows.collect()));
    }
    cases
}

struct Heads {
    rows: Rows,
    q: Values,
    k: Values,
    v: Values,
    window: Option<Window>,
}

fn attended<B: TrainBackend>(case: &Heads) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v) = (
        trace.input(&case.q),
        trace.input(&case.k),
        trace.input(&case.v),
    );
    let visible = Visible {
        window: case.window,
        documents: Some(case.rows.documents()),
    };
    trace.finish(attention_within(q, k, v, visible))
}

fn attended_alone<B: TrainBackend>(case: &Heads) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let (q, k, v): (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>) = (
        trace.input(&case.q),
        trace.input(&case.k),
        trace.input(&case.v),
    );
    let y = case.rows.each(|row, start, length| {
        let [q, k, v] = [&q, &k, &v].map(|x| part(x, (row, start, length)));
        attention_within(q, k, v, case.window)
    });
    trace.finish(y)
}

#[test]
fn attention_keeps_documents_apart() {
    let windows = [(1, 0), (3, 0), (2, 2), (1, 4), (64, 4)];
    let windows = windows.map(|(window, sinks)| Some(Window { window, sinks }));
    for rows in cases() {
        let (b, l, h, g, p) = (rows.0.len(), rows.length(), 4, 2, 6);
        for window in windows.into_iter().chain([None]) {
            let case = Heads {
                rows: rows.clone(),
                q: random(1, &[b, l, h, p], 3.0),
                k: random(2, &[b, l, g, p], 3.0),
                v: random(3, &[b, l, g, p], 1.0),
                window,
            };
            let name = format!("attention of {rows:?} within {window:?}");
            check!(name, attended, attended_alone, &case);
        }
    }
}

struct Conv {
    rows: Rows,
    x: Values,
    weight: Values,
    bias: Values,
    history: Option<Values>,
    activation: Activation,
}

fn convolved<B: TrainBackend>(case: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let inputs = ConvInputs {
        x: trace.input(&case.x),
        weight: trace.input(&case.weight),
        bias: Some(trace.input(&case.bias)),
        history: case.history.as_ref().map(|history| trace.input(history)),
        activation: case.activation,
        documents: Some(case.rows.documents()),
    };
    trace.finish(causal_conv_of(inputs))
}

fn convolved_alone<B: TrainBackend>(case: &Conv) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x: Tensor<B, 3> = trace.input(&case.x);
    let weight: Tensor<B, 2> = trace.input(&case.weight);
    let bias: Tensor<B, 1> = trace.input(&case.bias);
    let history = case
        .history
        .as_ref()
        .map(|history| trace.input::<3>(history));
    let y = case.rows.each(|row, start, length| {
        // What came before the row belongs to its first document.
        let history = history.clone().filter(|_| start == 0);
        causal_conv_of(ConvInputs {
            x: part(&x, (row, start, length)),
            weight: weight.clone(),
            bias: Some(bias.clone()),
            history: history.map(|history| history.narrow(0, row, 1)),
            activation: case.activation,
            documents: None,
        })
    });
    trace.finish(y)
}

#[test]
fn the_convolution_keeps_documents_apart() {
    for rows in cases() {
        let (b, l, c) = (rows.0.len(), rows.length(), 5);
        for (w, activation, has_history) in [
            (4, Activation::Silu, false),
            (4, Activation::Silu, true),
            (3, Activation::Identity, false),
            (1, Activation::Silu, false),
        ] {
            let case = Conv {
                rows: rows.clone(),
                x: random(1, &[b, l, c], 1.0),
                weight: random(2, &[c, w], 1.0),
                bias: random(3, &[c], 1.0),
                history: has_history.then(|| random(4, &[b, w - 1, c], 1.0)),
                activation,
            };
            let name = format!("convolution of {rows:?}, width {w}, history {has_history}");
            check!(name, convolved, convolved_alone, &case);
        }
    }
}

struct Scan {
    rows: Rows,
    x: Values,
    a_log: Values,
    b: Values,
    c: Values,
    state: Values,
    chunk: usize,
}

fn scanned<B: TrainBackend>(case: &Scan) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x = trace.input(&case.x);
    let a_log = case.rows.documents().cut(trace.input(&case.a_log));
    let (b, c) = (trace.input(&case.b), trace.input(&case.c));
    let state = trace.input(&case.state);
    trace.finish(ssd_scan(x, a_log, b, c, Some(state), case.chunk).0)
}

fn scanned_alone<B: TrainBackend>(case: &Scan) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let x: Tensor<B, 4> = trace.input(&case.x);
    let a_log: Tensor<B, 3> = trace.input(&case.a_log);
    let (b, c): (Tensor<B, 4>, Tensor<B, 4>) = (trace.input(&case.b), trace.input(&case.c));
    let state: Tensor<B, 4> = trace.input(&case.state);
    let y = case.rows.each(|row, start, length| {
        let at = (row, start, length);
        let [x, b, c] = [&x, &b, &c].map(|x| part(x, at));
        // What came before the row belongs to its first document.
        let state = (start == 0).then(|| state.clone().narrow(0, row, 1));
        ssd_scan(x, part(&a_log, at), b, c, state, case.chunk).0
    });
    trace.finish(y)
}

#[test]
fn the_scan_begins_anew_at_documents() {
    for rows in cases() {
        let (batch, l, h, g, p, n) = (rows.0.len(), rows.length(), 4, 2, 3, 5);
        for (chunk, decay) in [(4, 3.0), (16, 3.0), (256, 3.0), (16, 30.0)] {
            let case = Scan {
                rows: rows.clone(),
                x: random(1, &[batch, l, h, p], 1.0),
                a_log: random(2, &[batch, l, h], decay),
                b: random(3, &[batch, l, g, n], 1.0),
                c: random(4, &[batch, l, g, n], 1.0),
                state: random(5, &[batch, h, p, n], 1.0),
                chunk,
            };
            let name = format!("scan of {rows:?} in chunks of {chunk}, decays to {decay}");
            check!(name, scanned, scanned_alone, &case);
        }
    }
}

struct Distance {
    rows: Rows,
    a_log: Values,
    b: Values,
    c: Values,
    d: Values,
    q: Values,
    k: Values,
    window: Option<Window>,
}

impl Distance {
    fn teacher<B: Backend>(&self, documents: Option<DocumentStarts<B>>) -> AttentionParts<B> {
        AttentionParts {
            q: tensor(self.q.clone()),
            k: tensor(self.k.clone()),
            window: self.window,
            documents,
        }
    }

    fn student<B: TrainBackend>(&self, trace: &mut Trace<B>) -> TransferParts<B> {
        TransferParts {
            a_log: trace.input(&self.a_log),
            b: trace.input(&self.b),
            c: trace.input(&self.c),
            d: trace.input(&self.d),
        }
    }
}

fn compared<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = case.student(&mut trace);
    let teacher = case.teacher(Some(case.rows.documents()));
    trace.finish(mixing_distance(student, teacher))
}

/// One document and head at a time, whose squares add up to those of the row's head.
fn compared_alone<B: TrainBackend>(case: &Distance) -> Vec<Values> {
    let mut trace = Trace::<B>::new();
    let student = case.student(&mut trace);
    let teacher: AttentionParts<B> = case.teacher(None);
    let h = student.d.dims()[0];
    let mut distances = vec![];
    for (row, lengths) in case.rows.0.iter().enumerate() {
        for head in 0..h {
            let (mut start, mut squares) = (0, vec![]);
            for &length in lengths {
                let at = (row, start, length);
                let of_head = |x: &Tensor<B, 4>| part(x, at).narrow(2, head, 1);
                let distance = mixing_distance(
                    TransferParts {
                        a_log: part(&student.a_log, at).narrow(2, head, 1),
                        b: of_head(&student.b),
                        c: of_head(&student.c),
                        d: student.d.clone().narrow(0, head, 1),
                    },
                    AttentionParts {
                        q: of_head(&teacher.q),
                        k: of_head(&teacher.k),
                        window: case.window,
                        documents: None,
                    },
                );
                squares.push(distance.clone() * distance);
                start += length;
            }
            distances.push(Tensor::cat(squares, 0).sum().sqrt());
        }
    }
    trace.finish(Tensor::cat(distances, 0).mean())
}

#[test]
fn the_distance_is_that_of_the_documents() {
    for rows in cases() {
        let (batch, l, h, n, p) = (rows.0.len(), rows.length(), 2, 5, 6);
        for window in [
            None,
            Some(Window {
                window: 2,
                sinks: 1,
            }),
        ] {
            let case = Distance {
                rows: rows.clone(),
                a_log: random(1, &[batch, l, h], 3.0),
                b: random(2, &[batch, l, h, n], 0.5),
                c: random(3, &[batch, l, h, n], 0.5),
                d: random(4, &[h], 1.0),
                q: random(5, &[batch, l, h, p], 2.0),
                k: random(6, &[batch, l, h, p], 2.0),
                window,
            };
            let name = format!("distance of {rows:?} within {window:?}");
            check!(name, compared, compared_alone, &case);
        }
    }
}

/// Between documents both matrices are zero, to the bit.
#[test]
fn matrices_have_nothing_between_documents() {
    type B = kernels::runtime::NdArray64;
    let rows = Rows(vec![vec![3, 1, 4], vec![8]]);
    let documents: DocumentStarts<B> = rows.documents();
    let (l, of) = (rows.length(), |seed, width| {
        tensor::<B, 4>(random(seed, &[2, 8, 1, width], 1.0))
    });
    let transfer = transfer_matrix(TransferParts {
        a_log: documents.cut(tensor(random(1, &[2, l, 1], 1.0))),
        b: of(2, 3),
        c: of(3, 3),
        d: tensor(random(4, &[1], 1.0)),
    });
    let visible = Visible {
        window: None,
        documents: Some(documents),
    };
    let attention = kernels::attention_matrix_within(of(5, 4), of(6, 4), visible);
    let alone = attention_matrix(of(5, 4), of(6, 4));
    let document = [0, 0, 0, 1, 2, 2, 2, 2];
    let ((_, transfer), (_, attention), (_, alone)) =
        (values(transfer), values(attention), values(alone));
    for (i, j) in (0..l).flat_map(|i| (0..=i).map(move |j| (i, j))) {
        let [first, second] = [0, 1].map(|row| (row * l + i) * l + j);
        assert_eq!(transfer[first] != 0.0, document[i] == document[j]);
        assert_eq!(attention[first] != 0.0, document[i] == document[j]);
        assert!(transfer[second] != 0.0);
        assert_eq!(attention[second], alone[second]);
    }
}

/// A row of one document is a row without documents, to the bit.
#[test]
fn one_document_is_none() {
    fn same<B: TrainBackend>() {
        let rows = Rows(vec![vec![23], vec![23]]);
        let (q, k) = (
            random(1, &[2, 23, 2, 8], 2.0),
            random(2, &[2, 23, 2, 8], 2.0),
        );
        let v = random(3, &[2, 23, 2, 8], 1.0);
        let attended = |documents: Option<DocumentStarts<B>>| {
            let [q, k, v] = [&q, &k, &v].map(|x| tensor::<B, 4>(x.clone()));
            let window = None;
            values(attention_within(q, k, v, Visible { window, documents }))
        };
        assert_eq!(attended(Some(rows.documents())), attended(None));

        let x = random(4, &[2, 23, 4], 1.0);
        let convolved = |documents: Option<DocumentStarts<B>>| {
            values(causal_conv_of(ConvInputs {
                x: tensor::<B, 3>(x.clone()),
                weight: tensor(random(5, &[4, 4], 1.0)),
                bias: None,
                history: None,
                activation: Activation::Silu,
                documents,
            }))
        };
        assert_eq!(convolved(Some(rows.documents())), convolved(None));

        let a_log = tensor::<B, 3>(random(6, &[2, 23, 2], 3.0));
        assert_eq!(values(rows.documents().cut(a_log.clone())), values(a_log));
    }
    same::<Exact>();
    same::<Fast>();
}

/// Where the tokens of documents stand in them.
#[test]
fn positions_count_from_the_start() {
    let documents: DocumentStarts<kernels::runtime::Flex> = Rows(vec![vec![2, 1, 3]]).documents();
    let read =
        |x: Tensor<_, 2, burn::tensor::Int>| -> Vec<i64> { x.into_data().iter::<i64>().collect() };
    assert_eq!(read(documents.starts()), [0, 0, 2, 3, 3, 3]);
    assert_eq!(read(documents.positions()), [0, 1, 0, 0, 1, 2]);
}
