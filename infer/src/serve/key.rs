//! The key that requests must contain.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::{ServeError, Server};

/// A key, of which only the hash is kept.
///
/// Hashes are compared instead of keys. They all have the same length, and the first position where two hashes differ
/// says nothing about the keys. So the time of the comparison reveals nothing about the key.
#[derive(Debug)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// A key, without the white space around it.
    ///
    /// # Errors
    /// [`ServeError::ApiKey`] if nothing is left, or no header can hold it.
    pub(super) fn new(key: &str) -> Result<Self, ServeError> {
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_control) {
            return Err(ServeError::ApiKey);
        }
        Ok(Self(Sha256::digest(key).into()))
    }

    fn is(&self, given: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(given.trim()).into();
        let differences = self
            .0
            .iter()
            .zip(given)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        differences == 0
    }
}

/// Refuses requests without the key, if the server has one.
pub(super) async fn check(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &server.key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|given| bearer(given.as_bytes()));
        if !given.is_some_and(|given| key.is(given)) {
            return Err(ApiError::unauthorised());
        }
    }
    Ok(next.run(request).await)
}

/// The token of an `Authorization` header, if its scheme is `Bearer` in any case of letters.
fn bearer(authorization: &[u8]) -> Option<&str> {
    let authorization = std::str::from_utf8(authorization).ok()?.trim();
    let (scheme, token) = authorization.split_once([' ', '\t'])?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_a_key_do_not_count() {
        let key = Key::new(" se cret\n").unwrap();
        for header in ["Bearer se cret", "bearer  se cret ", "BEARER\tse cret"] {
            assert!(
                bearer(header.as_bytes()).is_some_and(|given| key.is(given)),
                "{header}"
            );
        }
        for header in [
            "Bearer secret",
            "Bearer",
            "Bearer ",
            "Basic se cret",
            "se cret",
            "Bearer se cret1",
        ] {
            assert!(
                !bearer(header.as_bytes()).is_some_and(|given| key.is(given)),
                "{header}"
            );
        }
        for key in ["", " \t\r\n", "\u{a0}", "a\nb", "a\0b"] {
            assert!(Key::new(key).is_err(), "{key:?}");
        }
    }
}
