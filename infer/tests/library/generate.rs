//! Generation from end to end on the CPU: real weights, recorded texts, every way to stop.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use datasets::Tokenizer;
use infer::{
    GenerateError, GenerateOptions, Generation, Sampler, SamplingError, SamplingSettings, Stop,
};
use kernels::runtime::Flex;
use model::CausalLm;
use safetensors::SafeTensors;

use crate::support::{student, teacher_folder};

const PROMPT: &str = "It was the best of times";
const PROMPT_IDS: [u32; 6] = [1931, 355, 260, 1283, 269, 1754];

fn device() -> Device<Flex> {
    Device::<Flex>::default()
}

fn teacher() -> CausalLm<Flex> {
    model::load_any(teacher_folder(), &device()).unwrap().1
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingSettings::default(),
        max_tokens,
        vocab_size: usize::MAX,
        end_tokens: [].into(),
        end_of_text: None,
        max_positions: None,
    }
}

fn drawn(seed: u64) -> GenerateOptions {
    let mut options = options(48);
    options.sampling.temperature = 1.0;
    options.sampling.seed = seed;
    options
}

fn generation<'m>(
    model: &'m CausalLm<Flex>,
    prompt: &[u32],
    options: GenerateOptions,
) -> Result<Generation<'m, Flex>, GenerateError> {
    Generation::new(model, &device(), prompt, options)
}

fn tokens(model: &CausalLm<Flex>, prompt: &[u32], options: GenerateOptions) -> Vec<u32> {
    let generation = generation(model, prompt, options).unwrap();
    generation.collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_teacher_continues_as_hugging_face_s_does() {
    let tokenizer = Tokenizer::from_folder(teacher_folder()).unwrap();
    let prompt = tokenizer.encode(PROMPT).unwrap();
    assert_eq!(prompt, PROMPT_IDS);

    let made = tokens(&teacher(), &prompt, options(24));
    let text = tokenizer.decode(&made).unwrap();
    let expected =
        " the past year, and the most important of the past, the most important of the past, ";
    assert!(text.starts_with(expected), "{text:?}");
}

/// The greedy ids that the published modules give for the students of the goldens.
#[test]
fn students_continue_as_the_published_ones_do() {
    let goldens = match std::env::var_os("GOLDENS_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens"),
    };
    let mut compared = 0;
    for entry in goldens.read_dir().unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let Ok(greedy_ids) = expected.tensor("greedy_ids") else {
            continue;
        };
        let (_, model) = model::load_any::<Flex>(&folder, &device()).unwrap();
        let (id_bytes, _) = greedy_ids.data().as_chunks();
        let ids: Vec<u32> = id_bytes
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes) as u32)
            .collect();
        for text in ids.chunks(greedy_ids.shape()[1]) {
            let (prompt, continuation) = text.split_at(5);
            let made = tokens(&model, prompt, options(continuation.len()));
            assert_eq!(made, continuation, "{}", folder.display());
            compared += 1;
        }
    }
    assert!(compared > 0, "no greedy ids in {}", goldens.display());
}

#[test]
fn a_seed_reproduces_its_text_and_another_gives_another() {
    for model in [teacher(), student(&[]).1] {
        let text = tokens(&model, &PROMPT_IDS, drawn(1));
        assert_eq!(text, tokens(&model, &PROMPT_IDS, drawn(1)));
        assert_ne!(text, tokens(&model, &PROMPT_IDS, drawn(2)));
    }
}

#[test]
fn only_attention_s_state_grows() {
    let sizes = |model: &CausalLm<Flex>| {
        let mut generation = generation(model, &PROMPT_IDS, options(12)).unwrap();
        let mut sizes = vec![generation.state_bytes()];
        while generation.next().is_some() {
            sizes.push(generation.state_bytes());
        }
        sizes
    };
    // 4 layers of a 3 x 64 x 64 state and 4 inputs of a convolution over x, B and C, in f32.
    let expected = 4 * 4 * (3 * 64 * 64 + 4 * 3 * 192);
    assert_eq!(sizes(&student(&[]).1), [expected; 13]);
    // 4 layers of a key and a value of 192 numbers for each of the tokens read: the prompt's, and
    // all but the newest made.
    let read = [6, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];
    assert_eq!(sizes(&teacher()), read.map(|n| n * 4 * 4 * 2 * 192));
}

/// A prompt that is read in several pieces gives what reading it at once gives.
#[test]
fn long_prompts_are_read_in_pieces() {
    let (_, model) = student(&[]);
    let prompt: Vec<u32> = (0..5000).map(|i| i * 7919 % 4096).collect();
    let ids = prompt.iter().map(|&id| id as i32).collect();
    let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [1, prompt.len()]), &device());
    let logits = model.prefill(ids, &mut model.new_state(1, &device()));
    let mut logits = logits.into_data().into_vec::<f32>().unwrap();
    let expected = Sampler::new(SamplingSettings::default(), 4096, &[])
        .unwrap()
        .choose(&mut logits)
        .unwrap();
    assert_eq!(tokens(&model, &prompt, options(1)), [expected]);
}

#[test]
fn generation_stops_where_positions_end() {
    let model = teacher();
    let with_positions = |n| GenerateOptions {
        max_positions: Some(n),
        ..options(100)
    };
    // The prompt takes 6 of 8 positions. Two tokens take the others, and a third is predicted from
    // the last.
    let mut generation = generation(&model, &PROMPT_IDS, with_positions(8)).unwrap();
    assert_eq!(generation.by_ref().count(), 3);
    assert_eq!(generation.stop(), Some(Stop::ContextFull));
    assert!(generation.next().is_none());
    assert_eq!(generation.prefill().tokens, 6);
    assert_eq!(generation.decode().tokens, 2);

    assert_eq!(tokens(&model, &PROMPT_IDS, with_positions(6)).len(), 1);
    let error = Generation::new(&model, &device(), &PROMPT_IDS, with_positions(5)).err();
    assert!(matches!(
        error,
        Some(GenerateError::PromptTooLong {
            tokens: 6,
            limit: 5
        })
    ));
}

#[test]
fn generation_stops_after_max_tokens() {
    let model = teacher();
    let mut generation = generation(&model, &PROMPT_IDS, options(2)).unwrap();
    assert_eq!(generation.stop(), None);
    assert_eq!(generation.by_ref().count(), 2);
    assert_eq!(generation.stop(), Some(Stop::MaxTokens));
    assert!(tokens(&model, &PROMPT_IDS, options(0)).is_empty());
}

#[test]
fn generation_stops_at_end_of_text() {
    let model = teacher();
    let made = tokens(&model, &PROMPT_IDS, options(9));
    // " and" comes fifth in the recorded text, and nowhere before.
    let ending = GenerateOptions {
        end_tokens: [made[4]].into(),
        ..options(9)
    };
    let mut ended = generation(&model, &PROMPT_IDS, ending).unwrap();
    let until_there: Vec<u32> = ended.by_ref().map(Result::unwrap).collect();
    assert_eq!(until_there, made[..4]);
    assert_eq!(ended.stop(), Some(Stop::EndOfText));
    // The first of several that comes.
    let ending = GenerateOptions {
        end_tokens: [made[4], made[2], 4095].into(),
        ..options(9)
    };
    assert_eq!(tokens(&model, &PROMPT_IDS, ending), made[..2]);
}

#[test]
fn an_empty_prompt_begins_with_end_of_text() {
    let model = teacher();
    let begin = GenerateOptions {
        end_of_text: Some(0),
        ..options(8)
    };
    let text = tokens(&model, &[], begin.clone());
    assert_eq!(text, tokens(&model, &[0], begin));
    assert!(!text.is_empty());

    let error = generation(&model, &[], options(8)).err();
    assert!(matches!(error, Some(GenerateError::EmptyPrompt)));
}

#[test]
fn a_foreign_tokenizer_is_an_error() {
    let error = generation(&teacher(), &[1, 4096], options(8)).err();
    assert!(matches!(
        error,
        Some(GenerateError::UnknownToken {
            token: 4096,
            vocab_size: 4096
        })
    ));
}

/// The teacher with its head's bias changed at one token.
fn biased(token: usize, bias: f32) -> CausalLm<Flex> {
    let mut model = teacher();
    let head = model.lm_head.as_mut().expect("a head with its own weight");
    head.bias = head.bias.take().map(|parameter| {
        parameter.map(|b| {
            let mut values = b.into_data().into_vec::<f32>().unwrap();
            values[token] = bias;
            Tensor::from_data(TensorData::new(values, [4096]), &device())
        })
    });
    model
}

#[test]
fn padding_is_never_made() {
    let model = biased(4095, 1e6);
    assert_eq!(tokens(&model, &PROMPT_IDS, options(2)), [4095, 4095]);
    let masked = GenerateOptions {
        vocab_size: 4095,
        ..options(2)
    };
    assert_eq!(
        tokens(&model, &PROMPT_IDS, masked.clone()),
        tokens(&teacher(), &PROMPT_IDS, masked)
    );
}

#[test]
fn broken_weights_are_an_error() {
    let model = biased(17, f32::NAN);
    let mut generation = generation(&model, &PROMPT_IDS, options(2)).unwrap();
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(
        error,
        GenerateError::Sampling(SamplingError::NotAScore { token: 17, .. })
    ));
}
