//! A link between two processes over TCP that can be cut, silenced or slowed, each direction by itself.
//!
//! A silenced direction holds what was sent into it, as TCP would send it again once the network is whole:
//! nothing is lost out of the middle of a connection. What one connection may hold is bounded; beyond it the
//! sender is no longer read and feels the silence as backpressure. New connections are taken while a link is
//! silent (a real network would let them wait), and get no answer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes that one direction of one connection holds at most, beside what the kernel has.
const HELD_MAX_BYTES: usize = 256 * 1024;
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Connections of one link at most; one more is closed at once.
const CONNECTIONS_MAX: usize = 512;
/// How long the far end may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a link does with bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They go on at once.
    #[default]
    Pass,
    /// They are held until the direction passes again.
    Hold,
    /// They go on after this time.
    Delay(Duration),
}

/// What a link does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// From who dialled to who listens.
    pub(crate) forward: Flow,
    /// From who listens to who dialled.
    pub(crate) backward: Flow,
    /// Connections are reset, old and new ones.
    pub(crate) cut: bool,
}

impl Rules {
    /// Nothing is wrong.
    pub(crate) const PASS: Rules = Rules { forward: Flow::Pass, backward: Flow::Pass, cut: false };
    /// Connections end with a reset.
    pub(crate) const CUT: Rules = Rules { forward: Flow::Pass, backward: Flow::Pass, cut: true };
    /// Silence both ways.
    pub(crate) const SILENT: Rules = Rules { forward: Flow::Hold, backward: Flow::Hold, cut: false };
    /// Who dialled is not heard.
    pub(crate) const DEAF: Rules = Rules { forward: Flow::Hold, backward: Flow::Pass, cut: false };
    /// Who listens is not heard.
    pub(crate) const MUTE: Rules = Rules { forward: Flow::Pass, backward: Flow::Hold, cut: false };

    /// What who dialled sends takes this much longer.
    pub(crate) const fn late(by: Duration) -> Rules {
        Rules { forward: Flow::Delay(by), backward: Flow::Pass, cut: false }
    }

    /// Every chunk takes this much longer, both ways.
    pub(crate) const fn slow(by: Duration) -> Rules {
        Rules { forward: Flow::Delay(by), backward: Flow::Delay(by), cut: false }
    }
}

/// A link. It ends with its connections when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    accepted: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

impl Link {
    /// Listens on a free port of loopback and carries what comes to `target`, which need not be there yet.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) async fn open(target: SocketAddr) -> std::io::Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (rules, told) = watch::channel(Rules::PASS);
        let accepted = Arc::new(AtomicU64::new(0));
        let serving = tokio::spawn(serve(listener, target, told, Arc::clone(&accepted)));
        Ok(Link { address, rules, accepted, serving })
    }

    /// Where to dial.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has carried so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// From now on it does this.
    pub(crate) fn set(&self, rules: Rules) {
        self.rules.send_replace(rules);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    listener: TcpListener,
    target: SocketAddr,
    rules: watch::Receiver<Rules>,
    carried: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((near, _)) if rules.borrow().cut || connections.len() >= CONNECTIONS_MAX => reset(near),
            Ok((near, _)) => {
                carried.fetch_add(1, Ordering::Relaxed);
                connections.spawn(carry(near, target, rules.clone()));
            }
            // Out of descriptors: what is there ends sooner or later.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One connection, until both ends have said that they are done, one of them fails, or it is cut.
async fn carry(mut near: TcpStream, target: SocketAddr, mut rules: watch::Receiver<Rules>) {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
    let Ok(Ok(mut far)) = dialled else { return reset(near) };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let whole = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let forward = pump(near_read, far_write, rules.clone(), |rules| rules.forward);
        let backward = pump(far_read, near_write, rules.clone(), |rules| rules.backward);
        tokio::select! {
            _ = rules.wait_for(|rules| rules.cut) => false,
            ended = async { tokio::try_join!(forward, backward) } => ended.is_ok(),
        }
    };
    if !whole {
        reset(near);
        reset(far);
    }
}

/// Ends a connection as a broken one ends.
fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Carries one direction until its sender has ended it.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut rules: watch::Receiver<Rules>,
    flow_of: impl Fn(&Rules) -> Flow,
) -> std::io::Result<()> {
    let mut held = Held::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut more = true;
    loop {
        let flow = flow_of(&rules.borrow_and_update());
        if held.bytes == 0 && !more && flow != Flow::Hold {
            return to.shutdown().await;
        }
        tokio::select! {
            read = from.read(&mut chunk), if more && held.bytes < HELD_MAX_BYTES => match read? {
                0 => more = false,
                n => held.push(&chunk[..n]),
            },
            written = held.write_to(&mut to, flow), if held.bytes > 0 && flow != Flow::Hold => written?,
            changed = rules.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// What was read and not yet written.
#[derive(Default)]
struct Held {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Held {
    fn push(&mut self, bytes: &[u8]) {
        self.chunks.push_back((Instant::now(), bytes.to_vec()));
        self.bytes += bytes.len();
    }

    /// Writes some of the oldest chunk once it is due. May be dropped while it waits.
    async fn write_to(&mut self, to: &mut WriteHalf<'_>, flow: Flow) -> std::io::Result<()> {
        let Some((read_at, chunk)) = self.chunks.front_mut() else { return Ok(()) };
        if let Flow::Delay(by) = flow {
            tokio::time::sleep_until(*read_at + by).await;
        }
        let written = to.write(chunk).await?;
        self.bytes -= written;
        if written == chunk.len() {
            self.chunks.pop_front();
        } else {
            chunk.drain(..written);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    /// As long as a silence is watched: nothing can be awaited that would show it.
    const SILENCE: Duration = Duration::from_millis(100);

    /// A link, its two ends, and where it leads.
    async fn connected() -> (Link, TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let link = Link::open(listener.local_addr().expect("bound")).await.expect("a link");
        let near = TcpStream::connect(link.address()).await.expect("connected");
        let (far, _) = listener.accept().await.expect("accepted");
        (link, near, far, listener)
    }

    async fn hears(stream: &mut TcpStream, expected: &[u8]) {
        let mut heard = vec![0; expected.len()];
        let reading = stream.read_exact(&mut heard);
        tokio::time::timeout(PATIENCE, reading).await.expect("in time").expect("readable");
        assert_eq!(heard, expected);
    }

    async fn hears_nothing(stream: &mut TcpStream) {
        let mut byte = [0];
        let heard = tokio::time::timeout(SILENCE, stream.read(&mut byte)).await;
        assert!(heard.is_err(), "something was heard: {heard:?}");
    }

    async fn is_reset(stream: &mut TcpStream) {
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("in time");
        let kind = read.expect_err("a reset").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_so_does_their_end() {
        let (_link, mut near, mut far, _listener) = connected().await;
        near.write_all(b"there").await.expect("written");
        hears(&mut far, b"there").await;
        far.write_all(b"back").await.expect("written");
        hears(&mut near, b"back").await;
        near.shutdown().await.expect("ended");
        assert_eq!(far.read(&mut [0]).await.expect("readable"), 0);
        far.write_all(b"still").await.expect("one end may go on");
        hears(&mut near, b"still").await;
    }

    #[tokio::test]
    async fn a_cut_resets_what_there_is_and_what_comes_until_it_is_healed() {
        let (link, mut near, mut far, listener) = connected().await;
        link.set(Rules::CUT);
        is_reset(&mut near).await;
        is_reset(&mut far).await;
        let mut again = TcpStream::connect(link.address()).await.expect("taken by the kernel");
        is_reset(&mut again).await;
        link.set(Rules::PASS);
        let mut near = TcpStream::connect(link.address()).await.expect("connected");
        let (mut far, _) = listener.accept().await.expect("accepted");
        near.write_all(b"whole").await.expect("written");
        hears(&mut far, b"whole").await;
    }

    #[tokio::test]
    async fn one_way_silence_holds_that_way_alone_and_loses_nothing() {
        for (rules, near_speaks) in [(Rules::DEAF, true), (Rules::MUTE, false)] {
            let (link, mut near, mut far, _listener) = connected().await;
            link.set(rules);
            let (speaker, hearer) = if near_speaks { (&mut near, &mut far) } else { (&mut far, &mut near) };
            speaker.write_all(b"held").await.expect("written");
            hears_nothing(hearer).await;
            hearer.write_all(b"passes").await.expect("written");
            hears(speaker, b"passes").await;
            link.set(Rules::PASS);
            hears(hearer, b"held").await;
        }
    }

    #[tokio::test]
    async fn silence_holds_the_end_of_a_connection_too() {
        let (link, mut near, mut far, _listener) = connected().await;
        link.set(Rules::SILENT);
        near.shutdown().await.expect("ended");
        hears_nothing(&mut far).await;
        link.set(Rules::PASS);
        assert_eq!(far.read(&mut [0]).await.expect("readable"), 0);
    }

    #[tokio::test]
    async fn what_a_silence_holds_is_bounded_and_comes_in_order() {
        let (link, mut near, mut far, _listener) = connected().await;
        link.set(Rules::SILENT);
        let sent: Vec<u8> = (0..64 * 1024 * 1024_u32).map(|n| (n / 1024) as u8).collect();
        let expected = sent.clone();
        let mut sending = tokio::spawn(async move {
            near.write_all(&sent).await.expect("written");
            near
        });
        let stuck = tokio::time::timeout(SILENCE * 5, &mut sending).await;
        assert!(stuck.is_err(), "64 MiB went into a silent link");
        link.set(Rules::PASS);
        hears(&mut far, &expected).await;
        sending.await.expect("sent");
    }

    #[tokio::test]
    async fn a_slow_link_is_late_and_not_lossy() {
        let (link, mut near, mut far, _listener) = connected().await;
        let late = Duration::from_millis(150);
        link.set(Rules::slow(late));
        let begun = Instant::now();
        near.write_all(b"late").await.expect("written");
        hears(&mut far, b"late").await;
        assert!(begun.elapsed() >= late, "after {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_target_that_is_away_is_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = listener.local_addr().expect("bound");
        drop(listener);
        let link = Link::open(target).await.expect("a link");
        let mut near = TcpStream::connect(link.address()).await.expect("taken by the kernel");
        is_reset(&mut near).await;
    }

    #[tokio::test]
    async fn connections_of_one_link_are_bounded() {
        let (link, mut near, _far, listener) = connected().await;
        let mut held = Vec::new();
        for _ in 1..CONNECTIONS_MAX {
            held.push((
                TcpStream::connect(link.address()).await.expect("connected"),
                listener.accept().await,
            ));
        }
        let mut beyond = TcpStream::connect(link.address()).await.expect("taken by the kernel");
        is_reset(&mut beyond).await;
        near.write_all(b"x").await.expect("the others stay");
    }
}
