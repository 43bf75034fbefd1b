//! Rows of several documents: for each document, every network gives the same result as for the document alone, forward
//! and backward.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use kernels::{DocumentStarts, KernelBackend};
use model::{CausalLm, Outputs, Taps, TokenRows};
use tests::assert_close;
use tests::networks::*;

use super::block_orders::{networks, random};

const L: usize = 23;

/// The lengths of the documents of each row: one of one token at the start, in between and at the end, several of which
/// are longer than windows, convolutions, chunks and taps, and one row that is a document.
const ROWS: [&[usize]; 3] = [&[1, 9, 2, 11], &[8, 1, 1, 4, 8, 1], &[L]];

fn ids<B: Backend>() -> Tensor<B, 2, Int> {
    let count = ROWS.len() * L;
    let ids: Vec<i32> = (0..count as i32).map(|i| (5 * i + i * i) % 24).collect();
    Tensor::from_data(TensorData::new(ids, [ROWS.len(), L]), &Default::default())
}

fn packed<B: Backend>() -> TokenRows<B> {
    let starts = (0..ROWS.len()).flat_map(|row| {
        let mut start = 0;
        ROWS[row].iter().flat_map(move |&length| {
            let starts = vec![start; length];
            start += length as i32;
            starts
        })
    });
    let starts = TensorData::new(starts.collect::<Vec<_>>(), [ROWS.len(), L]);
    TokenRows {
        ids: ids(),
        documents: Some(DocumentStarts::new(Tensor::from_data(
            starts,
            &Default::default(),
        ))),
    }
}

/// Each document: its row, its start and its length.
fn documents() -> Vec<[usize; 3]> {
    let rows = (0..ROWS.len()).flat_map(|row| {
        let mut start = 0;
        ROWS[row].iter().map(move |&length| {
            let document = [row, start, length];
            start += length;
            document
        })
    });
    rows.collect()
}

fn part<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    [row, start, length]: [usize; 3],
) -> Tensor<B, D> {
    x.clone().narrow(0, row, 1).narrow(1, start, length)
}

fn documents_are_as_alone<B: KernelBackend>(tolerance: f64) {
    for (name, network) in networks() {
        let model = random::<B>(&network);
        let together = model.forward(packed(), Taps::all());
        let features = model.features(packed());
        let of_fused = model.clone().fuse_projections().features(packed());
        assert_close(
            &format!("{name}, fused"),
            values(of_fused),
            values(features.clone()),
            tolerance,
        );
        for document in documents() {
            let [row, start, length] = document;
            let name = format!("{name}: {length} tokens from {start} on in row {row}");
            let own = ids::<B>().narrow(0, row, 1).narrow(1, start, length);
            let Outputs {
                logits,
                hidden_states,
                mixer_outputs,
                mixing_matrices,
            } = model.forward(own.clone(), Taps::all());
            let same = |what: &str, found: &Tensor<B, 3>, alone: Tensor<B, 3>| {
                let found = values(part(found, document));
                assert_close(&format!("{name}, {what}"), found, values(alone), tolerance);
            };
            let (found, alone) = (together.logits.as_ref(), logits);
            same("logits", found.expect("logits"), alone.expect("logits"));
            same("features", &features, model.features(own));
            for (found, alone) in together.hidden_states.iter().zip(hidden_states) {
                same("hidden state", found, alone);
            }
            for (found, alone) in together.mixer_outputs.iter().zip(mixer_outputs) {
                same("mixer output", found, alone);
            }
            for (found, alone) in together.mixing_matrices.iter().zip(mixing_matrices) {
                let rows = found.clone().narrow(0, row, 1).narrow(2, start, length);
                let own = rows.clone().narrow(3, start, length);
                let name = format!("{name}, matrix");
                assert_close(&name, values(own), values(alone), tolerance);
                if start > 0 {
                    let (_, before) = values(rows.narrow(3, 0, start));
                    assert!(before.iter().all(|entry| *entry == 0.0), "{name}");
                }
            }
        }
    }
}

on_both! {
    documents_are_as_alone(1e-11, 2e-4);
}

/// Gives a network a graph that shares no node with that of another network. If two networks share parameters, the
/// backward pass of the first can remove nodes of the second.
struct Apart;

impl<B: Backend> ModuleMapper<B> for Apart {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        parameter.map(|x| x.detach().require_grad())
    }
}

/// The gradients of all parameters are the sums of the documents'.
fn gradients_are_as_alone<B: KernelBackend>(tolerance: f64)
where
    Autodiff<B>: KernelBackend,
{
    for (name, network) in networks() {
        let model = random::<Autodiff<B>>(&network);
        let (shape, weights) = tests::random(9, &[ROWS.len(), L, 24], 1.0);
        let weights: Tensor<Autodiff<B>, 3> =
            Tensor::from_data(TensorData::new(weights, shape), &Default::default());
        let logits = |model: &CausalLm<Autodiff<B>>, tokens: TokenRows<Autodiff<B>>| {
            model.logits(model.features(tokens))
        };
        let found = {
            let model = model.clone().map(&mut Apart);
            let loss = (logits(&model, packed()) * weights.clone()).sum();
            gradients(&model, &loss.backward())
        };
        let expected = {
            let model = model.clone().map(&mut Apart);
            let alone = documents().into_iter().map(|document| {
                let [row, start, length] = document;
                let own = ids::<Autodiff<B>>()
                    .narrow(0, row, 1)
                    .narrow(1, start, length);
                (logits(&model, own.into()) * part(&weights, document)).sum()
            });
            let loss = Tensor::cat(alone.collect(), 0).sum();
            gradients(&model, &loss.backward())
        };
        assert_eq!(found.len(), expected.len(), "{name}");
        for ((id, found), (of, expected)) in found.into_iter().zip(expected) {
            assert_eq!(id, of, "{name}");
            assert_close(&format!("{name}: {id:?}"), found, expected, tolerance);
        }
    }
}

on_both! {
    gradients_are_as_alone(1e-10, 5e-4);
}
