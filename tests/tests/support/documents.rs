//! The passes of the stages over rows of several documents: losses and gradients are those of the documents alone.

use std::collections::HashMap;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ParamId};
use burn::tensor::{Tensor, TensorData};
use kernels::{DocumentStarts, TrainBackend, Window};
use model::{
    AttentionConfig, BesideAttentionConfig, CausalLm, DiscreteMamba2Config, Joined, Layout,
    MixerConfig, MixerRotary, NetworkConfig, Phi, PhiMamba, Taps, Turned, named_parameters,
};
use tests::networks::mohawk::{RECORDED, Recorded};
use tests::networks::*;
use tests::{assert_close, goldens_dir};
use train::gradients::Gradients;
use train::stages::hidden_states::{HiddenStates, Target};
use train::stages::mixing_matrices::Matrices;
use train::stages::predictions::{Loss, Predictions};
use train::stages::{Kind, StageStep, TokenBatch};

/// The lengths of the documents of each row.
const ROWS: [&[usize]; 2] = [&[1, 5, 2, 4], &[4, 8]];
const L: usize = 12;

/// Each document: its row, its start and its length.
fn documents() -> Vec<[usize; 3]> {
    let rows = ROWS.iter().enumerate().flat_map(|(row, lengths)| {
        let mut start = 0;
        lengths.iter().map(move |&length| {
            let document = [row, start, length];
            start += length;
            document
        })
    });
    rows.collect()
}

/// The ids of a row, of which the last of each document is one id, as end-of-text is.
fn ids(row: usize) -> Vec<i32> {
    let id = |at: usize| (3 + 5 * at + 7 * row + at * at) as i32 % 30 + 1;
    let mut ids: Vec<i32> = (0..L).map(id).collect();
    for [_, start, length] in documents().into_iter().filter(|[of, ..]| *of == row) {
        ids[start + length - 1] = 0;
    }
    ids
}

/// The next id of each of a row, and none after the end of a document.
fn labels(row: usize) -> Vec<i32> {
    let ids = ids(row);
    let next = |at: usize| {
        if ids[at] == 0 { -1 } else { ids[at + 1] }
    };
    (0..L).map(next).collect()
}

fn batch<B: TrainBackend>(
    ids: Vec<i32>,
    labels: Vec<i32>,
    rows: usize,
    starts: Option<Vec<i32>>,
) -> TokenBatch<B> {
    let shape = [rows, ids.len() / rows];
    let tensor = |values| Tensor::from_data(TensorData::new(values, shape), &Default::default());
    TokenBatch {
        ids: tensor(ids),
        labels: tensor(labels),
        has_ends: true,
        documents: starts.map(|starts| DocumentStarts::new(tensor(starts))),
    }
}

/// All rows.
fn together<B: TrainBackend>() -> TokenBatch<B> {
    let starts = documents().into_iter();
    let starts = starts.flat_map(|[_, start, length]| vec![start as i32; length]);
    batch(
        [ids(0), ids(1)].concat(),
        [labels(0), labels(1)].concat(),
        ROWS.len(),
        Some(starts.collect()),
    )
}

/// One document.
fn alone<B: TrainBackend>([row, start, length]: [usize; 3]) -> TokenBatch<B> {
    let part = |values: Vec<i32>| values[start..start + length].to_vec();
    batch(part(ids(row)), part(labels(row)), 1, None)
}

struct Pair<B: TrainBackend> {
    name: String,
    teacher: Phi<B::InnerBackend>,
    student: PhiMamba<B>,
}

/// What the gradient of each parameter of a student is.
type Found = HashMap<ParamId, Vec<f64>>;

impl<B: TrainBackend> Pair<B> {
    /// The recorded student, and one with all of the teacher's heads within a window beside a mixer with rotary
    /// positions.
    fn all(recorded: Recorded) -> [Self; 2] {
        let device = Default::default();
        let folder = goldens_dir().join(recorded.teacher);
        let (config, teacher) =
            model::load_any::<B::InnerBackend>(folder, &device).expect("a teacher");
        let mut network = NetworkConfig::from(&config);
        for mixer in &mut network.mixers {
            let MixerConfig::Attention(attention) = mixer.clone() else {
                panic!("a teacher has attention");
            };
            *mixer = beside(&attention).into();
        }
        let (_, student) = recorded.student::<B>();
        [
            Self {
                name: recorded.name.to_owned(),
                teacher: teacher.clone(),
                student,
            },
            Self {
                name: format!("{}, a window beside", recorded.name),
                teacher,
                student: CausalLm::init(network, 5, &device),
            },
        ]
    }

    fn pass(&self, kind: &Kind, batch: TokenBatch<B>) -> (f64, Found) {
        let at = StageStep { number: 0, of: 2 };
        let mut gradients = Gradients::default();
        let loss = kind.pass(
            &(&self.student).into(),
            &self.teacher,
            batch,
            at,
            &mut gradients,
        );
        (values(loss).1[0], self.read(gradients))
    }

    fn read(&self, mut gradients: Gradients<B::InnerBackend>) -> Found {
        let parameters = named_parameters(&self.student, Layout::default()).into_iter();
        let found = parameters.filter_map(|parameter| {
            let gradient = gradients.take(parameter.id)?;
            Some((parameter.id, values(gradient).1))
        });
        found.collect()
    }

    fn same(&self, name: &str, found: (f64, Found), expected: (f64, Found), tolerance: f64) {
        let one = |value| (vec![1], vec![value]);
        let name = format!("{}: {name}", self.name);
        assert_close(&name, one(found.0), one(expected.0), tolerance);
        // Parameters whose gradient is zero but for rounding are measured by the largest of all.
        let all = expected.1.values().flatten();
        let largest = all.fold(0.0, |most: f64, x| most.max(x.abs()));
        assert!(largest > 0.0, "{name}: no gradient");
        for parameter in named_parameters(&self.student, Layout::default()) {
            let path = &parameter.path;
            let [found, expected] = [&found.1, &expected.1].map(|of| of.get(&parameter.id));
            let Some((found, expected)) = found.zip(expected) else {
                assert_eq!(found, expected, "{name}: {path}");
                continue;
            };
            for (found, expected) in found.iter().zip(expected) {
                let error = (found - expected).abs();
                assert!(
                    error <= tolerance * largest,
                    "{name}: {path}: {found}, not {expected}"
                );
            }
        }
    }
}

/// All of its heads within a window, beside a mixer with as many.
fn beside(attention: &AttentionConfig) -> BesideAttentionConfig {
    BesideAttentionConfig {
        ssm: DiscreteMamba2Config {
            d_state: 8,
            chunk_size: 4,
            rotary: Some(MixerRotary {
                theta: 100.0,
                scaling: None,
                dim: 4,
                turned: Turned::BAndC,
            }),
            ..DiscreteMamba2Config::with_heads(attention.n_heads)
        },
        attention: Some(AttentionConfig {
            window: Some(Window {
                window: 2,
                sinks: 1,
            }),
            ..attention.clone()
        }),
        heads: vec![],
        joined: Joined::Sum,
    }
}

/// The mean over tokens of what a pass gives for each document.
fn mean_of_documents<B: TrainBackend>(pair: &Pair<B>, kind: &Kind) -> (f64, Found) {
    let all = (ROWS.len() * L) as f64;
    let (mut loss, mut gradients) = (0.0, Found::new());
    for document in documents() {
        let share = document[2] as f64 / all;
        let (own_loss, own) = pair.pass(kind, alone(document));
        loss += share * own_loss;
        for (id, own) in own {
            let sum = gradients.entry(id).or_insert_with(|| vec![0.0; own.len()]);
            for (sum, own) in sum.iter_mut().zip(own) {
                *sum += share * own;
            }
        }
    }
    (loss, gradients)
}

fn means_are_as_alone<B: TrainBackend>(tolerance: f64) {
    let hidden_states = |target, sequential| {
        Kind::HiddenStates(HiddenStates {
            target,
            sequential,
            every: 1,
            window_dropout: 0.0,
        })
    };
    let predictions = |loss, hard_weight, recompute| {
        Kind::Predictions(Predictions {
            loss,
            hard_weight,
            recompute,
            temperature: 1.5,
            ..Predictions::default()
        })
    };
    let kinds = [
        hidden_states(Target::Mixer, 0.0),
        hidden_states(Target::Block, 1.0),
        predictions(Loss::ForwardKl, 0.0, false),
        predictions(Loss::ForwardKl, 0.3, true),
        predictions(Loss::ReverseKl, 0.3, false),
        predictions(Loss::ForwardKl, 1.0, false),
    ];
    for pair in RECORDED.into_iter().flat_map(Pair::<B>::all) {
        for kind in &kinds {
            let found = pair.pass(kind, together());
            let expected = mean_of_documents(&pair, kind);
            pair.same(&format!("{kind:?}"), found, expected, tolerance);
        }
    }
}

/// The matrices of each document, whose squares add up in the norm of a row's head.
fn matrices_of_documents<B: TrainBackend>(pair: &Pair<B>) -> (f64, Found) {
    let mut losses = vec![];
    let layers = pair.student.backbone.layers.iter();
    for (i, (student, teacher)) in layers.zip(&pair.teacher.backbone.layers).enumerate() {
        if student.mixer.is_kept_from(&teacher.mixer) {
            continue;
        }
        let rows = (0..ROWS.len()).map(|row| {
            let own = documents().into_iter().filter(|[of, ..]| *of == row);
            let squares = own.map(|document| {
                let states = pair.teacher.forward(alone::<B>(document).ids, Taps::all());
                let x = states.hidden_states[i].clone();
                let attention = Tensor::<B, 4>::from_inner(teacher.mixing_matrix(x.clone()));
                let transfer = student.mixing_matrix(Tensor::<B, 3>::from_inner(x));
                let difference = transfer - attention;
                let h = difference.dims()[1];
                let squares = difference.clone() * difference;
                squares.sum_dim(3).sum_dim(2).reshape([1, h])
            });
            Tensor::cat(squares.collect(), 0).sum_dim(0).sqrt()
        });
        losses.push(Tensor::cat(rows.collect(), 0).mean());
    }
    let loss = Tensor::cat(losses, 0).sum();
    let mut gradients = Gradients::default();
    gradients.add::<B, _>(&pair.student, &loss.backward());
    (values(loss).1[0], pair.read(gradients))
}

fn matrices_are_as_alone<B: TrainBackend>(tolerance: f64) {
    for pair in RECORDED.into_iter().flat_map(Pair::<B>::all) {
        let found = pair.pass(&Kind::Matrices(Matrices {}), together());
        let expected = matrices_of_documents(&pair);
        pair.same("matrices", found, expected, tolerance);
    }
}

/// The logarithms of the probabilities that logits give.
fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
    logits.iter().map(|x| x - largest - sum.ln()).collect()
}

/// The loss of the predictions written out: a token that ends its document has what the teacher predicts there, and no
/// hard label.
#[test]
fn ends_of_documents_have_no_label() {
    type B = Autodiff<Exact>;
    let hard_weight = 0.3;
    for pair in RECORDED.into_iter().flat_map(Pair::<B>::all) {
        let mut sum = 0.0;
        for document in documents() {
            let [row, start, length] = document;
            let ids = alone::<B>(document).ids;
            let (_, theirs) = values(pair.teacher.forward(ids.clone(), taps()).logits.unwrap());
            // Without a graph: blocks that have met in one cannot go back one by one.
            let (_, own) = values(pair.student.valid().forward(ids, taps()).logits.unwrap());
            let v = own.len() / length;
            for at in 0..length {
                let [log_p, log_q] = [&own, &theirs].map(|x| log_softmax(&x[at * v..][..v]));
                let soft = log_p.iter().zip(&log_q).map(|(p, q)| -q.exp() * p);
                sum += (1.0 - hard_weight) * soft.sum::<f64>();
                if let Ok(label) = usize::try_from(labels(row)[start + at]) {
                    sum -= hard_weight * log_p[label];
                }
            }
        }
        let kind = Kind::Predictions(Predictions {
            hard_weight,
            ..Predictions::default()
        });
        let (found, _) = pair.pass(&kind, together());
        let expected = sum / (ROWS.len() * L) as f64;
        let error = (found - expected).abs() / expected;
        assert!(error < 1e-12, "{}: {found}, not {expected}", pair.name);
    }
}

fn taps() -> Taps {
    Taps {
        logits: true,
        ..Taps::default()
    }
}

#[test]
fn documents_exact() {
    means_are_as_alone::<Autodiff<Exact>>(1e-10);
    matrices_are_as_alone::<Autodiff<Exact>>(1e-10);
}

#[test]
fn documents_flex() {
    means_are_as_alone::<Autodiff<Fast>>(FAST);
    matrices_are_as_alone::<Autodiff<Fast>>(FAST);
}
