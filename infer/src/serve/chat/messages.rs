//! The messages of a body, in OpenAI's form.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use super::super::error::ApiError;
use super::super::fields::Anything;
use crate::chat::Message;

/// The most messages. A body with more is refused before the rest of it is read.
const MOST: usize = 1 << 16;

/// The separator between two parts of a message's text.
const BETWEEN: &str = "\n";

/// The messages of a body, not yet checked.
#[derive(Debug, Default)]
pub(super) struct Messages(Vec<GivenMessage>);

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenMessage {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    // Fields of OpenAI's answers, which a client may send back.
    #[serde(default)]
    annotations: Option<Anything>,
    #[serde(default)]
    audio: Option<Anything>,
    #[serde(default)]
    function_call: Option<Anything>,
    #[serde(default)]
    refusal: Option<Anything>,
    #[serde(default)]
    tool_call_id: Option<Anything>,
    #[serde(default)]
    tool_calls: Option<Anything>,
}

/// A text, whole or in parts.
#[derive(Debug)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, serde::Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl Messages {
    /// The messages for a chat template. The role `developer`, OpenAI's newer name, becomes `system`, and the parts of
    /// a text become its lines.
    ///
    /// # Errors
    /// There is no message, or one of them has another role or content that is not text.
    pub(super) fn check(self) -> Result<Vec<Message>, ApiError> {
        if self.0.is_empty() {
            let message = "messages is empty or missing; a chat has at least one message";
            return Err(ApiError::invalid_field("messages", message));
        }
        let all = self.0.into_iter().enumerate();
        let all = all.map(|(i, message)| {
            let refused = |reason: String| {
                ApiError::invalid_field("messages", format!("messages[{i}]{reason}"))
            };
            message.check().map_err(refused)
        });
        all.collect()
    }
}

impl GivenMessage {
    /// The message, or what is wrong with it.
    fn check(self) -> Result<Message, String> {
        let role = match self.role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            other => {
                return Err(format!(
                    ".role is `{other}`; it may be system, developer, user or assistant"
                ));
            }
        };
        let unsupported = [
            ("annotations", self.annotations),
            ("audio", self.audio),
            ("function_call", self.function_call),
            ("refusal", self.refusal),
            ("tool_call_id", self.tool_call_id),
            ("tool_calls", self.tool_calls),
        ];
        for (field, value) in unsupported {
            if !matches!(value, None | Some(Anything::Nothing)) {
                return Err(format!(".{field} is not supported here; leave it out"));
            }
        }
        let content = match self.content {
            None => return Err(".content is missing; it must be a text".to_owned()),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => joined(parts)?,
        };
        Ok(Message {
            role: role.to_owned(),
            content,
            name: self.name,
        })
    }
}

/// The text of parts, or what is wrong with one of them.
fn joined(parts: Vec<Part>) -> Result<String, String> {
    let parts = parts.into_iter().enumerate();
    let texts = parts.map(|(i, part)| match (part.kind.as_str(), part.text) {
        ("text", Some(text)) => Ok(text),
        ("text", None) => Err(format!(".content[{i}].text is missing")),
        (other, _) => Err(format!(
            ".content[{i}].type is `{other}`; this model reads parts of the type `text`"
        )),
    });
    let texts: Result<Vec<String>, String> = texts.collect();
    Ok(texts?.join(BETWEEN))
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MessagesVisitor)
    }
}

struct MessagesVisitor;

impl<'de> Visitor<'de> for MessagesVisitor {
    type Value = Messages;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("messages as a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Messages, A::Error> {
        let mut messages = Vec::new();
        while messages.len() < MOST {
            match seq.next_element()? {
                Some(message) => messages.push(message),
                None => return Ok(Messages(messages)),
            }
        }
        match seq.next_element::<IgnoredAny>()? {
            None => Ok(Messages(messages)),
            Some(_) => Err(A::Error::custom(format!("more than {MOST} messages"))),
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("content as a string or a list of parts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
        Ok(Content::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}
