//! The server's end of a connection to a client, between HTTP and the socket.
//!
//! It handles three faults of clients:
//!
//! - The client does not read what it asked for. When it has taken nothing for some time, the connection fails, and all
//!   that is held for it is dropped. A slow reader that takes something from time to time is tolerated, unless its reply
//!   takes some of the [room](super::reply_room) for large replies: then it must read at a minimum speed.
//! - The client sends something that is not HTTP, or too much of it. `hyper` answers such a request itself, before any
//!   handler and without a body; that answer is replaced by one in OpenAI's form.
//! - The client is still sending when its answer is complete, for example a body that is refused for its length. If the
//!   socket were closed then, the client's system would drop the answer unread. So the rest is read and dropped for a
//!   moment.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::Server;
use super::connections::Connection;
use super::error::ApiError;
use super::metrics::Closed;

/// The most bytes of a request's head.
pub(super) const HEAD_BYTES: usize = 64 * 1024;
/// The most headers of a request, `hyper`'s own limit.
pub(super) const HEADERS: usize = 100;

/// The bytes that the system buffers for a client until it reads them. If the buffer is small, the server soon notices
/// that a slow client does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// The bytes a second that a client must read, on average, of a reply that takes room. A slower client uses up the time
/// for which it may take nothing. So a reply of `n` bytes is sent within that time plus `n / 65536` seconds, not
/// counting the time in which the server has nothing to send.
const LARGE_REPLY_SPEED: u32 = 64 * 1024;

/// How long bytes that still come after the last answer are read and dropped.
const LINGER: Duration = Duration::from_secs(1);

/// A connection to a client.
pub(super) struct Client {
    stream: TcpStream,
    server: Arc<Server>,
    /// Its place among the connections, if it has one.
    connection: Option<Arc<Connection>>,
    /// The remaining time for which it may take nothing.
    patience: Duration,
    /// A timer that runs while there are bytes to write and none can be written.
    stalled: Option<Pin<Box<Sleep>>>,
    /// An error that is written in place of one of `hyper`'s.
    error: Option<OwnError>,
    /// A timer that runs after everything was written.
    lingers: Option<Pin<Box<Sleep>>>,
}

/// An error that takes the place of other bytes.
struct OwnError {
    bytes: Vec<u8>,
    written: usize,
    /// The number of bytes that it replaces.
    replaces: usize,
}

impl Client {
    pub(super) fn new(
        stream: TcpStream,
        server: Arc<Server>,
        connection: Option<Arc<Connection>>,
    ) -> Self {
        // Each token is a small packet, which should not wait until the packet before is acknowledged. If this fails,
        // tokens only come later.
        let _ = stream.set_nodelay(true);
        // If this fails, it only takes longer to notice a client that does not read.
        let _ = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        Self {
            stream,
            patience: server.options.write_time,
            server,
            connection,
            stalled: None,
            error: None,
            lingers: None,
        }
    }

    /// Sends only an error.
    pub(super) async fn refuse(mut self, error: &ApiError) -> io::Result<()> {
        let bytes = error.to_http();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = poll_fn(|context| self.write(context, rest)).await?;
            rest = &rest[written..];
        }
        poll_fn(|context| Pin::new(&mut self).poll_shutdown(context)).await
    }

    /// Writes to the socket. Fails if the client has taken nothing for too long, or too little of a large reply.
    fn write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            let left = self.stalled.take().map_or(self.patience, |stalled| {
                let now = Instant::now();
                stalled.deadline().saturating_duration_since(now)
            });
            let has_room = self
                .connection
                .as_ref()
                .is_some_and(|connection| connection.has_room());
            let write_time = self.server.options.write_time;
            self.patience = match written {
                Ok(bytes) if has_room => refilled(left, bytes, write_time),
                _ => write_time,
            };
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        self.server.metrics.closed(Closed::NotReading);
        // Bytes that the system still buffers for the client are dropped too.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes the rest of the error that replaces one of `hyper`'s.
    fn write_error(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(mut error) = self.error.take() {
            let rest = &error.bytes[error.written..];
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = self.write(context, rest);
            if let Poll::Ready(Ok(written)) = written {
                error.written += written;
            }
            self.error = Some(error);
            ready!(written)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.error.is_none()
            && let Some((start, status)) = automatic_error(bytes)
        {
            if start > 0 {
                return self.write(context, &bytes[..start]);
            }
            self.server.metrics.refused(status);
            self.error = Some(OwnError {
                bytes: ApiError::bad_head(status).to_http(),
                written: 0,
                replaces: bytes.len(),
            });
        }
        match self.error.as_ref().map(|error| error.replaces) {
            Some(replaces) => {
                ready!(self.write_error(context))?;
                Poll::Ready(Ok(replaces))
            }
            None => self.write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream, lingers, ..
        } = &mut *self;
        let lingers = match lingers {
            Some(lingers) => lingers,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                lingers.insert(Box::pin(sleep(LINGER)))
            }
        };
        loop {
            let mut dropped = [0; 4096];
            let mut dropped = ReadBuf::new(&mut dropped);
            if lingers.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut dropped)) {
                Ok(()) if !dropped.filled().is_empty() => {}
                // The client has closed its end too, or has disappeared.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

/// The remaining patience with a client of a large reply after it has taken `bytes`, if it was `left` before.
fn refilled(left: Duration, bytes: usize, write_time: Duration) -> Duration {
    let due = Duration::from_secs_f64(bytes as f64 / f64::from(LARGE_REPLY_SPEED));
    left.saturating_add(due).min(write_time)
}

/// Finds an error response of `hyper`'s own, which has no body, at the end of `bytes`: where it begins, and its status.
/// All other errors of this server have a body, and no body of its answers ends like a head.
fn automatic_error(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    let head = bytes.strip_suffix(b"\r\n\r\n")?;
    let start = head.windows(7).rposition(|part| part == b"HTTP/1.")?;
    let head = std::str::from_utf8(&head[start..]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let without_body = lines.any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    let is_error = StatusCode::is_client_error(&status);
    (is_error && without_body).then_some((start, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// How many bytes a client receives that takes `at_once` bytes every `seconds` seconds, at most `most`.
    fn taken(at_once: usize, seconds: f64, most: usize) -> usize {
        let (mut left, mut all) = (MINUTE, 0);
        while all < most {
            match left.checked_sub(Duration::from_secs_f64(seconds)) {
                None => break,
                Some(waited) => left = refilled(waited, at_once, MINUTE),
            }
            all += at_once;
        }
        all
    }

    #[test]
    fn a_large_reply_is_read_at_some_speed() {
        const MIB: usize = 1 << 20;
        // 3 KiB a second for a little longer than a minute, in whatever pieces.
        assert!(taken(3 << 10, 1.0, 128 * MIB) < 70 * (3 << 10));
        assert!(taken(100 << 10, 33.3, 128 * MIB) < 70 * (3 << 10));
        // Twice the speed, all of the time or with long pauses.
        assert_eq!(taken(128 << 10, 1.0, 128 * MIB), 128 * MIB);
        assert_eq!(taken(4 * MIB, 32.0, 128 * MIB), 128 * MIB);
        // Nothing is saved up for a pause longer than a minute.
        assert_eq!(refilled(Duration::ZERO, usize::MAX, MINUTE), MINUTE);
    }

    #[test]
    fn only_errors_without_a_body_are_replaced() {
        let error = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                     content-length: 0\r\ndate: Thu\r\n\r\n";
        let after = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}{error}");
        let too_large = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(automatic_error(error.as_bytes()), Some((0, too_large)));
        let start = after.len() - error.len();
        assert_eq!(automatic_error(after.as_bytes()), Some((start, too_large)));
        for other in [
            "",
            "\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 40\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n{}",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "0\r\n\r\n",
        ] {
            assert_eq!(automatic_error(other.as_bytes()), None, "{other:?}");
        }
    }
}
