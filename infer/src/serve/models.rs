//! `GET /v1/models`: the one model that is served.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Server;
use super::error::ApiError;
use super::reply::json_response;
use crate::state_size::StateSizes;

/// The list of models.
pub(super) async fn models(State(server): State<Arc<Server>>) -> Response {
    let list = json!({"object": "list", "data": [describe(&server)]});
    json_response(StatusCode::OK, &list)
}

/// One model by its name.
pub(super) async fn model(
    State(server): State<Arc<Server>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let not_text =
        |_| ApiError::invalid_field("model", "the model's name in the path is not UTF-8");
    let Path(name) = name.map_err(not_text)?;
    if name == server.options.name {
        Ok(json_response(StatusCode::OK, &describe(&server)))
    } else {
        Err(ApiError::no_such_model(&name, &server.options.name))
    }
}

/// OpenAI's fields, and under `infer` what the page shows.
fn describe(server: &Server) -> Value {
    let facts = server.engine.facts();
    json!({
        "id": server.options.name,
        "object": "model",
        "created": server.created,
        "owned_by": "infer",
        "infer": {
            "memory": StateSizes::of(&facts.config),
            "max_positions": facts.max_positions,
            "max_tokens": server.limits.max_tokens,
            "vocab_size": facts.vocab_size,
        },
    })
}
