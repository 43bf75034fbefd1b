//! Receives a request's body, as long as there is room for it.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use futures_util::stream::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use super::connections::Connection;
use super::error::ApiError;
use crate::engine::SubmitError;

/// The number of units of room for this number of bytes: one unit for each KiB.
pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Checks what the head of the request says about the body.
///
/// # Errors
/// The body is not declared as JSON, or is declared longer than `limit`.
pub(super) fn check_head(request: &Request, limit: usize) -> Result<(), ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    // A web page of another origin cannot send this type without a preflight request.
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::not_json());
    }
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    Ok(())
}

/// Receives the body, and takes room for it while it comes.
///
/// # Errors
/// The body is too long, breaks off or does not arrive in time, or there is no room for it.
pub(super) async fn receive(
    server: &Server,
    connection: &Arc<Connection>,
    request: Request,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let waits = connection.wait();
    let limit = server.options.body_limit;
    let arriving = || server.arriving.clone();
    let receive = async {
        let mut body = Vec::new();
        let mut room = arriving()
            .try_acquire_many_owned(1)
            .map_err(|_| SubmitError::Full)?;
        let mut chunks = request.into_body().into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::broken_body(&deepest(&error)))?;
            if body.len() + chunk.len() > limit {
                return Err(ApiError::too_large(limit));
            }
            body.extend_from_slice(&chunk);
            let lacks = (units(body.len()) as usize).saturating_sub(room.num_permits());
            let lacks = u32::try_from(lacks).unwrap_or(u32::MAX);
            let more = arriving().try_acquire_many_owned(lacks);
            room.merge(more.map_err(|_| SubmitError::Full)?);
        }
        Ok((body, room))
    };
    let received = tokio::time::timeout(server.options.body_time, receive).await;
    drop(waits);
    received.unwrap_or_else(|_| Err(ApiError::too_slow()))
}

/// The first cause of an error.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
