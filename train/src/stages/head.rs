//! The heads of student and teacher and the loss, computed for a block of tokens at a time.
//!
//! Phi-1.5 has 51,200 logits for each token. For 8,192 tokens, the logits of both networks and their gradient would be
//! 5 GB in f32, for numbers that are read once. All arrays of a block are freed before the next block is computed; only
//! the gradient of the features and the sum of the weight's gradient remain.

use burn::module::AutodiffModule;
use burn::tensor::{DType, Int, Tensor};
use kernels::dense::linear::Linear as _;
use kernels::profile::{Kind, timed};
use kernels::{KernelBackend, TrainBackend};
use model::{Linear, widen};

use crate::gradients::Sink;

/// The number of tokens whose logits exist at the same time: enough to fill a GPU with one product.
pub(crate) const BLOCK: usize = 2048;

/// The largest number of logits of one network at the same time in half precision, 2 GiB; but at least [`BLOCK`]
/// tokens.
const HALF_PRECISION: usize = 1 << 30;

/// The number of `tokens`, with `v` logits each, in a block. In half precision, which is only used on GPUs with much
/// memory, blocks are as large as [`HALF_PRECISION`] allows, and equal: each block but the first reads and writes the
/// sum of the weight's gradient in f32.
pub(super) fn block(tokens: usize, v: usize, dtype: DType) -> usize {
    if dtype.size() != 2 {
        return BLOCK;
    }
    let most = (HALF_PRECISION / v).max(BLOCK);
    tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1)
}

/// The largest number of logits of one network at the same time for a loss in tensor operations, which holds several
/// arrays of that size in f32, 512 MiB each.
const TENSOR_OPERATIONS: usize = 1 << 27;

/// The number of tokens in a block for such a loss, which does not depend on the dtype of the logits.
pub(super) fn block_in_f32(v: usize) -> usize {
    (TENSOR_OPERATIONS / v).clamp(1, BLOCK)
}

/// The teacher's logits, computed for a block of tokens at a time.
pub(super) struct TeacherLogits<'a, B: KernelBackend> {
    head: &'a Linear<B>,
    features_td: Tensor<B, 2>,
    /// Whether several students read them.
    is_shared: bool,
    /// The logits `[t, v]` of all tokens, if these are one block and several students read them.
    all_tv: Option<Tensor<B, 2>>,
}

impl<'a, B: KernelBackend> TeacherLogits<'a, B> {
    /// The logits that `head` computes from `features [b, l, d]`. If several students read them and all tokens are one
    /// block, they are kept for the next student; several blocks are computed again for each student.
    pub(super) fn new(head: &'a Linear<B>, features: Tensor<B, 3>, is_shared: bool) -> Self {
        let [b, l, d] = features.dims();
        Self {
            head,
            features_td: features.reshape([b * l, d]),
            is_shared,
            all_tv: None,
        }
    }

    /// The logits of `n` tokens from `start` on, `[n, v]`.
    fn block(&mut self, start: usize, n: usize) -> Tensor<B, 2> {
        let is_all = n == self.features_td.dims()[0];
        if let (Some(all_tv), true) = (&self.all_tv, is_all) {
            return all_tv.clone();
        }
        let features_nd = self.features_td.clone().narrow(0, start, n);
        let logits_nv = self.head.forward(features_nd);
        if self.is_shared && is_all {
            self.all_tv = Some(logits_nv.clone());
        }
        logits_nv
    }
}

/// The ids of the next tokens, `[n]`, if the loss needs them.
type Labels<B> = Option<Tensor<B, 1, Int>>;

/// The mean loss over all tokens, `[1]`, and its gradient with respect to the student's `features [b, l, d]`; the
/// gradients of the student's head are added to the given ones. For each block of `block` tokens, `loss` gets the
/// logits of teacher and student, `[n, v]`, and the labels of these tokens. It returns the block's part of the mean
/// loss, and the gradient of that part with respect to the student's logits.
pub(super) fn pass<B: TrainBackend>(
    (student, teacher): (&Linear<B>, &mut TeacherLogits<'_, B::InnerBackend>),
    features: Tensor<B::InnerBackend, 3>,
    labels: Labels<B::InnerBackend>,
    loss: impl Fn(
        Tensor<B::InnerBackend, 2>,
        Tensor<B::InnerBackend, 2>,
        Labels<B::InnerBackend>,
    ) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 2>),
    block: usize,
    gradients: &mut dyn Sink<B::InnerBackend>,
) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 3>) {
    let loss = |start: usize, student_nv: Tensor<B::InnerBackend, 2>| {
        let n = student_nv.dims()[0];
        let teacher_nv = teacher.block(start, n);
        let labels = labels.clone().map(|labels| labels.narrow(0, start, n));
        loss(student_nv, teacher_nv, labels)
    };
    pass_of_student(student, features, loss, block, gradients)
}

/// The same for a `loss` that does not need the teacher's logits: it gets the number of the block's first token and the
/// student's logits of the block.
pub(super) fn pass_of_student<B: TrainBackend>(
    student: &Linear<B>,
    features: Tensor<B::InnerBackend, 3>,
    mut loss: impl FnMut(
        usize,
        Tensor<B::InnerBackend, 2>,
    ) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 2>),
    block: usize,
    gradients: &mut dyn Sink<B::InnerBackend>,
) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 3>) {
    let [b, l, d] = features.dims();
    let t = b * l;
    let student_td = features.reshape([t, d]);
    let bias = student.bias.as_ref();
    // The gradient of the features is always computed: it is not known here whether any earlier part trains.
    let wanted = [
        true,
        student.weight.val().is_require_grad(),
        bias.is_some_and(|bias| bias.val().is_require_grad()),
    ];
    let head = student.valid();
    let (mut sum, mut dfeatures) = (None, vec![]);
    let (mut dweight, mut dbias) = (None, None);
    for start in (0..t).step_by(block) {
        let n = block.min(t - start);
        let x_nd = student_td.clone().narrow(0, start, n);
        let (part, dlogits_nv) = loss(start, head.forward(x_nd.clone()));
        let (dx_nd, dw, db) = timed(Kind::Products, || {
            B::InnerBackend::linear_backward(x_nd, head.weight.val(), dlogits_nv, wanted)
        });
        sum = added(sum, Some(part));
        dfeatures.extend(dx_nd);
        dweight = added(dweight, dw);
        dbias = added(dbias, db);
    }
    if let Some(dweight) = dweight {
        gradients.add_parameter(student.weight.id, dweight);
    }
    if let (Some(bias), Some(dbias)) = (bias, dbias) {
        gradients.add_parameter(bias.id, dbias);
    }
    let dfeatures = match dfeatures.len() {
        1 => dfeatures.swap_remove(0),
        _ => Tensor::cat(dfeatures, 0),
    };
    let sum = sum.expect("a batch has tokens");
    (sum, dfeatures.reshape([b, l, d]))
}

/// Computes only the logits of `features [b, l, d]`: `then` gets the number of a block's first token and the block's
/// logits, `[n, v]`, before the next block is computed.
pub(crate) fn forward<B: KernelBackend>(
    head: &Linear<B>,
    features: Tensor<B, 3>,
    block: usize,
    mut then: impl FnMut(usize, Tensor<B, 2>),
) {
    let [b, l, d] = features.dims();
    let features_td = features.reshape([b * l, d]);
    for start in (0..b * l).step_by(block) {
        let n = block.min(b * l - start);
        then(start, head.forward(features_td.clone().narrow(0, start, n)));
    }
}

/// The sum; in f32 if one of several summands is in half precision.
fn added<B: KernelBackend, const D: usize>(
    sum: Option<Tensor<B, D>>,
    part: Option<Tensor<B, D>>,
) -> Option<Tensor<B, D>> {
    match (sum, part) {
        (Some(sum), Some(part)) => Some(widen(sum) + widen(part)),
        (sum, part) => sum.or(part),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::TensorData;
    use burn::tensor::backend::Backend;
    use kernels::DistillationWeights;
    use kernels::runtime::Flex;
    use model::{AttentionConfig, Phi, PhiConfig};

    use super::*;
    use crate::gradients::Gradients;

    const SHAPE: [usize; 3] = [2, 8, 16];
    const VOCABULARY: usize = 24;

    fn head<B: Backend>(seed: u64) -> Linear<B> {
        let config = PhiConfig {
            vocab_size: VOCABULARY,
            hidden_size: SHAPE[2],
            intermediate_size: SHAPE[2],
            num_hidden_layers: 1,
            attention: AttentionConfig {
                n_heads: 2,
                n_kv_heads: 2,
                ..PhiConfig::default().attention
            },
            ..PhiConfig::default()
        };
        Phi::init(&config, seed, &Default::default())
            .head()
            .into_owned()
    }

    /// Features that are large enough to make the logits differ clearly, although these heads have small weights.
    fn features(frequency: f32) -> Tensor<Flex, 3> {
        let n = SHAPE.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|i| 30.0 * (frequency * i as f32).sin())
            .collect();
        Tensor::from_data(TensorData::new(values, SHAPE), &Default::default())
    }

    fn values<const D: usize>(x: Tensor<Flex, D>) -> Vec<f64> {
        x.into_data().iter().collect()
    }

    fn assert_close(name: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        assert!(largest > 0.0, "{name} is zero");
        for (found, expected) in found.iter().zip(expected) {
            // Sums of 16 terms in f32, in another order.
            let error = (found - expected).abs();
            assert!(error <= 1e-5 * largest, "{name}: {found}, not {expected}");
        }
    }

    /// Loss, gradient to the features, and those of weight and bias.
    fn passed(block: usize, hard: f64) -> [Vec<f64>; 4] {
        let (student, teacher) = (head::<Autodiff<Flex>>(1), head::<Flex>(2));
        let labels: Vec<i32> = (0..16).map(|i| 5 * i % VOCABULARY as i32).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [16]), &Default::default());
        let weights = DistillationWeights {
            temperature: 1.5,
            hard,
        };
        let mut gradients = Gradients::default();
        let labels = (hard > 0.0).then_some(labels);
        let loss = |student, teacher, labels| {
            kernels::distillation_block(student, teacher, labels, weights, 16)
        };
        let mut teacher = TeacherLogits::new(&teacher, features(1.1), false);
        let heads = (&student, &mut teacher);
        let (loss, dfeatures) = pass(heads, features(0.7), labels, loss, block, &mut gradients);
        let bias = student.bias.as_ref().expect("a bias").id;
        let [weight, bias] = [student.weight.id, bias].map(|id| gradients.take(id));
        [
            values(loss),
            values(dfeatures),
            values(weight.expect("a gradient")),
            values(bias.expect("a gradient")),
        ]
    }

    #[test]
    fn blocks_add_up_to_the_whole() {
        const NAMES: [&str; 4] = ["loss", "features", "weight", "bias"];
        for hard in [0.0, 0.3] {
            let whole = passed(16, hard);
            for block in [1, 5, 15, 100] {
                for ((name, found), expected) in NAMES.iter().zip(passed(block, hard)).zip(&whole) {
                    let name = format!("{name}, hard {hard}, blocks of {block}");
                    assert_close(&name, &found, expected);
                }
            }
        }
    }

    /// Logits that are kept for the next student are the same as computed ones.
    #[test]
    fn a_teacher_s_logits_are_kept_whole() {
        let teacher = head::<Flex>(2);
        let mut alone = TeacherLogits::new(&teacher, features(0.7), false);
        let mut shared = TeacherLogits::new(&teacher, features(0.7), true);
        for (start, n) in [(0, 16), (3, 5), (0, 16), (11, 5), (0, 3)] {
            let expected = values(alone.block(start, n));
            assert_eq!(values(shared.block(start, n)), expected, "{n} from {start}");
        }
        assert!(alone.all_tv.is_none() && shared.all_tv.is_some());
    }

    #[test]
    fn blocks_are_as_large_as_memory_allows() {
        assert_eq!(block(16_384, 49_152, DType::F32), BLOCK);
        assert_eq!(block(16_384, 49_152, DType::BF16), 16_384);
        assert_eq!(block(32_768, 49_152, DType::BF16), 16_384);
        assert_eq!(block(8191, 1 << 20, DType::F16), 2048);
        assert_eq!(block(0, 49_152, DType::BF16), 1);
        assert_eq!(block_in_f32(49_152), BLOCK);
        assert_eq!(block_in_f32(151_936), 883);
        assert_eq!(block_in_f32(usize::MAX), 1);
    }

    #[test]
    fn logits_come_block_by_block() {
        let teacher = head::<Flex>(2);
        let whole = values(teacher.forward(features(0.7)));
        let (mut starts, mut found) = (vec![], vec![]);
        forward(&teacher, features(0.7), 5, |start, logits_nv| {
            starts.push(start);
            found.extend(values(logits_nv));
        });
        assert_eq!(starts, [0, 5, 10, 15]);
        assert_close("logits", &found, &whole);
    }
}
