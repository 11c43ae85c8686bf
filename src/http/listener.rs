//! The accept loop. Each connection has a task of its own, with limits on its request heads and on how long
//! it may stall. The number of connections is bounded. When all are in use, `seats` chooses the connection to
//! close. Draining lets requests in flight finish before the connections are closed.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::client_address::Peer;
use super::seats::{self, Arriving, Room, Seat, Seats};
use super::timer::SecondLook;
use super::{Error, Settings};

/// Pause after a failed accept. The usual cause is a lack of file descriptors, and retrying at once would
/// only consume processor time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for a connection that was told to end, before another one is told to end.
const ROOM_PAUSE: Duration = Duration::from_millis(10);

/// The connection was closed to make room for another just as its request arrived.
#[derive(Debug, thiserror::Error)]
#[error("the connection was ended")]
struct Ended;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Number of connections cut off because their requests did not finish in time.
    pub cut_off: usize,
}

/// The drain state that connections observe.
#[derive(Clone)]
struct Draining {
    begun: CancellationToken,
    /// How long a connection may still send a request after draining has begun.
    idle: Duration,
}

pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

/// Like `TcpListener::bind`, but with the configured length of the accept queue.
fn bound(settings: &Settings) -> std::io::Result<TcpListener> {
    let socket = match settings.listen {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Without `SO_REUSEADDR` a restarted node could not bind until the old connections leave TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(settings.listen)?;
    socket.listen(settings.queued_connections_max)
}

impl Listener {
    pub(super) async fn bind(settings: Settings) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: settings.listen, source };
        let socket = bound(&settings).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Listener { socket, address, settings })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send) -> Drained {
        let open = metrics::gauge!("hygeia_http_connections");
        let draining = Draining {
            begun: CancellationToken::new(),
            idle: Duration::from_millis(self.settings.drain_idle_ms),
        };
        let server = Arc::new(protocol(&self.settings));
        let ended = metrics::counter!("hygeia_http_connections_ended_total");
        let mut seats = Seats::new(Duration::from_millis(self.settings.waiting_grace_ms));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let accept =
            |connections: &mut JoinSet<()>, seats: &mut Seats, (stream, peer): (TcpStream, SocketAddr)| {
                prepare(&stream, &self.settings);
                let (server, router, draining) = (Arc::clone(&server), router.clone(), draining.clone());
                let seat = seats.seat();
                let task = connections.spawn(connection(
                    stream,
                    (Peer(peer), Arc::clone(&seat)),
                    server,
                    router,
                    draining,
                ));
                seats.take(seat, task);
            };
        // The one accepted connection that may have no slot yet.
        let mut standing: Option<(TcpStream, SocketAddr)> = None;
        let mut look_again = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            if connections.len() < self.settings.connections_max
                && let Some(accepted) = standing.take()
            {
                accept(&mut connections, &mut seats, accepted);
            }
            open.set(connections.len() as f64);
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(left) = connections.join_next_with_id() => {
                    seats.leave(left.map_or_else(|error| error.id(), |(id, ())| id));
                }
                () = &mut look_again, if standing.is_some() => {
                    let pause = match seats.make_room() {
                        Room::Made => {
                            ended.increment(1);
                            ROOM_PAUSE
                        }
                        Room::In(pause) => pause,
                    };
                    look_again.as_mut().reset(tokio::time::Instant::now() + pause);
                }
                accepted = self.socket.accept(), if standing.is_none() => match accepted {
                    Ok(accepted) => {
                        standing = Some(accepted);
                        look_again.as_mut().reset(tokio::time::Instant::now());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::select! {
                            () = &mut shutdown => break,
                            () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        }
                    }
                }
            }
        }
        // Clients that have already connected were not refused, so they are answered.
        let room = self.settings.connections_max.saturating_sub(connections.len());
        for stream in standing.into_iter().chain(connected(self.socket, room)).take(room) {
            accept(&mut connections, &mut seats, stream);
        }
        draining.begun.cancel();
        let all_over = async { while connections.join_next().await.is_some() {} };
        let in_time = Duration::from_millis(self.settings.drain_timeout_ms);
        let cut_off = match tokio::time::timeout(in_time, all_over).await {
            Ok(()) => 0,
            Err(_) => connections.len(),
        };
        connections.shutdown().await;
        open.set(0.0);
        Drained { cut_off }
    }
}

/// Stops listening, and returns the connections that wait in the kernel's queue, at most `most`. The kernel
/// is asked directly, because the runtime may not have been notified of them yet.
fn connected(socket: TcpListener, most: usize) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(socket) = socket.into_std() else { return Vec::new() };
    let next = || {
        let (stream, peer) = socket.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    };
    std::iter::from_fn(next).take(most).collect()
}

fn protocol(settings: &Settings) -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(SecondLook)
        .header_read_timeout(Duration::from_millis(settings.header_timeout_ms))
        .max_headers(settings.headers_max)
        .max_header_size(settings.header_max_bytes)
        .max_buf_size(settings.header_max_bytes.max(settings.body_max_bytes));
    server
}

/// Sets the socket options. A socket that rejects an option still works, but responds more slowly or stays
/// open longer.
fn prepare(stream: &TcpStream, settings: &Settings) {
    let stall = Duration::from_millis(u64::from(settings.write_stall_ms));
    let prepared =
        stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_user_timeout(Some(stall)));
    if let Err(error) = prepared {
        tracing::debug!(%error, "a socket option was refused");
    }
}

async fn connection(
    stream: TcpStream,
    (peer, seat): (Peer, Arc<Seat>),
    server: Arc<http1::Builder>,
    router: Router,
    draining: Draining,
) {
    let used = Arc::new(AtomicBool::new(false));
    let service = {
        let (used, draining) = (Arc::clone(&used), draining.begun.clone());
        service_fn(move |mut request: Request<Incoming>| {
            used.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(peer);
            let chunked = request.headers().contains_key(TRANSFER_ENCODING);
            let (seat, draining) = (Arc::clone(&seat), draining.clone());
            let (parts, body) = request.into_parts();
            let answer = Arriving::new(body, &seat)
                .map(|body| router.clone().call(Request::from_parts(parts, body)))
                .ok_or(Ended);
            async move {
                let Ok(mut answer) = answer?.await;
                // If a request has both `Transfer-Encoding` and `Content-Length`, only the first counts, and
                // the connection must be closed (RFC 9112, section 6.1): a proxy that used the length would
                // take the following bytes for another request. hyper has already removed the length, so
                // every chunked request closes its connection. Bytes after a body that was not read to its
                // end would also be taken for a request.
                if chunked || draining.is_cancelled() || seat.cut_short() {
                    // Announce in the response that the connection closes.
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                if answer.status() == StatusCode::NOT_MODIFIED {
                    // A `Content-Length` of a 304 must be that of the full record (RFC 9110, section 8.6),
                    // but the router sets 0.
                    answer.headers_mut().remove(CONTENT_LENGTH);
                }
                Ok::<_, Ended>(seats::answered(&seat, answer))
            }
        })
    };
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // An error here is caused by the peer: it disconnected, was too slow, or did not speak HTTP.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = draining.begun.cancelled() => {}
    }
    if tokio::time::timeout(draining.idle, connection.as_mut()).await.is_ok() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    // hyper would keep a connection without any request open until `header_timeout_ms`, so drop it instead.
    if used.load(Ordering::Relaxed) {
        _ = connection.await;
    }
}
