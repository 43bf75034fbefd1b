//! `GET /`: a web page to try the model on. Its files are compiled into the program.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Server;

/// The content security policy: nothing from other servers, and nothing inline.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, with a mark that says whether the model can chat.
pub(super) async fn html(State(server): State<Arc<Server>>) -> Response {
    let page = include_str!("page/index.html");
    let page = if server.chat.is_ok() {
        page.replacen("<body>", "<body data-chat>", 1)
    } else {
        page.to_owned()
    };
    file("text/html; charset=utf-8", page)
}

/// The page's style sheet.
pub(super) async fn css() -> Response {
    file("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// The page's script.
pub(super) async fn js() -> Response {
    file(
        "text/javascript; charset=utf-8",
        include_str!("page/page.js"),
    )
}

/// The page's icon.
pub(super) async fn icon() -> Response {
    file("image/svg+xml", include_str!("page/icon.svg"))
}

fn file(content_type: &'static str, contents: impl Into<Body>) -> Response {
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
        // Another version of the program may have other files.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, contents.into()).into_response()
}
