//! Connections as the server accepts them.
//!
//! Invariants:
//! - At most `connections_max` are open; one more is closed at once, so that its peer knows soon.
//! - A peer that does not open HTTP/2 within `opening_timeout_ms` is cut off; later silence is the
//!   keepalive's concern.
//! - A peer that floods us with what costs it nothing is told GOAWAY (`flood`), and cut off.
//! - When the drain's time is up, `cut` ends what is left.

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

/// The bytes every HTTP/2 client sends first: the preface and the header of its SETTINGS (RFC 9113,
/// section 3.4).
const OPENING_BYTES: usize = 24 + 9;
/// The pause after a failed accept, which says that the process is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the calls of one connection share.
#[derive(Clone)]
pub(super) struct ConnectionInfo {
    /// One permit per call that may run at the same time.
    pub(super) calls: Arc<Semaphore>,
    /// The address at the other end.
    pub(super) from: Option<IpAddr>,
}

/// The limits of connections.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections_max: usize,
    pub(super) calls_per_connection_max: usize,
    pub(super) opening_timeout: Duration,
}

/// The connections of `listener`, without end and without errors.
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
    /// Nothing of it is read any more.
    flooded: bool,
    /// What is still to be told before the end.
    farewell: &'static [u8],
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

/// A connection of which not all of `OPENING_BYTES` have come yet.
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
        // Without it the last segment of an answer may wait for an acknowledgement; an old answer is
        // still an answer, so a failure here is none.
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
            // HTTP/2 takes it for the end of what comes: it sends what it has begun to, and shuts the connection down.
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
