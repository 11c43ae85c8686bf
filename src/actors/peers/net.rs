//! Connections between nodes until ractor takes them over. Accepts and dials, and limits the number of
//! connections that have not completed the handshake and the time that they may take.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ractor::ActorRef;
use ractor_cluster::{BoxRead, BoxWrite};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::TARGET;
use super::greeting::{self, Guest, Identity, Refusal};
use super::manager::{Admission, PeersMessage};
use super::settings::Settings;
use super::targets::Due;
use super::tls::Tls;
use crate::proto::cluster::Outcome;

/// The pause after a failed accept. Usually the process is out of file descriptors, and immediate retries
/// would only use processor time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The most log lines about refused connections with the same reason, within `REFUSALS_PERIOD`.
const REFUSALS_TOLD_MAX: u32 = 10;
const REFUSALS_PERIOD: Duration = Duration::from_secs(10);

/// The context shared by accepting and dialling.
pub(super) struct Net {
    pub(super) identity: Identity,
    pub(super) tls: Option<Tls>,
    pub(super) settings: Settings,
    pub(super) refusals: Refusals,
}

/// A connection that has completed the handshake.
pub(super) struct Opened {
    pub(super) reader: BoxRead,
    pub(super) writer: BoxWrite,
    pub(super) remote: SocketAddr,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn certificate(&self) -> Option<CertificateDer<'static>> {
        let Stream::Tls(stream) = self else { return None };
        let (_, connection) = stream.get_ref();
        connection.peer_certificates()?.first().map(|der| der.clone().into_owned())
    }

    fn split(self) -> (BoxRead, BoxWrite) {
        match self {
            Stream::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Stream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                (Box::new(reader), Box::new(writer))
            }
        }
    }
}

impl Net {
    async fn greet(
        &self,
        mut stream: Stream,
        remote: SocketAddr,
        dialled: Option<&Due>,
        peers: &ActorRef<PeersMessage>,
        claims: &Claims,
    ) -> Result<(Opened, Promise), Refusal> {
        let certificate = stream.certificate();
        let name_fits = |name: &str| {
            let _ = claims.name.set(name.to_owned());
            self.tls.as_ref().is_none_or(|tls| tls.name_fits(certificate.as_ref(), name))
                && dialled.and_then(|due| due.expected.as_deref()).is_none_or(|expected| expected == name)
        };
        let admit = async |guest: &Guest| {
            claims.shown.store(true, Ordering::Release);
            admitted(peers, guest, dialled.map(|due| due.target)).await
        };
        let me = &self.identity;
        let (_, promise) = match (&mut stream, dialled.is_some()) {
            (Stream::Plain(stream), true) => greeting::dial(stream, me, name_fits, admit).await?,
            (Stream::Tls(stream), true) => greeting::dial(stream, me, name_fits, admit).await?,
            (Stream::Plain(stream), false) => greeting::accept(stream, me, name_fits, admit).await?,
            (Stream::Tls(stream), false) => greeting::accept(stream, me, name_fits, admit).await?,
        };
        let (reader, writer) = stream.split();
        Ok((Opened { reader, writer, remote }, promise))
    }

    async fn accepted(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        peers: &ActorRef<PeersMessage>,
        claims: &Claims,
    ) -> Result<(), Refusal> {
        self.prepare(&stream);
        let stream = match &self.tls {
            Some(tls) => Stream::Tls(Box::new(TlsStream::Server(tls.acceptor.accept(stream).await?))),
            None => Stream::Plain(stream),
        };
        let (opened, promise) = self.greet(stream, remote, None, peers, claims).await?;
        promise.keep(opened);
        Ok(())
    }

    /// Dials a node and runs the handshake. `PeersActor` then owns the session.
    pub(super) async fn dial(&self, due: &Due, peers: &ActorRef<PeersMessage>) -> Result<(), Refusal> {
        let stream =
            within(self.settings.dial_timeout(), async { Ok(TcpStream::connect(&*due.address).await?) });
        let stream = stream.await?;
        let remote = stream.peer_addr()?;
        self.prepare(&stream);
        within(self.settings.handshake_timeout(), async {
            let stream = match &self.tls {
                Some(tls) => {
                    // The peer's identity comes from the handshake, not from its address.
                    let nobody = ServerName::from(remote.ip());
                    Stream::Tls(Box::new(TlsStream::Client(tls.connector.connect(nobody, stream).await?)))
                }
                None => Stream::Plain(stream),
            };
            let (opened, promise) = self.greet(stream, remote, Some(due), peers, &Claims::default()).await?;
            promise.keep(opened);
            Ok(())
        })
        .await
    }

    /// Sets socket options. A socket that refuses one still works, but is slower or detects a failure later.
    fn prepare(&self, stream: &TcpStream) {
        let socket = SockRef::from(stream);
        let silence = self.settings.silence_max().max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(silence).with_interval(Duration::from_secs(1));
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| socket.set_tcp_keepalive(&keepalive))
            .and_then(|()| socket.set_tcp_user_timeout(Some(silence)));
        if let Err(error) = prepared {
            tracing::debug!(%error, "a socket option was refused");
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long").into()),
    }
}

async fn admitted(
    peers: &ActorRef<PeersMessage>,
    guest: &Guest,
    dialled: Option<u64>,
) -> Result<Promise, Outcome> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let admission = Admission { guest: guest.clone(), dialled, reply: reply.into() };
    let _ = peers.cast(PeersMessage::Admit(Box::new(admission)));
    let ticket = answer.await.unwrap_or(Err(Outcome::TryLater))?;
    Ok(Promise { ticket, peers: Some(peers.clone()) })
}

/// The place reserved for an admitted node. It is released unless the connection is handed over.
struct Promise {
    ticket: u64,
    peers: Option<ActorRef<PeersMessage>>,
}

impl Promise {
    fn keep(mut self, opened: Opened) {
        if let Some(peers) = self.peers.take() {
            let _ = peers.cast(PeersMessage::Adopt { ticket: self.ticket, opened: Box::new(opened) });
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(peers) = self.peers.take() {
            let _ = peers.cast(PeersMessage::Abandon { ticket: self.ticket });
        }
    }
}

/// Accepts nodes until it is dropped, which closes the connections that are still in the handshake.
pub(super) async fn accept(listener: Arc<TcpListener>, net: Arc<Net>, peers: ActorRef<PeersMessage>) {
    let mut greeting = JoinSet::new();
    let mut pending = Pending::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = greeting.join_next_with_id() => {
                pending.ended(ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
        };
        match accepted {
            Ok((stream, remote)) => {
                if let Some(pushed_out) = pending.make_room(&net.settings) {
                    net.refusals.tell(
                        pushed_out.unwrap_or(remote),
                        None,
                        "too_many_pending",
                        &"too many connections have not said who they are",
                    );
                    if pushed_out.is_none() {
                        continue;
                    }
                }
                let claims = Arc::new(Claims::default());
                let work =
                    greet_stranger(Arc::clone(&net), stream, remote, peers.clone(), Arc::clone(&claims));
                let task = greeting.spawn(work);
                pending.0.push_back(Stranger { remote, claims, task });
            }
            Err(error) => {
                tracing::warn!(target: TARGET, %error, "a connection of a node could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet_stranger(
    net: Arc<Net>,
    stream: TcpStream,
    remote: SocketAddr,
    peers: ActorRef<PeersMessage>,
    claims: Arc<Claims>,
) {
    let greeted = net.accepted(stream, remote, &peers, &claims);
    let Err(refusal) = within(net.settings.handshake_timeout(), greeted).await else { return };
    if refusal.is_harmless() {
        tracing::debug!(target: TARGET, %remote, reason = %refusal, "a connection was not needed");
    } else {
        net.refusals.tell(remote, claims.name.get(), refusal.label(), &refusal);
    }
    if matches!(refusal, Refusal::Theirs(Outcome::NameTaken)) {
        let _ = peers.cast(PeersMessage::NameTaken);
    }
}

/// What a connection has claimed or proved so far.
#[derive(Default)]
struct Claims {
    /// The name that the peer gave, which may be false.
    name: OnceLock<String>,
    /// Whether the peer has proved that it holds the cluster's secret.
    shown: AtomicBool,
}

/// A connection in the handshake.
struct Stranger {
    remote: SocketAddr,
    claims: Arc<Claims>,
    task: AbortHandle,
}

/// The connections in the handshake, in the order of their arrival.
///
/// Invariant: at most `connections_pending_max` of them have not proved the secret. Silent connections cannot
/// exclude a node: the oldest unproved connection is closed for a new one. A node of the cluster needs only
/// one or two round trips for its proof.
#[derive(Default)]
struct Pending(VecDeque<Stranger>);

impl Pending {
    fn ended(&mut self, task: tokio::task::Id) {
        self.0.retain(|stranger| stranger.task.id() != task);
    }

    /// Makes room for one more connection. Returns `None` if there was room, `Some(Some(address))` for the
    /// peer whose connection was closed, and `Some(None)` if there is no room.
    #[allow(clippy::option_option, reason = "there was room; somebody went; there is no room")]
    fn make_room(&mut self, settings: &Settings) -> Option<Option<SocketAddr>> {
        let is_silent = |stranger: &Stranger| !stranger.claims.shown.load(Ordering::Acquire);
        let silent = self.0.iter().filter(|stranger| is_silent(stranger)).count();
        if self.0.len() - silent >= settings.peers_max {
            return Some(None);
        }
        if silent < settings.connections_pending_max {
            return None;
        }
        let oldest = self.0.iter().position(is_silent)?;
        let gone = self.0.remove(oldest)?;
        gone.task.abort();
        Some(Some(gone.remote))
    }
}

/// Counts refused connections, and logs each as long as there are few.
#[derive(Default)]
pub(super) struct Refusals {
    told: Mutex<HashMap<&'static str, (Instant, u32)>>,
}

impl Refusals {
    /// Counts a refused connection and logs it within the limit. `claimed` is the name that the peer gave,
    /// which may be false.
    fn tell(
        &self,
        remote: SocketAddr,
        claimed: Option<&String>,
        label: &'static str,
        why: &dyn std::fmt::Display,
    ) {
        metrics::counter!("hygeia_peer_refused_total", "reason" => label).increment(1);
        match self.count(label, Instant::now()) {
            n if n < REFUSALS_TOLD_MAX => {
                tracing::warn!(target: TARGET, %remote, claimed, reason = label, "a connection was refused: {why}");
            }
            REFUSALS_TOLD_MAX => {
                tracing::warn!(
                    reason = label,
                    "more connections are refused; they are only counted for a while"
                );
            }
            _ => {}
        }
    }

    /// Returns the number of earlier refusals with this reason in the current period.
    fn count(&self, label: &'static str, now: Instant) -> u32 {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = told.entry(label).or_insert((now, 0));
        if now.duration_since(*since) >= REFUSALS_PERIOD {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason_and_period() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let counts: Vec<_> = (0..3).map(|_| refusals.count("garbled", start)).collect();
        assert_eq!(counts, [0, 1, 2]);
        assert_eq!(refusals.count("too_slow", start), 0);
        assert_eq!(refusals.count("garbled", start + REFUSALS_PERIOD), 0);
    }
}
