//! Accepting connections, and the graceful end of a server.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::engine::Engine;

/// The most connections beside one for each text that can run or wait: for other requests, and for clients
/// that have not sent a request yet.
const SPARE: usize = 256;

/// How long to wait when the system cannot accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` resolves, and then until the requests that have come before are answered, but no
/// longer than `grace`. A connection on which no request begins within `head_time` is closed. When there
/// are too many connections, further ones wait to be accepted.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    engine: &Engine,
    stop: impl Future<Output = ()>,
    (head_time, grace): (Duration, Duration),
) {
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(engine.slots() + engine.queue() + SPARE));
    tokio::select! {
        () = accept(&listener, router, head_time, &connections, places) => {}
        () = stop => {}
        // There is nothing left to serve; the engine's thread returns the reason.
        () = engine.stopped() => {}
    }
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => {}
        () = sleep(grace) => {}
        () = engine.stopped() => {}
    }
}

/// Accepts connections for ever.
async fn accept(
    listener: &TcpListener,
    router: Router,
    head_time: Duration,
    connections: &GracefulShutdown,
    places: Arc<Semaphore>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    http.header_read_timeout(head_time);
    // The semaphore is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Each token is a small packet, which should not wait for the acknowledgement of the one before.
        // If this fails, tokens come later, and nothing else happens.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        // An error means that the client has broken the connection off.
        tokio::spawn(async { drop((connection.await, place)) });
    }
}

/// Resolves at Ctrl-C or SIGTERM. The second of them ends the program.
pub(super) async fn signals() {
    first_signal().await;
    tokio::spawn(async {
        first_signal().await;
        std::process::exit(INTERRUPTED);
    });
}

/// The exit code of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

async fn first_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // No handler can be installed.
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
