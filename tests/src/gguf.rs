//! GGUF files by their definition: keys, tensors, and the data behind them.
//!
//! ```
//! let file = tests::gguf::tiny().with("llama.context_length", 64);
//! assert!(file.bytes().starts_with(b"GGUF"));
//! ```

/// A value of a key.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number in u16.
    U16(u16),
    /// A number in u32.
    U32(u32),
    /// A number in f32.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of numbers in i32.
    I32s(Vec<i32>),
    /// An array of numbers in f32.
    F32s(Vec<f32>),
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Self::U32(n)
    }
}

impl From<f32> for Value {
    fn from(n: f32) -> Self {
        Self::F32(n)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl Value {
    fn put(&self, file: &mut Vec<u8>) {
        let kind = |file: &mut Vec<u8>, kind: u32| file.extend(kind.to_le_bytes());
        match self {
            Self::U16(n) => {
                kind(file, 2);
                file.extend(n.to_le_bytes());
            }
            Self::U32(n) => {
                kind(file, 4);
                file.extend(n.to_le_bytes());
            }
            Self::F32(n) => {
                kind(file, 6);
                file.extend(n.to_le_bytes());
            }
            Self::Bool(is) => {
                kind(file, 7);
                file.push(u8::from(*is));
            }
            Self::Text(text) => {
                kind(file, 8);
                put_text(file, text);
            }
            Self::Texts(texts) => {
                kind(file, 9);
                kind(file, 8);
                file.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| put_text(file, text));
            }
            Self::I32s(numbers) => {
                kind(file, 9);
                kind(file, 5);
                file.extend((numbers.len() as u64).to_le_bytes());
                file.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                kind(file, 9);
                kind(file, 6);
                file.extend((numbers.len() as u64).to_le_bytes());
                file.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
        }
    }
}

fn put_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// A tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its sizes as the file has them, the fastest first.
    pub sizes: Vec<u64>,
    /// The number of its type.
    pub kind: u32,
    /// Its blocks.
    pub bytes: Vec<u8>,
}

/// A file to be.
#[derive(Clone, Debug, Default)]
pub struct Gguf {
    /// Its keys in their order.
    pub keys: Vec<(String, Value)>,
    /// Its tensors in the order of their data.
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    /// With another value of `key`, or with that key too.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self.keys.push((key.into(), value.into()));
        self
    }

    /// With one tensor more.
    pub fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        let (name, sizes) = (name.into(), sizes.to_vec());
        self.tensors.push(Tensor {
            name,
            sizes,
            kind,
            bytes,
        });
        self
    }

    /// The bytes before the data.
    pub fn header(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_text(&mut file, key);
            value.put(&mut file);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_text(&mut file, &tensor.name);
            file.extend((tensor.sizes.len() as u32).to_le_bytes());
            file.extend(tensor.sizes.iter().flat_map(|n| n.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
        }
        file
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = self.header();
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

/// So many numbers as blocks of Q8_0, each a scale and 32 numbers.
fn blocks(n: usize) -> Vec<u8> {
    let block = |i: usize| {
        // Small numbers in f16.
        let scale = 0x1000 + 0x100 * (i % 7) as u16;
        let numbers = (0..32).map(move |j| ((i * 31 + j * 17) % 255) as u8);
        scale.to_le_bytes().into_iter().chain(numbers)
    };
    (0..n / 32).flat_map(block).collect()
}

/// [`tiny`] with a tokenizer of SentencePiece's, which `goldens/gguf-tokenizers/pieces.json` was recorded with: 512
/// tokens, of which the second and the third begin and end a text.
///
/// # Panics
/// If the file cannot be read.
pub fn pieces() -> Gguf {
    let recorded = recorded("pieces");
    let array = |key: &str| recorded[key].as_array().expect("an array").iter();
    let tokens = array("tokens").map(|token| token.as_str().expect("a text").to_owned());
    let scores = array("scores").map(|score| score.as_f64().expect("a number") as f32);
    let types = array("token_type").map(|kind| kind.as_i64().expect("a number") as i32);
    let mut file = tiny()
        .with("tokenizer.ggml.model", "llama")
        .with("tokenizer.ggml.pre", "default")
        .with("tokenizer.ggml.tokens", Value::Texts(tokens.collect()))
        .with("tokenizer.ggml.scores", Value::F32s(scores.collect()))
        .with("tokenizer.ggml.token_type", Value::I32s(types.collect()))
        .with("tokenizer.ggml.bos_token_id", 1)
        .with("tokenizer.ggml.eos_token_id", 2)
        .with("tokenizer.ggml.unknown_token_id", 0);
    let not_of_it = ["tokenizer.ggml.merges", "tokenizer.ggml.add_bos_token"];
    file.keys.retain(|(key, _)| !not_of_it.contains(&&**key));
    let embedding = &mut file.tensors[0];
    embedding.sizes[1] = array("tokens").len() as u64;
    embedding.bytes = blocks(embedding.sizes.iter().product::<u64>() as usize);
    file
}

/// What the recorded file `name` of GGUF's tokenizers says: a vocabulary, and texts with their ids.
///
/// # Panics
/// If the file cannot be read.
pub fn recorded(name: &str) -> serde_json::Value {
    let path = crate::goldens_dir().join(format!("gguf-tokenizers/{name}.json"));
    let text = std::fs::read_to_string(path).expect("a recorded tokenizer");
    serde_json::from_str(&text).expect("JSON")
}

/// A Llama of one layer, 32 wide, with two heads of 16 and 24 tokens, of which the last is the end of a text.
pub fn tiny() -> Gguf {
    let numbers = |n: usize| {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 500.0;
        (0..n)
            .flat_map(|i| value(i).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut tokens: Vec<String> = ('a'..='t').map(String::from).collect();
    tokens.extend(["ab", "abc", "<|im_end|>", "<|endoftext|>"].map(String::from));
    let mut types = vec![1; 24];
    types[22..].fill(3);
    let merges = ["a b", "ab c"].map(String::from).to_vec();
    let mut file = Gguf::default()
        .with("general.architecture", "llama")
        .with("llama.block_count", 1)
        .with("llama.embedding_length", 32)
        .with("llama.feed_forward_length", 64)
        .with("llama.context_length", 128)
        .with("llama.attention.head_count", 2)
        .with("llama.attention.head_count_kv", 1)
        .with("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .with("llama.rope.freq_base", 10000_f32)
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "smollm")
        .with("tokenizer.ggml.tokens", Value::Texts(tokens))
        .with("tokenizer.ggml.token_type", Value::I32s(types))
        .with("tokenizer.ggml.merges", Value::Texts(merges))
        .with("tokenizer.ggml.bos_token_id", 22)
        .with("tokenizer.ggml.eos_token_id", 22)
        .with("tokenizer.ggml.add_bos_token", Value::Bool(false))
        .with("split.count", Value::U16(1))
        .with("tokenizer.chat_template", "{{ messages }}");
    for (name, sizes) in [
        ("token_embd", vec![32, 24]),
        ("blk.0.attn_norm", vec![32]),
        ("blk.0.attn_q", vec![32, 32]),
        ("blk.0.attn_k", vec![32, 16]),
        ("blk.0.attn_v", vec![32, 16]),
        ("blk.0.attn_output", vec![32, 32]),
        ("blk.0.ffn_norm", vec![32]),
        ("blk.0.ffn_gate", vec![32, 64]),
        ("blk.0.ffn_up", vec![32, 64]),
        ("blk.0.ffn_down", vec![64, 32]),
        ("output_norm", vec![32]),
    ] {
        let n = sizes.iter().product::<u64>() as usize;
        let (kind, bytes) = match sizes.len() {
            1 => (0, numbers(n)),
            _ => (8, blocks(n)),
        };
        file = file.tensor(&format!("{name}.weight"), &sizes, kind, bytes);
    }
    file
}
