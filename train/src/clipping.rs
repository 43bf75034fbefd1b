//! Clipping of gradients by parts and by layers, in addition to the global norm.
//!
//! The global norm is dominated by its largest part. If a few layers have gradients of thousands, as at the beginning
//! of the hidden-state alignment of a calibrated student, global clipping scales all other gradients to almost nothing.
//! Here each part of the student, and then each layer, is first clipped to its own norm; then the global norm is
//! clipped as usual.
//!
//! ```text
//! g1 = g  min(1, clip_part  / (|g of its part| + 1e-6))
//! g2 = g1 min(1, clip_layer / (|g1 of its layer| + 1e-6))
//! g3 = g2 min(1, clip_norm  / (|g2| + 1e-6))
//! ```
//!
//! All computations stay on the device. Embedding, head and last normalisation, which belong to no layer, are clipped
//! as one more layer.

use std::collections::{BTreeMap, HashMap};

use burn::module::ParamId;
use burn::tensor::{Tensor, TensorData};
use kernels::{KernelBackend, TrainBackend};
use model::{Layout, Part, PhiMamba, named_parameters};

use crate::config;
use crate::gradients::Gradients;

/// Added to norms, as PyTorch's `clip_grad_norm_` does.
const EPSILON: f64 = 1e-6;

/// Whether the parameters of two places are clipped together.
type Together = fn(&Place, &Place) -> bool;

/// The part and the layer that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its part.
    pub part: Part,
    /// Its layer, from 0; `None` outside of layers.
    pub layer: Option<usize>,
}

impl Place {
    /// That of the parameter at `path` in a [`CausalLm`](model::CausalLm).
    pub fn of(path: &str) -> Self {
        let in_layers = path.split_once("layers.").map(|(_, rest)| rest);
        let number = in_layers.and_then(|rest| rest.split('.').next());
        Self {
            part: Part::of(path),
            layer: number.and_then(|number| number.parse().ok()),
        }
    }
}

/// The place of every parameter of `student`, by its id.
pub fn places_of<B: TrainBackend>(student: &PhiMamba<B>) -> HashMap<ParamId, Place> {
    let parameters = named_parameters(student, Layout::default()).into_iter();
    let places = parameters.map(|parameter| (parameter.id, Place::of(&parameter.path)));
    places.collect()
}

impl<B: KernelBackend> Gradients<B> {
    /// Clips each part and each layer, and returns the norm of the clipped gradients, `[1]`; `None` if neither kind of
    /// clipping is configured, or if there are no gradients. The gradients are sums over `passes` passes, but it is the
    /// norm of their mean that is clipped; the returned norm is that of the sums. Parameters without a place are not
    /// clipped, and are not part of the returned norm.
    ///
    /// If a gradient is not finite, the norm is not finite either.
    pub fn clip(
        &mut self,
        config: &config::Optimizer,
        places: &HashMap<ParamId, Place>,
        passes: usize,
    ) -> Option<Tensor<B, 1>> {
        if !clips_cells(config) {
            return None;
        }
        let squares = self.squares_of(|id| places.get(&id).copied());
        self.clip_by(squares, config, places, passes)
    }

    /// The same, given the squared norm of each cell, which is one part of one layer. If the gradients are a rank's
    /// shares, `squares` must be those of all ranks together. `None` if there are no cells.
    pub(crate) fn clip_by(
        &mut self,
        squares: BTreeMap<Place, Tensor<B, 1>>,
        config: &config::Optimizer,
        places: &HashMap<ParamId, Place>,
        passes: usize,
    ) -> Option<Tensor<B, 1>> {
        let place = |id| places.get(&id).copied();
        let cells: Vec<Place> = squares.keys().copied().collect();
        if cells.is_empty() {
            return None;
        }
        let mut squares_c = Tensor::cat(squares.into_values().collect(), 0);
        let mut factors_c = squares_c.ones_like();
        let together: [(f64, Together); 2] = [
            (config.clip_part, |a, b| a.part == b.part),
            (config.clip_layer, |a, b| a.layer == b.layer),
        ];
        for (most, is_together) in together {
            if most <= 0.0 {
                continue;
            }
            let norms_c = norms(squares_c.clone(), &cells, is_together) * (1.0 / passes as f64);
            let factor_c = ((norms_c + EPSILON).recip() * most).clamp_max(1.0);
            squares_c = squares_c * factor_c.clone() * factor_c.clone();
            factors_c = factors_c * factor_c;
        }
        let of_cells: BTreeMap<Place, Tensor<B, 1>> = (cells.iter().enumerate())
            .map(|(i, cell)| (*cell, factors_c.clone().narrow(0, i, 1)))
            .collect();
        self.scale(|id| of_cells.get(&place(id)?).cloned());
        Some(squares_c.sum().sqrt())
    }
}

/// Whether clipping by parts or by layers is configured.
pub(crate) fn clips_cells(config: &config::Optimizer) -> bool {
    config.clip_part > 0.0 || config.clip_layer > 0.0
}

/// For each cell, the norm of all cells that are clipped together with it, from the squared norm of each cell, `[c]`.
fn norms<B: KernelBackend>(
    squares_c: Tensor<B, 1>,
    cells: &[Place],
    is_together: Together,
) -> Tensor<B, 1> {
    let c = cells.len();
    let mask: Vec<f32> = (cells.iter())
        .flat_map(|a| {
            cells
                .iter()
                .map(move |b| f32::from(u8::from(is_together(a, b))))
        })
        .collect();
    let options = (&squares_c.device(), squares_c.dtype());
    let mask_cc = Tensor::<B, 2>::from_data(TensorData::new(mask, [c, c]), options);
    (mask_cc * squares_c.reshape([1, c]))
        .sum_dim(1)
        .reshape([c])
        .sqrt()
}

#[cfg(test)]
mod tests {
    use ::tests::networks::Exact;

    use super::*;
    use crate::config::{Config, Source};

    #[test]
    fn a_path_has_its_layer() {
        for (path, part, layer) in [
            (
                "backbone.layers.12.mixer.DiscreteMamba2.d",
                Part::Mixer,
                Some(12),
            ),
            (
                "backbone.layers.0.input_layernorm.weight",
                Part::Norm,
                Some(0),
            ),
            ("backbone.final_layernorm.weight", Part::Norm, None),
            ("backbone.embedding.weight", Part::Embedding, None),
            ("lm_head.weight", Part::Head, None),
        ] {
            assert_eq!(Place::of(path), Place { part, layer }, "{path}");
        }
    }

    /// Two mixers and an MLP of layers 0 and 1, and an embedding, by hand.
    #[test]
    fn norms_by_hand() {
        let place = |part, layer| Place { part, layer };
        let cells = [
            (place(Part::Mixer, Some(0)), vec![3.0, 4.0]),
            (place(Part::Mixer, Some(1)), vec![0.0, 12.0]),
            (place(Part::Mlp, Some(1)), vec![1.0]),
            (place(Part::Embedding, None), vec![0.5]),
        ];
        let ids: Vec<ParamId> = cells.iter().map(|_| ParamId::new()).collect();
        let places: HashMap<ParamId, Place> = ids
            .iter()
            .zip(&cells)
            .map(|(id, (place, _))| (*id, *place))
            .collect();
        // Sums of two passes.
        let gradients = || {
            let mut gradients = Gradients::<Exact>::default();
            for (id, (_, mean)) in ids.iter().zip(&cells) {
                let sum: Vec<f64> = mean.iter().map(|value| 2.0 * value).collect();
                let n = sum.len();
                let sum =
                    Tensor::<Exact, 1>::from_data(TensorData::new(sum, [n]), &Default::default());
                gradients.add_parameter(*id, sum);
            }
            gradients
        };
        let config = |clip_part, clip_layer| {
            let mut config = Config::load(Source::Preset("tiny"), &[])
                .expect("tiny")
                .optimizer;
            (config.clip_part, config.clip_layer) = (clip_part, clip_layer);
            config
        };
        // The mixers' norm is 13, the MLP's 1, the embedding's 0.5; then, with the mixers at 2, layer 0 has 10/13, layer 1
        // the root of (24/13)^2 + 1, and what has no layer 0.5.
        let layer_1 = ((24.0_f64 / 13.0).powi(2) + 1.0).sqrt();
        for (part, layer, factors) in [
            (2.0, 0.0, [2.0 / 13.0, 2.0 / 13.0, 1.0, 1.0]),
            (
                0.0,
                4.0,
                [0.8, 4.0 / 145.0_f64.sqrt(), 4.0 / 145.0_f64.sqrt(), 1.0],
            ),
            (
                2.0,
                1.5,
                [2.0 / 13.0, 3.0 / 13.0 / layer_1, 1.5 / layer_1, 1.0],
            ),
            (100.0, 100.0, [1.0; 4]),
        ] {
            let mut clipped = gradients();
            let norm = clipped
                .clip(&config(part, layer), &places, 2)
                .expect("gradients");
            let norm: f64 = norm.into_scalar();
            let mut squares = 0.0;
            for ((id, (_, mean)), factor) in ids.iter().zip(&cells).zip(factors) {
                let found = clipped.take(*id).expect("a gradient").into_data();
                for (found, mean) in found.iter::<f64>().zip(mean) {
                    let expected = 2.0 * mean * factor;
                    // 1e-6 is added to norms.
                    assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
                    squares += found * found;
                }
            }
            assert!((norm - squares.sqrt()).abs() < 1e-9, "{norm}");
        }
        let mut untouched = gradients();
        assert!(untouched.clip(&config(0.0, 0.0), &places, 2).is_none());
    }

    #[test]
    fn what_is_not_finite_shows_in_the_norm() {
        let id = ParamId::new();
        let place = Place {
            part: Part::Mlp,
            layer: Some(0),
        };
        let mut config = Config::load(Source::Preset("tiny"), &[])
            .expect("tiny")
            .optimizer;
        config.clip_layer = 1.0;
        for bad in [f64::NAN, f64::INFINITY] {
            let mut gradients = Gradients::<Exact>::default();
            let values = TensorData::new(vec![1.0, bad], [2]);
            gradients.add_parameter(
                id,
                Tensor::<Exact, 1>::from_data(values, &Default::default()),
            );
            let norm = gradients
                .clip(&config, &[(id, place)].into(), 1)
                .expect("one");
            assert!(!norm.into_scalar().is_finite());
        }
    }
}
