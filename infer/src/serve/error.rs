//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::client::{HEAD_BYTES, HEADERS};
use super::reply::json_response;
use crate::engine::SubmitError;
use crate::error::GenerateError;
use crate::sampling::SamplingError;

/// Seconds after which the client should try again if the queue is full.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A longer message is cut.
const MESSAGE_BYTES: usize = 1000;

/// The name of the field with the prompt, in errors that do not depend on the endpoint.
const PROMPT: &str = "prompt";

/// Why a request is refused or has failed.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        // The message may quote text from the client, which may be long.
        if message.len() > MESSAGE_BYTES {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
            message.push_str("...");
        }
        Self {
            status,
            code,
            param: None,
            message,
        }
    }

    /// The request is malformed, or asks for something that this server does not support: 400.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// One field of the request is invalid: 400.
    pub(super) fn invalid_field(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::invalid(message)
        }
    }

    /// The server has another model: 404.
    pub(super) fn no_such_model(asked: &str, model: &str) -> Self {
        let message = format!("the model `{asked}` does not exist here; this is `{model}`");
        Self {
            param: Some("model"),
            ..Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message)
        }
    }

    /// There is no such path: 404.
    pub(super) fn no_such_path(path: &str) -> Self {
        let message = format!("there is nothing at {path}");
        Self::new(StatusCode::NOT_FOUND, None, message)
    }

    /// The path does not have this method: 405.
    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, None, message)
    }

    /// No key, or a wrong one: 401.
    pub(super) fn unauthorised() -> Self {
        let message = "this server wants its key, as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// The body is not declared as JSON: 415.
    pub(super) fn not_json() -> Self {
        let message = "the body must be JSON, with `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, message)
    }

    /// The body is too long: 413.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is longer than {limit} bytes, this server's limit");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, None, message)
    }

    /// The body breaks off, or its chunks cannot be read: 400.
    pub(super) fn broken_body(reason: &str) -> Self {
        Self::invalid(format!(
            "the body has ended too early, or its chunks are malformed: {reason}"
        ))
    }

    /// A text is so long that it must have more tokens than the model has positions: 400.
    pub(super) fn prompt_too_long(bytes: usize, most: usize, positions: usize) -> Self {
        let message = format!(
            "the prompt has {bytes} bytes; at most {most} can be within the {positions} positions \
             (max_position_embeddings) of this model"
        );
        Self::context_length(message)
    }

    fn context_length(message: String) -> Self {
        let code = Some("context_length_exceeded");
        Self {
            param: Some(PROMPT),
            ..Self::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    /// The model has no chat template that can be used: 400.
    pub(super) fn no_chat(reason: &str) -> Self {
        let code = Some("no_chat_template");
        Self::new(StatusCode::BAD_REQUEST, code, reason)
    }

    /// A parameter of OpenAI's that this server does not have: 400.
    pub(super) fn unsupported_parameter(param: &'static str) -> Self {
        let message = format!("Unsupported parameter: '{param}' is not supported with this model.");
        let code = Some("unsupported_parameter");
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    /// A value of OpenAI's that this server does not have: 400.
    pub(super) fn unsupported_value(param: &'static str, value: &str) -> Self {
        let message =
            format!("Unsupported value: '{param}' does not support '{value}' with this model.");
        let code = Some("unsupported_value");
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    /// The same error for an endpoint whose field with the prompt is called `param`.
    pub(super) fn with_prompt(mut self, param: &'static str) -> Self {
        if self.param == Some(PROMPT) {
            self.param = Some(param);
        }
        self
    }

    /// The request is for another host, or comes from another site's page: 403.
    pub(super) fn forbidden(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, Some("host_not_allowed"), message)
    }

    /// The head of a request cannot be read, or is too long: `status`.
    pub(super) fn bad_head(status: StatusCode) -> Self {
        let message = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                format!(
                    "the head of the request has more than {HEAD_BYTES} bytes or {HEADERS} headers"
                )
            }
            StatusCode::URI_TOO_LONG => "the path of the request is too long".to_owned(),
            _ => "this is not a request of HTTP/1.1".to_owned(),
        };
        Self::new(status, None, message)
    }

    /// The client has too many connections: 429.
    pub(super) fn too_many_connections(most: usize) -> Self {
        let message = format!(
            "this address has {most} connections with requests at work, as many as it may have"
        );
        let code = Some("too_many_connections");
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, message)
    }

    /// There is no room for another reply of this size at present, or not for this client: 429.
    pub(super) fn no_room() -> Self {
        let message =
            "too many large replies are being made, for this address or for all; try again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), message)
    }

    /// The body does not arrive in time: 408.
    pub(super) fn too_slow() -> Self {
        let message = "the body took too long to arrive";
        Self::new(StatusCode::REQUEST_TIMEOUT, None, message)
    }

    /// The time limit has passed before the first token: 503.
    pub(super) fn no_time() -> Self {
        let message = "the time limit has passed before the text could begin";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("timeout"), message)
    }

    /// The server has failed: 500.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    /// The error as JSON.
    pub(super) fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid(GenerateError::PromptTooLong { .. }) => {
                Self::context_length(message)
            }
            SubmitError::Invalid(GenerateError::Sampling(error)) => error.into(),
            SubmitError::Invalid(_) | SubmitError::TooMany { .. } => {
                Self::invalid_field(PROMPT, message)
            }
            SubmitError::Full => {
                let code = Some("queue_full");
                Self::new(StatusCode::TOO_MANY_REQUESTS, code, message)
            }
            SubmitError::Stopped => Self::internal(message),
        }
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        match error {
            SamplingError::Setting { name, value, range } => {
                Self::invalid_field(name, format!("{name} is {value}; it must be {range}"))
            }
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        Self::internal(error.to_string())
    }
}

impl ApiError {
    /// The status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// A complete HTTP response with this error, which closes the connection. It is for clients whose request was never
    /// handled in the usual way.
    pub(super) fn to_http(&self) -> Vec<u8> {
        let json = self.to_json().to_string();
        let retry = if self.status == StatusCode::TOO_MANY_REQUESTS {
            "retry-after: 1\r\n"
        } else {
            ""
        };
        format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\n{retry}connection: close\r\n\
             content-length: {}\r\n\r\n{json}",
            self.status,
            json.len()
        )
        .into_bytes()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        let headers = response.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
