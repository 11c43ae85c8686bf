//! The accepted connections.
//!
//! Invariants:
//! - At most `connections_max` are open. A further one is closed at once, so that its peer notices soon.
//! - A peer that does not start HTTP/2 within `opening_timeout_ms` is disconnected. Later silence is detected
//!   by the keepalive.
//! - A peer that floods the server with frames that need an answer is sent GOAWAY (`flood`), and
//!   disconnected.
//! - When the time for draining is up, `cut` ends the remaining connections.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::flood::{FloodGate, GOAWAY};

/// Length of what every HTTP/2 client sends first: the preface and the header of its SETTINGS frame (RFC
/// 9113, section 3.4).
const OPENING_BYTES: usize = 24 + 9;
/// Pause after a failed accept. The usual cause is that the process has run out of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// State shared by the calls of one connection.
#[derive(Clone)]
pub(super) struct ConnectionInfo {
    /// One permit per call that may run at a time.
    pub(super) calls: Arc<Semaphore>,
    /// Address of the peer.
    pub(super) from: Option<IpAddr>,
}

/// Limits of connections.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections_max: usize,
    pub(super) calls_per_connection_max: usize,
    pub(super) opening_timeout: Duration,
}

/// Returns the accepted connections of `listener`, as an endless stream without errors.
pub(super) fn accept(
    listener: TcpListener,
    limits: Limits,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let free = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    futures::stream::unfold((listener, free, cut), move |(listener, free, cut)| async move {
        loop {
            let tcp = match listener.accept().await {
                Ok((tcp, _peer)) => tcp,
                Err(error) => {
                    tracing::warn!(target: "hygeia::grpc", %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                metrics::counter!("hygeia_grpc_connections_refused_total").increment(1);
                continue;
            };
            let connection = Connection::new(tcp, permit, limits, &cut);
            return Some((Ok(connection), (listener, free, cut)));
        }
    })
}

/// One accepted connection.
pub(super) struct Connection {
    tcp: TcpStream,
    info: ConnectionInfo,
    opening: Option<Opening>,
    gate: FloodGate,
    /// Whether the peer has flooded the server. Nothing more is read then.
    flooded: bool,
    /// Bytes still to be sent before the connection closes.
    farewell: &'static [u8],
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

/// A connection that has not received all of `OPENING_BYTES` yet.
struct Opening {
    received_bytes: usize,
    time_up: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(
        tcp: TcpStream,
        permit: OwnedSemaphorePermit,
        limits: Limits,
        cut: &CancellationToken,
    ) -> Connection {
        metrics::gauge!("hygeia_grpc_connections").increment(1.0);
        // With Nagle's algorithm, the last segment of a response may wait for an acknowledgement. A failure
        // here is ignored, because a late response is still a response.
        let _ = tcp.set_nodelay(true);
        let from = tcp.peer_addr().ok().map(|peer| peer.ip());
        Connection {
            tcp,
            info: ConnectionInfo {
                calls: Arc::new(Semaphore::new(limits.calls_per_connection_max.min(Semaphore::MAX_PERMITS))),
                from,
            },
            opening: Some(Opening {
                received_bytes: 0,
                time_up: Box::pin(tokio::time::sleep(limits.opening_timeout)),
            }),
            gate: FloodGate::new(Instant::now()),
            flooded: false,
            farewell: &[],
            cut: Box::pin(cut.clone().cancelled_owned()),
            _permit: permit,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("hygeia_grpc_connections").decrement(1.0);
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Some(opening) = &mut self.opening
            && opening.time_up.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.flooded {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        let received = buf.filled().len() - before;
        if let Some(rest) = self.gate.look(&buf.filled()[before..], Instant::now()) {
            metrics::counter!("hygeia_grpc_connections_flooded_total").increment(1);
            self.flooded = true;
            self.farewell = GOAWAY;
            // HTTP/2 takes this for the end of input: it finishes what it is sending, and shuts the
            // connection down.
            buf.set_filled(before + rest);
        }
        self.opening = self.opening.take().and_then(|opening| {
            let received_bytes = opening.received_bytes + received;
            (received_bytes < OPENING_BYTES).then_some(Opening { received_bytes, ..opening })
        });
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.farewell.is_empty() {
            let farewell = self.farewell;
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, farewell))?;
            self.farewell = &farewell[written..];
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
