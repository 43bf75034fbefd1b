//! The hosts for which the server answers, and the sites whose pages may use it.
//!
//! A page of any site, open in a browser on this machine, can send requests to a server that listens here. A browser
//! keeps the page from reading the answers, unless the page's own name has meanwhile become an address of this machine
//! ("DNS rebinding"). Such a request has the foreign name in its `Host`. So the server answers only for its own names:
//! addresses, `localhost`, and the names given by `--allowed-host`. A request whose `Origin` is another site's page is
//! refused too, since it does not come from the server's own page. A key replaces neither check: it is checked after
//! the host, and `/health` and the page need no key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;

use super::Server;
use super::error::ApiError;

/// The hosts of a server.
#[derive(Debug)]
pub(super) struct Hosts {
    /// The address that the server listens on.
    pub bound: IpAddr,
    /// Further names, as [`allowed_host`] returns them.
    pub allowed: Vec<String>,
}

/// A host and its port, as in `localhost:8000`.
#[derive(Debug, PartialEq)]
struct Authority {
    /// In lower case; an IPv6 address without brackets.
    host: String,
    port: Option<u16>,
}

/// Checks a name or an address for `--allowed-host`, and returns it in the form in which hosts are compared.
///
/// # Errors
/// A sentence, if it is neither.
pub(crate) fn allowed_host(given: &str) -> Result<String, String> {
    let bare = given.trim();
    // An address of IPv6 may come without its brackets.
    let authority = match bare.parse::<IpAddr>() {
        Ok(address) => Some(Authority {
            host: address.to_string(),
            port: None,
        }),
        Err(_) => Authority::parse(bare).filter(|authority| authority.port.is_none()),
    };
    match authority {
        Some(authority) => Ok(authority.host),
        None => Err("it must be a name or an address, without http://, port and path".to_owned()),
    }
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                let address: std::net::Ipv6Addr = address.parse().ok()?;
                (address.to_string(), port)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                let name = text[..end].to_ascii_lowercase();
                let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
                let plain =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
                if name.is_empty() || name.ends_with('.') || !name.bytes().all(plain) {
                    return None;
                }
                (name, &text[end..])
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

/// The only value of a header, as text. `Err` if there are several, or one that is no text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => HeaderValue::to_str(value).map(Some).map_err(drop),
        (Some(_), Some(_)) => Err(()),
    }
}

impl Hosts {
    /// Refuses a request if it is for another host or comes from another site's page.
    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        let host = only(headers, &HOST).map_err(|()| malformed())?;
        let host = match host {
            Some(host) => Some(Authority::parse(host).ok_or_else(malformed)?),
            // No browser speaks HTTP/1.0.
            None if request.version() == Version::HTTP_10 => None,
            None => return Err(ApiError::invalid("a request must say for which Host it is")),
        };
        // A target such as http://name/path names the host, too.
        let target = match request.uri().authority() {
            Some(target) => Some(Authority::parse(target.as_str()).ok_or_else(malformed)?),
            None => None,
        };
        for authority in host.iter().chain(&target) {
            if !self.is_own(&authority.host) {
                let name = &authority.host;
                return Err(ApiError::forbidden(format!(
                    "this server does not answer for the host {name}; if that is a name of it, start it \
                     with --allowed-host {name}"
                )));
            }
        }
        match only(headers, &ORIGIN) {
            Ok(None) => Ok(()),
            Ok(Some(origin)) if self.is_own_origin(origin, host.as_ref()) => Ok(()),
            _ => Err(ApiError::forbidden(
                "this server does not answer to pages of other sites (the request's Origin); if that is \
                 one of its own names, start it with --allowed-host and that name"
                    .to_owned(),
            )),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let by_address = |address: IpAddr| {
            // Another site can own any name, but an address is always this machine's.
            let address = address.to_canonical();
            address.is_loopback()
                || self.bound.is_unspecified()
                || address == self.bound.to_canonical()
        };
        host == "localhost"
            || self.allowed.iter().any(|allowed| allowed == host)
            || host.parse().is_ok_and(by_address)
    }

    /// Whether a page is this server's own: it came from the host that the request is for, or, as behind a proxy, from
    /// an allowed host.
    fn is_own_origin(&self, origin: &str, host: Option<&Authority>) -> bool {
        let Some((scheme, site)) = origin.split_once("://") else {
            return false;
        };
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let Some(site) = Authority::parse(site) else {
            return false;
        };
        let port = |authority: &Authority| authority.port.unwrap_or(default_port);
        let same = host.is_some_and(|host| site.host == host.host && port(&site) == port(host));
        same || self.allowed.contains(&site.host)
    }
}

fn malformed() -> ApiError {
    ApiError::invalid("the request's Host is not one host and its port")
}

/// Lets requests through that are for this server and not from another site's page.
pub(super) async fn check(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    server.hosts.check(&request)?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse;
    use proptest::prelude::*;

    use super::*;

    fn status(bound: &str, allowed: &[&str], headers: &[(HeaderName, &str)], uri: &str) -> u16 {
        let hosts = Hosts {
            bound: bound.parse().unwrap(),
            allowed: allowed
                .iter()
                .map(|name| allowed_host(name).unwrap())
                .collect(),
        };
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        match hosts.check(&request.body(Body::empty()).unwrap()) {
            Ok(()) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_its_own_hosts_are_answered() {
        let on = |bound, host| status(bound, &["Models.example", "::7"], &[(HOST, host)], "/");
        for host in [
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "127.0.0.1:8000",
            "127.3.2.1",
            "[::1]:8000",
            "[::ffff:127.0.0.1]",
            "10.1.2.3:80",
            "models.example",
            "models.example.:443",
            "[::7]",
        ] {
            assert_eq!(on("10.1.2.3", host), 200, "{host}");
            assert_eq!(on("0.0.0.0", host), 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "models.example.evil.example",
            "xlocalhost",
            "127.0.0.1.nip.io",
            "2130706433",
            "0x7f.1",
            "localhost%00.evil",
        ] {
            assert_eq!(on("127.0.0.1", host), 403, "{host}");
            assert_eq!(on("0.0.0.0", host), 403, "{host}");
        }
        assert_eq!(on("127.0.0.1", "10.1.2.3"), 403);
        assert_eq!(on("0.0.0.0", "10.9.9.9"), 200);
        assert_eq!(on("::", "[fe80::1]:8000"), 200);
        for host in [
            "",
            ":80",
            "localhost:x",
            "localhost:99999",
            "a@localhost",
            "[::1",
            "::1",
            "[x]",
            "localhost/",
        ] {
            assert_eq!(on("127.0.0.1", host), 400, "{host}");
        }
        let of = |headers: &[_], uri| status("127.0.0.1", &[], headers, uri);
        assert_eq!(of(&[], "/"), 400);
        assert_eq!(of(&[(HOST, "localhost"), (HOST, "localhost")], "/"), 400);
        assert_eq!(of(&[(HOST, "localhost")], "http://evil.example/"), 403);
        assert_eq!(of(&[(HOST, "evil.example")], "http://localhost/"), 403);
        assert_eq!(of(&[(HOST, "localhost")], "http://localhost:8000/"), 200);
    }

    #[test]
    fn only_its_own_pages_are_answered() {
        let of = |host, origins: &[&'static str]| {
            let origins = origins.iter().map(|origin| (ORIGIN, *origin));
            let headers: Vec<_> = origins.chain([(HOST, host)]).collect();
            status("127.0.0.1", &["models.example"], &headers, "/")
        };
        for (host, origin) in [
            ("localhost:8000", "http://localhost:8000"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("models.example", "https://models.example"),
            // Behind a proxy that changes the host.
            ("127.0.0.1:8000", "https://models.example"),
        ] {
            assert_eq!(of(host, &[origin]), 200, "{origin}");
        }
        for origin in [
            "http://evil.example",
            "http://localhost:3000",
            "http://127.0.0.1:8000",
            "http://localhost:8000.evil.example",
            "https://localhost",
            "null",
            "",
            "file://",
            "ftp://localhost:8000",
        ] {
            assert_eq!(of("localhost:8000", &[origin]), 403, "{origin}");
        }
        assert_eq!(
            of("localhost:8000", &["http://localhost:8000", "null"]),
            403
        );
    }

    /// Arbitrary text causes no panic, and an accepted name is accepted again in its normalised form.
    #[test]
    fn ten_thousand_hosts() {
        let parts = prop::sample::select(vec![
            "localhost",
            "[",
            "]",
            ":",
            "::1",
            ".",
            "8000",
            "%",
            "@",
            "A",
            "\u{e9}",
        ]);
        let hosts = prop_oneof![
            prop::collection::vec(parts, 0..6).prop_map(|parts| parts.concat()),
            ".{0,12}",
        ];
        let config = ProptestConfig {
            cases: 10_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let tested = runner.run(&hosts, |text| {
            if let Some(authority) = Authority::parse(&text) {
                let host = authority.host.clone();
                let again = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host
                };
                prop_assert_eq!(Authority::parse(&again).unwrap().host, authority.host);
            }
            Ok(())
        });
        tested.unwrap();
    }

    #[test]
    fn an_allowed_host_is_a_name_or_an_address() {
        for (given, host) in [
            ("A.example", "a.example"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(allowed_host(given).unwrap(), host);
        }
        for given in [
            "",
            "http://a.example",
            "a.example:80",
            "a.example/",
            "a b",
            "*",
        ] {
            assert_eq!(allowed_host(given).is_ok(), given == "*", "{given}");
        }
    }
}
