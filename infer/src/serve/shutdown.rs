//! How a server ends.

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

/// Connections beside one for each text that there can be, at most: of those who ask for something else,
/// or nothing yet.
const SPARE: usize = 256;

/// How long to wait when the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, and then for as long as there are requests that have come before, but no
/// longer than `grace`. A connection on which no request begins within `head_time` is closed; when there
/// are enough of them, further ones wait to be taken.
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
        // There is nothing left to serve; why it has stopped, it says itself.
        () = engine.stopped() => {}
    }
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => {}
        () = sleep(grace) => {}
        () = engine.stopped() => {}
    }
}

/// Takes connections for ever.
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
    // It is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Each token is a small packet, which must not wait for the last one's receipt. At worst it
        // does.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        // Whoever breaks it off knows best why.
        tokio::spawn(async { drop((connection.await, place)) });
    }
}

/// Resolves at Ctrl-C, or the polite kill of a system that shuts down; at the second, ends the
/// program.
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
            // Nothing to listen to.
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
