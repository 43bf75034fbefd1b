//! A student's layers between ids and head, in stage 3: the forward pass, and the backward pass block by block.
//!
//! Each block has its own autodiff graph. The forward pass keeps it, or, with `recompute`, the backward pass builds it
//! again. So a block's gradients are passed on before those of the block below it are computed.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use kernels::{DocumentStarts, TrainBackend};
use model::{PhiMamba, TokenRows};

use crate::gradients::Sink;

/// The layers between ids and head after the forward pass, with all that their backward pass needs.
pub(super) struct Body<B: TrainBackend> {
    tokens: TokenRows<B::InnerBackend>,
    blocks: Vec<Passed<B>>,
    /// The last normalisation.
    norm: Passed<B>,
    features: Tensor<B::InnerBackend, 3>,
}

/// The input of a module, where its graph begins, and its output on that graph; `None` if the backward pass builds the
/// graph again.
struct Passed<B: TrainBackend> {
    entering: Tensor<B, 3>,
    leaving: Option<Tensor<B, 3>>,
}

impl<B: TrainBackend> Body<B> {
    pub(super) fn forward(
        student: &PhiMamba<B>,
        tokens: TokenRows<B::InnerBackend>,
        recompute: bool,
    ) -> Self {
        let backbone = &student.backbone;
        let documents = tokens.documents.clone().map(DocumentStarts::from_inner);
        let x_bld = backbone.embedding.valid().forward(tokens.ids.clone());
        // Whether an earlier part trains: the backward pass must then reach it.
        let (mut x_bld, mut goes_on) = (x_bld, trains(&backbone.embedding));
        let mut blocks = vec![];
        for layer in &backbone.layers {
            let passed;
            (passed, x_bld) = if recompute {
                let y_bld = layer.valid().forward((x_bld.clone(), &tokens.documents));
                (Passed::without_graph(x_bld, goes_on), y_bld)
            } else {
                let forward = |x: Tensor<B, 3>| layer.forward((x, &documents));
                Passed::on_graph(x_bld, goes_on, forward)
            };
            blocks.push(passed);
            goes_on |= trains(layer);
        }
        let norm = &backbone.final_layernorm;
        let (norm, features) = if recompute {
            let features = norm.valid().forward(x_bld.clone());
            (Passed::without_graph(x_bld, goes_on), features)
        } else {
            Passed::on_graph(x_bld, goes_on, |x| norm.forward(x))
        };
        Self {
            tokens,
            blocks,
            norm,
            features,
        }
    }

    /// The input of the head, `[b, l, d]`.
    pub(super) fn features(&self) -> Tensor<B::InnerBackend, 3> {
        self.features.clone()
    }

    /// Computes and passes on the gradients of everything before the head, from the gradient of the features.
    pub(super) fn backward(
        self,
        student: &PhiMamba<B>,
        dfeatures: Tensor<B::InnerBackend, 3>,
        gradients: &mut dyn Sink<B::InnerBackend>,
    ) {
        let backbone = &student.backbone;
        if !trains(backbone) {
            return;
        }
        let TokenRows { ids, documents } = self.tokens;
        let documents = documents.map(DocumentStarts::from_inner);
        let norm = &backbone.final_layernorm;
        let mut dx_bld = self
            .norm
            .back(norm, |x| norm.forward(x), dfeatures, gradients);
        for (layer, passed) in backbone.layers.iter().zip(self.blocks).rev() {
            let Some(dy_bld) = dx_bld else { return };
            let forward = |x: Tensor<B, 3>| layer.forward((x, &documents));
            dx_bld = passed.back(layer, forward, dy_bld, gradients);
        }
        if let Some(dx_bld) = dx_bld {
            let embedded = backbone.embedding.forward(Tensor::from_inner(ids));
            let reached = B::with_gradient(embedded, Tensor::from_inner(dx_bld)).backward();
            gradients.add::<B, _>(&backbone.embedding, &reached);
        }
    }
}

impl<B: TrainBackend> Passed<B> {
    /// A module that has read `x` and keeps no graph. `goes_on`: the backward pass needs the gradient of `x`.
    fn without_graph(x_bld: Tensor<B::InnerBackend, 3>, goes_on: bool) -> Self {
        Self {
            entering: Tensor::<B, 3>::from_inner(x_bld).set_require_grad(goes_on),
            leaving: None,
        }
    }

    /// The same with a graph, and the output `forward(x)`.
    fn on_graph(
        x_bld: Tensor<B::InnerBackend, 3>,
        goes_on: bool,
        forward: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> (Self, Tensor<B::InnerBackend, 3>) {
        let passed = Self::without_graph(x_bld, goes_on);
        let y_bld = forward(passed.entering.clone());
        let value_bld = y_bld.clone().inner();
        let leaving = Some(y_bld);
        (Self { leaving, ..passed }, value_bld)
    }

    /// Goes backward from `dy` through the graph, which is built by `forward` if it was not kept. Passes on the
    /// gradients of the parameters of `module`, and returns the gradient of the input if an earlier part needs it. The
    /// graph is freed.
    fn back<M: Module<B>>(
        self,
        module: &M,
        forward: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
        dy_bld: Tensor<B::InnerBackend, 3>,
        gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Option<Tensor<B::InnerBackend, 3>> {
        let Self { entering, leaving } = self;
        let y_bld = leaving.unwrap_or_else(|| forward(entering.clone()));
        let mut reached = B::with_gradient(y_bld, Tensor::from_inner(dy_bld)).backward();
        let dx_bld = entering.is_require_grad().then(|| {
            let dx_bld = entering.grad_remove(&mut reached);
            dx_bld.expect("the output depends on the input")
        });
        gradients.add::<B, _>(module, &reached);
        dx_bld
    }
}

/// Whether any parameter of `module` is trained.
fn trains<B: TrainBackend, M: Module<B>>(module: &M) -> bool {
    struct Trains(bool);
    impl<B: TrainBackend> ModuleVisitor<B> for Trains {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
            self.0 |= parameter.val().is_require_grad();
        }
    }
    let mut found = Trains(false);
    module.visit(&mut found);
    found.0
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::ParamId;
    use burn::tensor::{Int, TensorData};
    use kernels::runtime::Flex;
    use model::{AttentionConfig, DiscreteMamba2Config, Family, Part, PhiConfig, named_parameters};

    use super::*;
    use crate::gradients::Gradients;
    use crate::stages::{Rates, train_parts};

    type B = Autodiff<Flex>;

    const SHAPE: [usize; 3] = [2, 8, 16];

    /// A mixer, attention and a mixer.
    fn student() -> PhiMamba<B> {
        let teacher = PhiConfig {
            vocab_size: 24,
            hidden_size: SHAPE[2],
            intermediate_size: 32,
            num_hidden_layers: 3,
            attention: AttentionConfig {
                n_heads: 2,
                n_kv_heads: 2,
                ..PhiConfig::default().attention
            },
            ..PhiConfig::default()
        };
        let mixer = DiscreteMamba2Config {
            d_state: 8,
            n_v_heads: 2,
            n_qk_heads: 2,
            chunk_size: 4,
            ..DiscreteMamba2Config::default()
        };
        let config = teacher.student(&mixer.into(), &[1]).expect("a student");
        PhiMamba::init(&config, 5, &Default::default())
    }

    fn tensor(frequency: f32) -> Tensor<Flex, 3> {
        let n = SHAPE.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (frequency * i as f32).sin()).collect();
        Tensor::from_data(TensorData::new(values, SHAPE), &Default::default())
    }

    /// The gradients of everything before the head, computed in one backward pass.
    fn on_one_graph<B: TrainBackend>(
        student: &PhiMamba<B>,
        ids: Tensor<B::InnerBackend, 2, Int>,
        dfeatures: Tensor<B::InnerBackend, 3>,
    ) -> Gradients<B::InnerBackend> {
        let mut gradients = Gradients::default();
        if trains(&student.backbone) {
            let features = student.features(Tensor::<B, 2, Int>::from_inner(ids));
            let reached = B::with_gradient(features, Tensor::from_inner(dfeatures)).backward();
            gradients.add::<B, _>(&student.backbone, &reached);
        }
        gradients
    }

    /// The bits of the gradients of all parameters of `student`.
    fn bits(
        student: &PhiMamba<B>,
        mut gradients: Gradients<Flex>,
    ) -> Vec<(String, Option<Vec<u32>>)> {
        let parameters = named_parameters(student, Default::default()).into_iter();
        let bits = |id: ParamId| {
            let gradient = gradients.take(id)?;
            Some(
                gradient
                    .into_data()
                    .iter::<f32>()
                    .map(f32::to_bits)
                    .collect(),
            )
        };
        let mut bits = bits;
        parameters
            .map(|parameter| (parameter.path, bits(parameter.id)))
            .collect()
    }

    /// Counts the modules that have passed on their gradients.
    #[derive(Default)]
    struct Counted {
        gradients: Gradients<Flex>,
        pauses: usize,
    }

    impl Sink<Flex> for Counted {
        fn take_in(&mut self, id: ParamId, gradient: Tensor<Flex, 1>) {
            self.gradients.take_in(id, gradient);
        }

        fn pause(&mut self) {
            self.pauses += 1;
        }
    }

    /// For all choices of trained parts, with kept and with rebuilt graphs: embedding, three blocks and the last
    /// normalisation pass on their gradients one by one, down to the first part that trains.
    #[test]
    fn blocks_go_back_one_by_one_with_the_bits_of_one_graph() {
        let ids: Vec<i32> = (0..16).map(|i| 7 * i % 24).collect();
        let ids =
            Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [2, 8]), &Default::default());
        let dfeatures = tensor(0.3);
        for (parts, pauses) in [
            (&Part::ALL[..], 5),
            (&[Part::Mixer], 4),
            (&[Part::Embedding], 5),
            (&[Part::Norm], 4),
            (&[Part::Head], 0),
        ] {
            let student = train_parts(student(), &Rates::new(parts, 1.0));
            let whole = bits(
                &student,
                on_one_graph(&student, ids.clone(), dfeatures.clone()),
            );
            for recompute in [false, true] {
                let body = Body::forward(&student, ids.clone().into(), recompute);
                let mut found = Counted::default();
                body.backward(&student, dfeatures.clone(), &mut found);
                assert_eq!(found.pauses, pauses, "{parts:?}, recompute {recompute}");
                let found = bits(&student, found.gradients);
                assert_eq!(found.len(), whole.len());
                for (found, whole) in found.iter().zip(&whole) {
                    assert!(
                        found == whole,
                        "{parts:?}, recompute {recompute}: {}",
                        found.0
                    );
                }
            }
        }
    }
}
