//! Accepts connections, and ends a server gracefully.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use model::signals::ONE_REQUEST;
#[cfg(unix)]
use model::signals::is_ignored;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Server;
use super::client::{Client, HEAD_BYTES};
use super::connections::{Admission, AtWork, Place};
use super::error::ApiError;
use super::metrics::Closed;

/// The pause before the next attempt when the system cannot accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time in which a client with too many connections can read that error.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// The longest time, at the end of a graceful stop, in which the texts that were cut off are sent.
const SENDING: Duration = Duration::from_secs(3);

/// Serves until `stop` resolves; then until all earlier requests are answered, but no longer than the grace time. A
/// connection is closed if no request begins within the time limit for a head. If there are too many connections, a
/// further one takes the place of a connection without a request that is being processed, or waits to be accepted.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    server: &Arc<Server>,
    stop: impl Future<Output = ()>,
) {
    let watched = GracefulShutdown::new();
    let engine = &server.engine;
    tokio::select! {
        () = accept(&listener, router, server, &watched) => {}
        () = stop => {}
        // The engine has stopped, and its thread returns the reason.
        () = engine.stopped() => {}
    }
    drop(listener);
    let grace = server.options.grace;
    let end = Instant::now() + grace;
    engine.end_at((end - SENDING.min(grace / 2)).into_std());
    server.connections.close_waiting();
    tokio::select! {
        () = watched.shutdown() => {}
        () = sleep_until(end) => {}
        () = engine.stopped() => {}
    }
}

/// Accepts connections for ever.
async fn accept(
    listener: &TcpListener,
    router: Router,
    server: &Arc<Server>,
    watched: &GracefulShutdown,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    http.header_read_timeout(server.options.head_time);
    // Without the second limit, a head may be longer than the first one by the size of one read.
    http.max_buf_size(HEAD_BYTES);
    http.max_header_size(HEAD_BYTES);
    loop {
        server.connections.room().await;
        let Ok((stream, address)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(place) = admit(server, address.ip()) else {
            refuse(server, stream);
            continue;
        };
        let client = TokioIo::new(Client::new(stream, server.clone(), Some(place.0.clone())));
        let service = service(router.clone(), &place);
        let connection = watched.watch(http.serve_connection(client, service));
        tokio::spawn(async move {
            tokio::select! {
                // An error means that the client has closed the connection, or does not read.
                _ = connection => {}
                () = place.0.must_leave() => {}
            }
        });
    }
}

/// A place for a new connection, if there is one for its address.
fn admit(server: &Server, address: IpAddr) -> Option<Place> {
    let (admission, made_room) = server.connections.admit(address);
    if made_room {
        server.metrics.closed(Closed::MadeRoom);
    }
    match admission {
        Admission::Place(place) => Some(place),
        Admission::TooMany => {
            server.metrics.closed(Closed::TooMany);
            None
        }
    }
}

/// Sends the error that the client has too many connections, if the client reads it soon enough.
fn refuse(server: &Arc<Server>, stream: TcpStream) {
    let error = ApiError::too_many_connections(server.connections.most_of_one());
    server.metrics.refused(error.status());
    let Ok(turn) = server.refusals.clone().try_acquire_owned() else {
        return;
    };
    let client = Client::new(stream, server.clone(), None);
    tokio::spawn(async move {
        // A client that does not read the error does not need it.
        let _ = timeout(REFUSAL_TIME, client.refuse(&error)).await;
        drop(turn);
    });
}

/// The router as the service of one connection. The connection counts as busy from the head of a request to the end of
/// its response.
fn service(
    router: Router,
    place: &Place,
) -> impl Service<Request<Incoming>, Response = Response<Worked>, Error = Infallible, Future: Send> + use<>
{
    let router = TowerToHyperService::new(router);
    let connection = place.0.clone();
    service_fn(move |mut request: Request<Incoming>| {
        let at_work = connection.begin();
        request.extensions_mut().insert(connection.clone());
        let response = router.call(request);
        async move {
            let response = response.await?;
            Ok(response.map(|body| Worked {
                body,
                _at_work: at_work,
            }))
        }
    })
}

/// The body of a response, together with values that must live as long.
struct Worked {
    body: Body,
    _at_work: AtWork,
}

impl HttpBody for Worked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The exit code of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Listens for Ctrl-C and SIGTERM from now on. The future resolves at the first signal, and a second one ends the
/// program, unless it is a part of the [same request](ONE_REQUEST). A signal that was ignored when the program started,
/// as in the background of a script, is still ignored.
pub(super) fn signals() -> impl Future<Output = ()> + Send + 'static {
    let mut signals = Signals::listen();
    async move {
        signals.next().await;
        let first = Instant::now();
        tokio::spawn(async move {
            loop {
                signals.next().await;
                if first.elapsed() > ONE_REQUEST {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    }
}

/// The signals that end the program; of these, only those for which a handler is installed are handled.
#[cfg(unix)]
struct Signals([Option<tokio::signal::unix::Signal>; 2]);

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        Self(kinds.map(|kind| {
            let ignored = is_ignored(kind.as_raw_value());
            (!ignored).then(|| signal(kind).ok()).flatten()
        }))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = self.0.each_mut().map(|signal| async move {
            match signal {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        });
        tokio::select! {
            _ = interrupt => {}
            _ = terminate => {}
        }
    }
}

/// Ctrl-C, the only such signal here.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // No handler can be installed, so the future never resolves.
            std::future::pending::<()>().await;
        }
    }
}
