//! The accept loop: one task per connection, so many at once, each with a limit on its heads and on how long
//! it may stall, and an end to all of them that lets finish what is in flight. When all places are taken, `seats` says
//! which connection makes room.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::client_address::Peer;
use super::seats::{self, Arriving, Room, Seat, Seats};
use super::{Error, Settings};

/// The wait after a failed accept. Most often the process is out of file descriptors: more tries would
/// only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The wait for the end of a connection that was told to make room, before another is told.
const ROOM_PAUSE: Duration = Duration::from_millis(10);

/// The connection was ended to make room for another, just as its request came.
#[derive(Debug, thiserror::Error)]
#[error("the connection was ended")]
struct Ended;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections cut off because their requests were not over in time.
    pub cut_off: usize,
}

/// The end of serving, as connections know it.
#[derive(Clone)]
struct Draining {
    begun: CancellationToken,
    /// How long a connection may then still bring a request.
    idle: Duration,
}

pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

/// As `TcpListener::bind`, but for the length of the queue.
fn bound(settings: &Settings) -> std::io::Result<TcpListener> {
    let socket = match settings.listen {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Else a node that starts again would have to wait for the old one's connections to be forgotten.
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
        // Whoever has been accepted and has no place yet: at most this one.
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
        // Who has connected already was not refused, and is answered.
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

/// Ends listening; gives the connections that wait in the kernel's queue, at most so many. The kernel is asked
/// itself: the runtime may not have heard of them yet.
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
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(settings.header_timeout_ms))
        .max_headers(settings.headers_max)
        .max_header_size(settings.header_max_bytes)
        .max_buf_size(settings.header_max_bytes.max(settings.body_max_bytes));
    server
}

/// A socket that refuses an option still works, only slower or longer.
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
                // Of a request with both lengths, `Transfer-Encoding` and `Content-Length`, the first alone counts, and
                // the connection has to end (RFC 9112, section 6.1): a proxy that went by the other one would take what
                // follows for another request. By now it cannot be told any more whether there were both.
                // What follows a body that nobody has read to its end would be taken for a request.
                if chunked || draining.is_cancelled() || seat.cut_short() {
                    // The connection ends with this answer, and its client knows.
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                if answer.status() == StatusCode::NOT_MODIFIED {
                    // It would have to be that of the record (RFC 9110, section 8.6), and the router says that of nothing.
                    answer.headers_mut().remove(CONTENT_LENGTH);
                }
                Ok::<_, Ended>(seats::answered(&seat, answer))
            }
        })
    };
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // A connection that ends with an error is the peer's: cut off, too slow, or no HTTP.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = draining.begun.cancelled() => {}
    }
    if tokio::time::timeout(draining.idle, connection.as_mut()).await.is_ok() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    // hyper keeps a connection that never had a request until its head time is over.
    if used.load(Ordering::Relaxed) {
        _ = connection.await;
    }
}
