//! The tokens before the first word of a text.

use tokenizers::{Encoding, PostProcessor, Token};

use super::Tokenizer;
use crate::error::Result;
use crate::panics::caught;

impl Tokenizer {
    /// The ids that stand before a prompt: the begin-of-text token of Llama and Mistral, nothing for Phi, SmolLM2 and
    /// Qwen.
    ///
    /// It is what the file's post-processor puts before a text, unless
    /// [`with_beginning`](Self::with_beginning) has said otherwise.
    pub fn begin(&self) -> &[u32] {
        &self.begin
    }

    /// The id from which the first token of a text is predicted, when the likelihood of the text is computed.
    ///
    /// It is the one of [`with_beginning`](Self::with_beginning), or the first of [`begin`](Self::begin), or
    /// [`end_of_text`](Self::end_of_text). `None` if there is none of these.
    pub fn prefix(&self) -> Option<u32> {
        let first = self.begin.first().copied();
        self.prefix.or(first).or(self.end_of_text)
    }

    /// The same tokenizer with another [`begin`](Self::begin) and [`prefix`](Self::prefix), which files beside
    /// the `tokenizer.json` may name.
    pub fn with_beginning(self, begin: Vec<u32>, prefix: Option<u32>) -> Self {
        Self {
            begin,
            prefix,
            ..self
        }
    }

    /// The id of the token `name`, special or not; `None` if the vocabulary has no such token.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// The ids of a prompt, as `tokenizer(text)` of Hugging Face's transformers gives them: those of
    /// [`begin`](Self::begin), then those of the text. What follows a prompt is encoded by
    /// [`encode`](Self::encode), and a chat, whose template writes such tokens itself, by
    /// [`encode_chat`](Self::encode_chat).
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_prompts_until(&[text], &|| false)?.concat())
    }

    /// The ids of several prompts, as [`encode_prompt`](Self::encode_prompt), unless `stopped` says so first, which
    /// is asked as by [`encode_batch_until`](Self::encode_batch_until).
    ///
    /// # Errors
    ///
    /// As [`encode_batch_until`](Self::encode_batch_until).
    pub fn encode_prompts_until<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>> {
        let mut prompts = self.encode_batch_until(texts, stopped)?;
        for ids in &mut prompts {
            ids.splice(0..0, self.begin.iter().copied());
        }
        Ok(prompts)
    }
}

/// The ids that the file's post-processor puts before a text, or why they cannot be determined.
pub(super) fn before_a_text(
    inner: &tokenizers::Tokenizer,
) -> std::result::Result<Vec<u32>, String> {
    let Some(processor) = inner.get_post_processor() else {
        return Ok(Vec::new());
    };
    // What comes before this word is told by it from what comes after a text.
    let word = Token::new(0, "a".to_owned(), (0, 1));
    let word = Encoding::from_tokens(vec![word], 0);
    let processed = caught(|| processor.process(word, None, true))?;
    let processed = processed.map_err(|error| error.to_string())?;
    let is_special = processed.get_special_tokens_mask();
    let before = is_special.iter().position(|&mask| mask == 0).unwrap_or(0);
    Ok(processed.get_ids()[..before].to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::{changed_tokenizer, phi_tiny};
    use super::*;
    use crate::fixtures::asset;

    const TEXT: &str = "It was the best of times";

    /// Llama 3's step, with these of the bundled vocabulary's tokens before a text and one after it.
    fn template(before: &[u32]) -> Value {
        let special = |id: &u32| json!({"SpecialToken": {"id": format!("<{id}>"), "type_id": 0}});
        let mut single: Vec<Value> = before.iter().map(special).collect();
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.push(special(&9));
        let token = |id: &u32| {
            let name = format!("<{id}>");
            (
                name.clone(),
                json!({"id": name, "ids": [id], "tokens": [name]}),
            )
        };
        let tokens: serde_json::Map<String, Value> = before.iter().chain([&9]).map(token).collect();
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": tokens,
        })
    }

    fn with_step(step: Value) -> Tokenizer {
        changed_tokenizer(|json| json["post_processor"] = step)
    }

    /// What the file puts before a text stands before prompts, and nowhere else.
    #[test]
    fn a_template_begins_prompts() {
        let text = phi_tiny().encode(TEXT).unwrap();
        let level = json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
        });
        let both = |step: Value| json!({"type": "Sequence", "processors": [level.clone(), step]});
        for (step, begin) in [
            (template(&[7]), vec![7_u32]),
            (both(template(&[7])), vec![7]),
            (template(&[7, 8]), vec![7, 8]),
            (template(&[]), vec![]),
            (level.clone(), vec![]),
            (Value::Null, vec![]),
        ] {
            let tokenizer = with_step(step);
            assert_eq!(tokenizer.begin(), begin);
            let prompt = [&begin[..], &text].concat();
            assert_eq!(tokenizer.encode_prompt(TEXT).unwrap(), prompt);
            let prompts = tokenizer.encode_prompts_until(&[TEXT, ""], &|| false);
            assert_eq!(prompts.unwrap(), [prompt, begin.clone()]);
            assert_eq!(tokenizer.encode(TEXT).unwrap(), text);
            assert_eq!(tokenizer.encode_chat(TEXT).unwrap(), text);
            let first = begin.first().copied();
            assert_eq!(tokenizer.prefix(), first.or(tokenizer.end_of_text()));
        }
    }

    /// A step that names a token which the vocabulary does not have would make ids that no model has.
    #[test]
    fn an_impossible_begin_is_refused() {
        let mut json: Value =
            serde_json::from_slice(&std::fs::read(asset("phi-tiny/tokenizer.json")).unwrap())
                .unwrap();
        json["post_processor"] = template(&[4096]);
        let refused = Tokenizer::from_json(json.to_string().as_bytes(), "t.json").err();
        let said = refused.unwrap().to_string();
        assert!(said.contains("t.json") && said.contains("4096"), "{said}");
    }

    #[test]
    fn other_files_may_know_better() {
        let tokenizer = with_step(template(&[7])).with_beginning(vec![5], Some(6));
        assert_eq!((tokenizer.begin(), tokenizer.prefix()), (&[5][..], Some(6)));
        assert_eq!(tokenizer.encode_prompt("").unwrap(), [5]);
        let tokenizer = tokenizer.with_beginning(Vec::new(), None);
        assert_eq!((tokenizer.begin(), tokenizer.prefix()), (&[][..], Some(0)));
        assert_eq!(tokenizer.id_of("<|endoftext|>"), Some(0));
        assert_eq!(tokenizer.id_of("<|no such token|>"), None);
    }
}
