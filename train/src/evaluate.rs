//! Perplexity on held-out text, and what a model writes.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use datasets::{TokenWindows, Tokenizer};
use kernels::KernelBackend;
use model::{CausalLm, widen};

use crate::config::Evaluation;
use crate::error::TrainError;
use crate::parallel_passes::ParallelPasses;
use crate::stages::head;

/// Consecutive rows of ids or labels, as `[rows, context]`.
pub fn ids<B: Backend>(ids: &[i32], context: usize, device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [ids.len() / context, context];
    Tensor::from_data(TensorData::new(ids.to_vec(), shape), device)
}

/// `exp` of the mean cross-entropy, in nats, of every next token of `windows`; each window is read from an empty state.
/// `config` limits the number of windows and gives the batch size. `None` if `stop`, which is called before each batch,
/// returns true.
///
/// # Errors
/// [`TrainError::Data`] if the held-out text cannot be read.
pub fn perplexity<B: KernelBackend>(
    model: &CausalLm<B>,
    windows: &TokenWindows,
    config: &Evaluation,
    device: &B::Device,
    stop: impl Fn() -> bool,
) -> Result<Option<f64>, TrainError> {
    let all = windows.count() as usize;
    let mut left = match config.windows {
        0 => all,
        some => some.min(all),
    };
    let parallel = ParallelPasses::new::<B>(left.div_ceil(config.batch));
    let (mut failure, mut stopped) = (None, false);
    let batches = windows.sequential(config.batch).map_while(|batch| {
        let batch = batch.map_err(|error| failure = Some(error)).ok()?;
        let rows = batch.batch.min(left);
        left -= rows;
        stopped = rows > 0 && stop();
        (rows > 0 && !stopped).then_some((rows, batch))
    });
    // Parallel passes ask for further items after the end, and `stop` must not be called again then.
    let batches = batches.fuse();
    let (mut total, mut tokens) = (0.0, 0);
    parallel.run(
        batches,
        |(rows, batch)| {
            let t = rows * batch.context;
            let tensor = |values: &[i32]| ids::<B>(&values[..t], batch.context, device);
            let features = model.features(tensor(&batch.ids));
            let labels = tensor(&batch.labels).reshape([t]);
            let (mut sizes, mut means) = (vec![], vec![]);
            head::forward(
                &model.head(),
                features,
                head::BLOCK,
                |start, logits_nv: Tensor<B, 2>| {
                    let n = logits_nv.dims()[0];
                    let labels = labels.clone().narrow(0, start, n);
                    means.push(kernels::cross_entropy(widen(logits_nv), labels));
                    sizes.push(n as f64);
                },
            );
            let means = Tensor::cat(means, 0).into_data();
            let sum: f64 = means
                .iter::<f64>()
                .zip(sizes)
                .map(|(mean, n)| mean * n)
                .sum();
            (sum, t)
        },
        |(sum, t)| {
            total += sum;
            tokens += t;
        },
    );
    match failure {
        Some(error) => Err(error.into()),
        None if stopped => Ok(None),
        None => Ok(Some((total / tokens as f64).exp())),
    }
}

/// The text that `model` writes after `prompt`, with the likeliest token each time, up to `tokens` tokens or to the end
/// of the text. The prompt begins with the tokens that the tokenizer puts before prompts.
///
/// # Errors
/// [`TrainError::Data`] if the tokenizer fails.
pub fn continuation<B: KernelBackend>(
    model: &CausalLm<B>,
    tokenizer: &Tokenizer,
    prompt: &str,
    tokens: usize,
    device: &B::Device,
) -> Result<String, TrainError> {
    let prompt: Vec<i32> = tokenizer
        .encode_prompt(prompt)?
        .into_iter()
        .map(|id| id as i32)
        .collect();
    let n = prompt.len();
    let mut state = model.new_state(1, device);
    let prompt = Tensor::<B, 2, Int>::from_data(TensorData::new(prompt, [1, n]), device);
    let mut logits = model.prefill(prompt, &mut state);
    let known = tokenizer.vocab_size().min(model.vocab_size());
    let mut written = vec![];
    while written.len() < tokens {
        let next = logits.narrow(1, 0, known).argmax(1).reshape([1]);
        let id = next.to_data().iter::<i64>().next().unwrap_or_default() as u32;
        if Some(id) == tokenizer.end_of_text() {
            break;
        }
        written.push(id);
        logits = model.step(next, &mut state);
    }
    Ok(tokenizer.decode(&written)?)
}
