//! The handshake between two nodes: it establishes the peer's identity, its membership in the cluster, and
//! whether a session is wanted. Nothing else is read from a connection before the handshake is complete, so
//! an unknown peer reaches neither ractor nor an actor.
//!
//! Both sides prove that they hold the cluster's secret. A proof is an HMAC-SHA256 (RFC 2104) over a word for
//! the side, the dialler's hello and the acceptor's hello. Its key is derived from the secret and the
//! cluster's name. Each hello contains a fresh nonce, so no proof can be replayed. A proof of one side is not
//! valid for the other.

use std::io;
use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::settings::{Secret, is_address, is_name};
use crate::proto::cluster::greeting::Step;
use crate::proto::cluster::{Challenge, Greeting, Hello, Outcome, Proof, Verdict};

/// The protocol version of this program.
pub(super) const PROTOCOL: u32 = 1;

const MAGIC: [u8; 4] = *b"HYG1";
/// A step contains two names, an address and some numbers.
const STEP_MAX_BYTES: usize = 2048;
const NONCE_BYTES: usize = 32;
const OWNER_MAX_BYTES: usize = 128;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The connection broke or was too slow.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The received bytes are not a handshake message.
    #[error("what it said is not the greeting of a node")]
    Garbled,
    /// This node refused.
    #[error("{}", told(*.0))]
    Ours(Outcome),
    /// The other node refused.
    #[error("refused by the other side: {}", told(*.0))]
    Theirs(Outcome),
}

impl Refusal {
    /// Returns the reason as a metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Refusal::Broken(error) if error.kind() == io::ErrorKind::TimedOut => "too_slow",
            Refusal::Broken(_) => "broken",
            Refusal::Garbled => "garbled",
            Refusal::Ours(outcome) | Refusal::Theirs(outcome) => label(*outcome),
        }
    }

    /// Returns whether the refusal is part of normal operation, such as a second connection.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(self, Refusal::Ours(outcome) | Refusal::Theirs(outcome)
            if matches!(outcome, Outcome::Connected | Outcome::Self_ | Outcome::TryLater))
    }
}

fn told(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "a reason that this version does not know",
        Outcome::Accepted => "accepted",
        Outcome::OtherProtocol => "it speaks another version of the protocol",
        Outcome::OtherCluster => "it belongs to another cluster",
        Outcome::WrongSecret => "the cluster's secret is not the same",
        Outcome::WrongName => "the node's name does not hold, or is not that of its certificate",
        Outcome::NameTaken => "a live node has the same name",
        Outcome::Connected => "the two are connected already",
        Outcome::TooMany => "there are as many nodes as may be",
        Outcome::TryLater => "not now",
        Outcome::Self_ => "the node has dialled itself",
    }
}

fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unknown",
        Outcome::Accepted => "accepted",
        Outcome::OtherProtocol => "other_protocol",
        Outcome::OtherCluster => "other_cluster",
        Outcome::WrongSecret => "wrong_secret",
        Outcome::WrongName => "wrong_name",
        Outcome::NameTaken => "name_taken",
        Outcome::Connected => "connected",
        Outcome::TooMany => "too_many",
        Outcome::TryLater => "try_later",
        Outcome::Self_ => "self",
    }
}

/// This node's identity in the handshake.
pub(super) struct Identity {
    pub(super) name: Arc<str>,
    pub(super) owner: Arc<str>,
    pub(super) cluster: String,
    pub(super) advertised: String,
    key: hmac::Key,
}

impl Identity {
    pub(super) fn new(
        name: Arc<str>,
        owner: Arc<str>,
        cluster: &str,
        advertised: String,
        secret: &Secret,
    ) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
        let of_cluster = hmac::sign(&secret, format!("hygeia peers 1: {cluster}").as_bytes());
        let key = hmac::Key::new(hmac::HMAC_SHA256, of_cluster.as_ref());
        Identity { name, owner, cluster: cluster.to_owned(), advertised, key }
    }

    /// Returns the cookie for ractor's own handshake. It depends on the secret and the cluster too.
    pub(super) fn cookie(&self) -> String {
        hmac::sign(&self.key, b"cookie").as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn hello(&self) -> io::Result<Hello> {
        let mut nonce = vec![0; NONCE_BYTES];
        let mut link = [0; 8];
        getrandom::fill(&mut nonce).and_then(|()| getrandom::fill(&mut link)).map_err(io::Error::from)?;
        Ok(Hello {
            protocol: PROTOCOL,
            cluster: self.cluster.clone(),
            name: self.name.to_string(),
            owner: self.owner.to_string(),
            advertised: self.advertised.clone(),
            nonce,
            link: u64::from_ne_bytes(link),
        })
    }

    fn mac(&self, side: &str, dialler: &Hello, acceptor: &Hello) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(side.as_bytes());
        for hello in [dialler, acceptor] {
            for part in [
                &hello.protocol.to_be_bytes()[..],
                hello.cluster.as_bytes(),
                hello.name.as_bytes(),
                hello.owner.as_bytes(),
                hello.advertised.as_bytes(),
                &hello.nonce,
                &hello.link.to_be_bytes(),
            ] {
                context.update(&(part.len() as u64).to_be_bytes());
                context.update(part);
            }
        }
        context.sign().as_ref().to_vec()
    }

    /// Checks the parts of `hello` that do not depend on the secret.
    fn look_at(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.protocol != PROTOCOL {
            return Err(Refusal::Ours(Outcome::OtherProtocol));
        }
        if hello.cluster != self.cluster {
            return Err(Refusal::Ours(Outcome::OtherCluster));
        }
        let owner_fits = hello.owner.len() <= OWNER_MAX_BYTES
            && hello.owner.bytes().all(|b| b.is_ascii_graphic())
            && hello.owner.strip_prefix(&hello.name).is_some_and(|rest| rest.starts_with('#'));
        if !is_name(&hello.name) || !owner_fits || !is_address(&hello.advertised) {
            return Err(Refusal::Ours(Outcome::WrongName));
        }
        if hello.nonce.len() != NONCE_BYTES {
            return Err(Refusal::Garbled);
        }
        Ok(())
    }
}

/// The identity of a peer that has proved its membership in the cluster.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) name: Arc<str>,
    pub(super) owner: Arc<str>,
    pub(super) advertised: String,
    /// The number that the peer puts on its messages.
    pub(super) link_in: u64,
    /// The number that this node puts on its messages.
    pub(super) link_out: u64,
}

impl Guest {
    fn new(theirs: Hello, ours: &Hello) -> Self {
        Guest {
            name: theirs.name.into(),
            owner: theirs.owner.into(),
            advertised: theirs.advertised,
            link_in: ours.link,
            link_out: theirs.link,
        }
    }
}

/// Runs the handshake on the dialling side. `name_fits` returns whether the peer's certificate is valid for
/// its name; `admit` returns whether the session is wanted.
pub(super) async fn dial<S, T>(
    stream: &mut S,
    me: &Identity,
    name_fits: impl Fn(&str) -> bool,
    admit: impl AsyncFnOnce(&Guest) -> Result<T, Outcome>,
) -> Result<(Guest, T), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = me.hello()?;
    send(stream, Step::Hello(ours.clone())).await?;
    let challenge = match receive(stream).await? {
        Step::Challenge(challenge) => challenge,
        // The peer is not authenticated yet, so its verdict must not end this node.
        Step::Verdict(verdict) if verdict.outcome() == Outcome::NameTaken => return Err(Refusal::Garbled),
        Step::Verdict(verdict) => return Err(Refusal::Theirs(verdict.outcome())),
        _ => return Err(Refusal::Garbled),
    };
    let theirs = challenge.hello.ok_or(Refusal::Garbled)?;
    let looked_at = me.look_at(&theirs).and_then(|()| {
        let expected = me.mac("acceptor", &ours, &theirs);
        match constant_time::verify_slices_are_equal(&expected, &challenge.mac) {
            Ok(()) if !name_fits(&theirs.name) => Err(Refusal::Ours(Outcome::WrongName)),
            Ok(()) => Ok(()),
            Err(_) => Err(Refusal::Ours(Outcome::WrongSecret)),
        }
    });
    let mac = me.mac("dialler", &ours, &theirs);
    if let Err(refusal) = looked_at {
        if let Refusal::Ours(outcome) = refusal {
            // Send no proof, because the peer is not authenticated.
            send(stream, Step::Proof(Proof { mac: Vec::new(), outcome: outcome.into() })).await?;
        }
        return Err(refusal);
    }
    let guest = Guest::new(theirs, &ours);
    let admitted = admit(&guest).await;
    let outcome = admitted.as_ref().err().copied().unwrap_or(Outcome::Accepted);
    send(stream, Step::Proof(Proof { mac, outcome: outcome.into() })).await?;
    let ticket = admitted.map_err(Refusal::Ours)?;
    match receive(stream).await? {
        Step::Verdict(verdict) if verdict.outcome() == Outcome::Accepted => Ok((guest, ticket)),
        Step::Verdict(verdict) => Err(Refusal::Theirs(verdict.outcome())),
        _ => Err(Refusal::Garbled),
    }
}

/// Runs the handshake on the accepting side; see `dial`.
pub(super) async fn accept<S, T>(
    stream: &mut S,
    me: &Identity,
    name_fits: impl Fn(&str) -> bool,
    admit: impl AsyncFnOnce(&Guest) -> Result<T, Outcome>,
) -> Result<(Guest, T), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Step::Hello(theirs) = receive(stream).await? else { return Err(Refusal::Garbled) };
    let looked_at = me.look_at(&theirs);
    let looked_at = looked_at
        .and_then(|()| if name_fits(&theirs.name) { Ok(()) } else { Err(Refusal::Ours(Outcome::WrongName)) });
    if let Err(refusal) = looked_at {
        return turn_away(stream, refusal).await;
    }
    let ours = me.hello()?;
    let mac = me.mac("acceptor", &theirs, &ours);
    send(stream, Step::Challenge(Challenge { hello: Some(ours.clone()), mac })).await?;
    let Step::Proof(proof) = receive(stream).await? else { return Err(Refusal::Garbled) };
    if proof.mac.is_empty() && matches!(proof.outcome(), Outcome::WrongSecret | Outcome::WrongName) {
        return Err(Refusal::Theirs(proof.outcome()));
    }
    let expected = me.mac("dialler", &theirs, &ours);
    if constant_time::verify_slices_are_equal(&expected, &proof.mac).is_err() {
        return turn_away(stream, Refusal::Ours(Outcome::WrongSecret)).await;
    }
    if proof.outcome() != Outcome::Accepted {
        return Err(Refusal::Theirs(proof.outcome()));
    }
    let guest = Guest::new(theirs, &ours);
    match admit(&guest).await {
        Ok(ticket) => {
            send(stream, Step::Verdict(Verdict { outcome: Outcome::Accepted.into() })).await?;
            Ok((guest, ticket))
        }
        Err(outcome) => turn_away(stream, Refusal::Ours(outcome)).await,
    }
}

async fn turn_away<S, T>(stream: &mut S, refusal: Refusal) -> Result<T, Refusal>
where
    S: AsyncWrite + Unpin,
{
    if let Refusal::Ours(outcome) = refusal {
        // The refused peer may already be gone.
        let _ = send(stream, Step::Verdict(Verdict { outcome: outcome.into() })).await;
        let _ = stream.shutdown().await;
    }
    Err(refusal)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, step: Step) -> io::Result<()> {
    let greeting = Greeting { step: Some(step) };
    let length = u16::try_from(greeting.encoded_len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(MAGIC.len() + 2 + usize::from(length));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&greeting.encode_to_vec());
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Step, Refusal> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    if head[..4] != MAGIC || length > STEP_MAX_BYTES {
        return Err(Refusal::Garbled);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Greeting::decode(&*bytes).ok().and_then(|greeting| greeting.step).ok_or(Refusal::Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, cluster: &str, secret: char) -> Identity {
        let secret = Secret::from(secret.to_string().repeat(32));
        Identity::new(name.into(), format!("{name}#1").into(), cluster, format!("{name}:9100"), &secret)
    }

    type Met = Result<(Guest, ()), Refusal>;

    async fn meet(dialler: &Identity, acceptor: &Identity, wanted: Result<(), Outcome>) -> (Met, Met) {
        let (mut left, mut right) = tokio::io::duplex(4096);
        tokio::join!(async move { dial(&mut left, dialler, |_| true, async |_| Ok(())).await }, async move {
            accept(&mut right, acceptor, |_| true, async |_| wanted).await
        },)
    }

    #[tokio::test]
    async fn two_of_one_cluster_know_each_other() {
        let (a, b) = meet(&identity("a", "c", 's'), &identity("b", "c", 's'), Ok(())).await;
        let (a, b) = (a.unwrap().0, b.unwrap().0);
        assert_eq!((&*a.name, &*a.owner, &*a.advertised), ("b", "b#1", "b:9100"));
        assert_eq!((&*b.name, &*b.owner), ("a", "a#1"));
        assert_eq!((a.link_in, a.link_out), (b.link_out, b.link_in));
        assert_ne!(a.link_in, a.link_out);
    }

    #[tokio::test]
    async fn both_sides_are_told_why_not() {
        let me = identity("a", "c", 's');
        for (other, outcome) in [
            (identity("b", "c", 't'), Outcome::WrongSecret),
            (identity("b", "d", 's'), Outcome::OtherCluster),
            (identity("B", "c", 's'), Outcome::WrongName),
        ] {
            let (dialler, acceptor) = meet(&me, &other, Ok(())).await;
            let (reverse, me_accepts) = meet(&other, &me, Ok(())).await;
            for met in [dialler, acceptor, reverse, me_accepts] {
                match met {
                    Err(Refusal::Ours(told) | Refusal::Theirs(told)) => assert_eq!(told, outcome),
                    other => panic!("{outcome:?}: {other:?}"),
                }
            }
        }
        let (dialler, acceptor) = meet(&me, &identity("b", "c", 's'), Err(Outcome::NameTaken)).await;
        assert!(matches!(dialler, Err(Refusal::Theirs(Outcome::NameTaken))));
        assert!(matches!(acceptor, Err(Refusal::Ours(Outcome::NameTaken))));
    }

    #[tokio::test]
    async fn what_is_no_greeting_is_not_read_further() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"HYG1\xff\xff", b"HYG1\x00\x03\xff\xff\xff", b"HYG1\x00\x00"]
        {
            let (mut left, mut right) = tokio::io::duplex(4096);
            left.write_all(bytes).await.unwrap();
            let me = identity("a", "c", 's');
            let met = accept(&mut right, &me, |_| true, async |_| Ok(())).await;
            assert!(matches!(met, Err(Refusal::Garbled)), "{met:?}");
        }
    }

    /// Nodes of other versions send and read these messages: the bytes of a field never change.
    #[test]
    fn other_versions_are_understood() {
        let mut hello = identity("a", "c", 's').hello().unwrap();
        hello.nonce = vec![7; 2];
        hello.link = 1;
        let golden =
            b"\x08\x01\x12\x01c\x1a\x01a\x22\x03a#1\x2a\x06a:9100\x32\x02\x07\x07\x39\x01\0\0\0\0\0\0\0";
        assert_eq!(hello.encode_to_vec(), golden);
        let later = [&golden[..], b"\xfa\x01\x03new"].concat();
        assert_eq!(Hello::decode(&*later).unwrap(), hello, "what is not known is ignored");
        let verdict = Verdict::decode(&b"\x08\x63"[..]).unwrap();
        assert_eq!(verdict.outcome(), Outcome::Unspecified, "a reason of a later version refuses, too");
        let proof =
            Greeting { step: Some(Step::Proof(Proof { mac: vec![1], outcome: Outcome::Accepted.into() })) };
        assert_eq!(proof.encode_to_vec(), b"\x1a\x05\x0a\x01\x01\x10\x01");
    }

    #[test]
    fn the_cookie_depends_on_secret_and_cluster() {
        let cookies = [('s', "c"), ('t', "c"), ('s', "d")]
            .map(|(secret, cluster)| identity("a", cluster, secret).cookie());
        assert!(cookies[0] != cookies[1] && cookies[0] != cookies[2] && cookies[0].len() == 64);
    }
}
