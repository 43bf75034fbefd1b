//! A chat as one text: a model's chat template, which writes the turns of a conversation as the model was
//! trained to read them.
//!
//! A template is a program in Jinja, which comes with the model. [`ChatTemplate::in_folder`] finds it where
//! Hugging Face's transformers does, and [`ChatTemplate::render`] runs it as `apply_chat_template` does there:
//! with the same variables, functions and rules for white space, so that the text is the same.
//!
//! The text is then [encoded](datasets::Tokenizer::encode_chat), and the names of special tokens in it become these
//! tokens. As in transformers, that also holds for names in a message: a user who writes `<|im_end|>` ends the turn.
//!
//! # Limits of a template
//!
//! A template is a program from an unknown author. It can read no files, and its work and its text are limited; a
//! template that exceeds a limit fails with a [`TemplateError`].

mod files;
mod python;
mod source;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat;

pub use files::ChatFileError;
use python::Refusal;

/// The limit of a template's work: about so many steps, or 64 times as many bytes of text. This takes a tenth of a
/// second. The same amount is added for each [`MESSAGES`] messages.
const FUEL: u64 = 1_000_000;
const MESSAGES: usize = 10_000;

/// The stack for a template with that limit. Nested lists are dropped and written recursively. With this limit they
/// cannot be nested deeper than this stack allows: half a million levels need less.
const STACK_BYTES: usize = 256 << 20;

/// The limit of a template's text, in bytes: twice the bytes of the messages, and this many more for each message and
/// once for the whole.
const MESSAGE_BYTES: usize = 1 << 10;
const TEXT_BYTES: usize = 1 << 20;

/// A longer reason in an error is cut.
const REASON_BYTES: usize = 400;

/// A template's name in the environment.
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The speaker: `system`, `user` or `assistant` in all templates, and other roles in some.
    pub role: String,
    /// The text of the message.
    pub content: String,
    /// The speaker's name, for templates that write it.
    pub name: Option<String>,
}

impl Message {
    /// A message without a name.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            name: None,
        }
    }

    fn bytes(&self) -> usize {
        let name = self.name.as_ref().map_or(0, String::len);
        self.role.len() + self.content.len() + name
    }

    fn to_value(&self) -> Value {
        let role = ("role", Value::from(&self.role));
        let content = ("content", Value::from(&self.content));
        let name = self.name.as_ref().map(|name| ("name", Value::from(name)));
        Value::from_pairs([role, content].into_iter().chain(name))
    }
}

/// Why a template cannot be read, or gives no text for some messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not valid Jinja, or uses a feature that this program does not support.
    #[error("the chat template cannot be read: {reason}")]
    Syntax {
        /// What is wrong, and where.
        reason: String,
    },
    /// It refuses the messages.
    #[error("the model's chat template refuses these messages: {reason}")]
    Refused {
        /// The template's message.
        reason: String,
    },
    /// It fails with an error.
    #[error("the model's chat template fails on these messages: {reason}")]
    Failed {
        /// What is wrong, and where.
        reason: String,
    },
    /// It exceeds the limit of its work.
    #[error(
        "the model's chat template works on these messages for too long; perhaps it has a loop without end"
    )]
    Endless,
    /// Its text exceeds the limit.
    #[error("the model's chat template makes more than {limit} bytes of text of these messages")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
}

/// A chat template, ready to be used.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the template `source`. The names of `special_tokens` (`bos_token`, `eos_token`, ...) are variables
    /// in it, whose values are the tokens' texts.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, TemplateError> {
        let syntax = |error: Error| TemplateError::Syntax {
            reason: reason(&error),
        };
        let white_space = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(syntax)?;
        let mut environment = Environment::new();
        environment.set_syntax(white_space);
        environment.set_debug(false);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_test("sequence", python::is_sequence);
        environment.add_test("iterable", python::is_iterable);
        let source = source::adapted(source);
        environment
            .add_template_owned(NAME, source)
            .map_err(syntax)?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// The messages as one text. With `add_generation_prompt` it ends where the answer begins.
    ///
    /// # Errors
    /// Every [`TemplateError`] but [`Syntax`](TemplateError::Syntax).
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let shares = 1 + messages.len() / MESSAGES;
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("chat-template".to_owned());
            let thread = thread.stack_size(STACK_BYTES.saturating_mul(shares));
            let work = || self.run(messages, add_generation_prompt, shares as u64);
            let failed = |reason: String| TemplateError::Failed { reason };
            let thread = thread.spawn_scoped(scope, work);
            let thread = thread.map_err(|error| failed(format!("no thread for it, {error}")))?;
            let done = thread.join();
            done.unwrap_or_else(|_| Err(failed("a fault of this program".to_owned())))
        })
    }

    /// Does the work of [`render`](Self::render), with `shares` times [`FUEL`] as its limit.
    fn run(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        shares: u64,
    ) -> Result<String, TemplateError> {
        let bytes = |message: &Message| 2 * message.bytes() + MESSAGE_BYTES;
        let limit = TEXT_BYTES + messages.iter().map(bytes).sum::<usize>();
        let messages: Vec<Value> = messages.iter().map(Message::to_value).collect();
        let tokens = self.special_tokens.iter();
        let tokens = tokens.map(|(name, token)| (name.as_str(), Value::from(token)));
        let variables = [
            ("messages", Value::from(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", add_generation_prompt.into()),
        ];
        let context = Value::from_pairs(tokens.chain(variables));
        let mut text = BoundedText {
            bytes: Vec::new(),
            limit,
        };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL.saturating_mul(shares)));
        let template = environment.get_template(NAME);
        let rendered = template.and_then(|template| {
            let captured = template.render_captured_to(context, &mut text);
            captured.map(drop)
        });
        match rendered {
            // It writes nothing but whole strings.
            Ok(()) => Ok(String::from_utf8_lossy(&text.bytes).into_owned()),
            Err(error) => Err(failure(&error, limit)),
        }
    }
}

/// Why a template failed whose text may have `limit` bytes.
fn failure(error: &Error, limit: usize) -> TemplateError {
    if error.kind() == ErrorKind::WriteFailure {
        TemplateError::TooLong { limit }
    } else if is(error, ErrorKind::OutOfFuel) {
        TemplateError::Endless
    } else if let Some(refusal) = Refusal::in_error(error) {
        TemplateError::Refused {
            reason: one_line(&refusal.0),
        }
    } else {
        TemplateError::Failed {
            reason: reason(error),
        }
    }
}

/// Text that does not grow past a limit.
struct BoundedText {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for BoundedText {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an error or one of its causes is of a kind.
fn is(error: &Error, kind: ErrorKind) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if cause.kind() == kind {
            return true;
        }
        error = cause.source().and_then(|cause| cause.downcast_ref());
    }
    false
}

/// What an error says, and the line of the template.
fn reason(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}, {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{} (line {line} of the template)", one_line(&what)),
        None => one_line(&what),
    }
}

/// A text as one line that is not too long.
fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > REASON_BYTES {
        line.truncate(line.floor_char_boundary(REASON_BYTES));
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests;
