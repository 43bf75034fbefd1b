//! The attention matrices of a teacher.

use burn::tensor::Tensor;
use datasets::TokenWindows;
use kernels::KernelBackend;
use model::{CausalLm, NetworkConfig};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::evaluate::ids;

/// The layer, the head and the sequence of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The layer, from 0.
    pub layer: usize,
    /// The head, from 0.
    pub head: usize,
    /// The sequence, from 0.
    pub sequence: usize,
}

/// Chooses `heads` of all heads of a network, spread evenly, as pairs of layer and head; 0 chooses all.
pub(super) fn sample(network: &NetworkConfig, heads: usize) -> Vec<(usize, usize)> {
    let layers = network.mixers.iter().enumerate();
    let attention = layers.filter(|(_, mixer)| mixer.has_attention_parts());
    let all: Vec<_> = attention
        .flat_map(|(layer, mixer)| (0..mixer.n_heads()).map(move |head| (layer, head)))
        .collect();
    if heads == 0 || heads >= all.len() {
        return all;
    }
    (0..heads).map(|i| all[i * all.len() / heads]).collect()
}

/// The attention matrices of `heads` on the first `sequences` windows, `[m, l, l]`, with their places.
///
/// # Errors
/// [`TrainError::Mismatch`] if there is no head or no text, or a matrix is not finite; [`TrainError::Data`] if the text
/// cannot be read.
pub(super) fn matrices<B: KernelBackend>(
    teacher: &CausalLm<B>,
    windows: &TokenWindows,
    heads: &[(usize, usize)],
    sequences: usize,
    device: &B::Device,
) -> Result<(Tensor<B, 3>, Vec<Place>), TrainError> {
    let (mut found, mut places) = (vec![], vec![]);
    for (sequence, batch) in windows.sequential(1).take(sequences).enumerate() {
        let batch = batch?;
        let mut x_bld =
            (teacher.backbone.embedding).forward(ids(&batch.ids, batch.context, device));
        for (layer, block) in teacher.backbone.layers.iter().enumerate() {
            let wanted = heads.iter().filter(|(of, _)| *of == layer);
            let wanted: Vec<usize> = wanted.map(|(_, head)| *head).collect();
            if !wanted.is_empty() {
                let attention = block.mixing_matrix(x_bld.clone()).squeeze_dim::<3>(0);
                for head in wanted {
                    found.push(attention.clone().narrow(0, head, 1));
                    places.push(Place {
                        layer,
                        head,
                        sequence,
                    });
                }
            }
            x_bld = block.forward(x_bld);
        }
    }
    if found.is_empty() {
        return Err(TrainError::Mismatch(
            "the teacher has no attention, or the text is shorter than one sequence".into(),
        ));
    }
    let all = Tensor::cat(found, 0);
    let sum: f64 = all.clone().abs().sum().into_data().iter::<f64>().sum();
    if !sum.is_finite() {
        return Err(TrainError::Mismatch(
            "the teacher's attention is not finite; its weights are damaged".into(),
        ));
    }
    Ok((all, places))
}
