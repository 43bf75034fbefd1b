//! `GET /`: the page for a person. Its files are part of the program.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, and nothing inline.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(super) async fn html() -> Response {
    file("text/html; charset=utf-8", include_str!("page/index.html"))
}

/// How it looks.
pub(super) async fn css() -> Response {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// What it does.
pub(super) async fn js() -> Response {
    file(
        "text/javascript; charset=utf-8",
        include_str!("page/page.js"),
    )
}

/// Its mark.
pub(super) async fn icon() -> Response {
    file("image/svg+xml", include_str!("page/icon.svg"))
}

fn file(content_type: &'static str, contents: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        // The next version of the program may bring others.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, contents).into_response()
}
