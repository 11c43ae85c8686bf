//! The accept loop: one task per connection, so many at once, each with a limit on its heads and on how long
//! it may stall, and an end to all of them that lets finish what is in flight.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{Error, Settings};

/// The wait after a failed accept. Most often the process is out of file descriptors: more tries would
/// only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that has not sent anything yet may do so while the server drains.
const DRAIN_FRESH: Duration = Duration::from_millis(250);

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections cut off because their requests were not over in time.
    pub cut_off: usize,
}

pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

impl Listener {
    pub(super) async fn bind(settings: Settings) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: settings.listen, source };
        let socket = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Listener { socket, address, settings })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send) -> Drained {
        let open = metrics::gauge!("hygeia_http_connections");
        let draining = CancellationToken::new();
        let server = Arc::new(protocol(&self.settings));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let full = connections.len() >= self.settings.connections_max;
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = self.socket.accept(), if !full => match accepted {
                    Ok((stream, _)) => {
                        prepare(&stream, &self.settings);
                        let (server, router, draining) = (Arc::clone(&server), router.clone(), draining.clone());
                        connections.spawn(connection(stream, server, router, draining));
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
            open.set(connections.len() as f64);
        }
        drop(self.socket);
        draining.cancel();
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
    server: Arc<http1::Builder>,
    router: Router,
    draining: CancellationToken,
) {
    let used = Arc::new(AtomicBool::new(false));
    let service = {
        let used = Arc::clone(&used);
        service_fn(move |request: Request<Incoming>| {
            used.store(true, Ordering::Relaxed);
            router.clone().call(request)
        })
    };
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    // A connection that ends with an error is the peer's: cut off, too slow, or no HTTP.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = draining.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if used.load(Ordering::Relaxed) {
        _ = connection.await;
    } else {
        // hyper keeps a connection that never had a request until its head time is over.
        _ = tokio::time::timeout(DRAIN_FRESH, connection.as_mut()).await;
        if used.load(Ordering::Relaxed) {
            _ = connection.await;
        }
    }
}
