//! The yardstick: an actor of another process, called over `ractor_cluster` as its documentation shows it.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use hygeia::proto::cluster as pb;
use prost::Message as _;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::{NodeServer, NodeServerMessage, RactorClusterMessage};

use crate::ask::ours::details;
use crate::role;

const GROUP: &str = "bench";

/// Answers each question with the same text.
struct Bare;

#[derive(RactorClusterMessage)]
enum BareMessage {
    /// Text, as the library turns that into bytes without work for each of them.
    #[rpc]
    Ask(String, RpcReplyPort<String>),
}

impl Actor for Bare {
    type Msg = BareMessage;
    type State = String;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<BareMessage>, (): ()) -> Result<String, ActorProcessingErr> {
        Ok(text(reply_bytes()))
    }

    async fn handle(
        &self,
        _: ActorRef<BareMessage>,
        message: BareMessage,
        answer: &mut String,
    ) -> Result<(), ActorProcessingErr> {
        let BareMessage::Ask(_, reply) = message;
        let _ = reply.send(answer.clone());
        Ok(())
    }
}

/// The process that answers.
pub(super) async fn answer() -> crate::Result<()> {
    let () = role::task()?;
    let port = free_port()?;
    node("answering", port).await?;
    let (actor, _) = Actor::spawn(None, Bare, ()).await?;
    ractor::pg::join(GROUP.into(), vec![actor.get_cell()]);
    role::tell(&format!("127.0.0.1:{port}"))?;
    tokio::task::spawn_blocking(role::until_dismissed).await?
}

/// The process that asks.
pub(super) async fn ask() -> crate::Result<()> {
    let met_at: String = role::task()?;
    let node = node("asking", free_port()?).await?;
    ractor_cluster::client_connect(&node, met_at).await?;
    let asked = loop {
        match ractor::pg::get_members(&GROUP.to_owned()).pop() {
            Some(actor) => break ActorRef::<BareMessage>::from(actor),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let question = text(request_bytes());
    super::ask_as_told(move || {
        let (asked, question) = (asked.clone(), question.clone());
        async move {
            ractor::call!(asked, BareMessage::Ask, question)?;
            Ok(())
        }
    })
    .await
}

async fn node(name: &str, port: u16) -> crate::Result<ActorRef<NodeServerMessage>> {
    let cookie = "the cookie of the benchmark".to_owned();
    let server = NodeServer::new(port, cookie, name.to_owned(), "localhost".to_owned(), None, None);
    let server = server.with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Ok(Actor::spawn(None, server, ()).await?.0)
}

fn free_port() -> crate::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn id() -> Option<pb::Id> {
    Some(pb::Id { high: 1, low: 1 })
}

/// The size of a frame with a request of ours.
fn request_bytes() -> usize {
    let trace = pb::Trace { trace_high: 1, trace_low: 1, span: 1, sampled: true };
    let envelope = pb::Envelope {
        trace: Some(trace),
        budget_ms: 30_000,
        subject: "system:bench".into(),
        role: "ADMIN".into(),
        ..pb::Envelope::default()
    };
    let body = pb::request::Body::PatientRead(pb::PatientRead { id: id() });
    let request = pb::Request { id: 1, envelope: Some(envelope), body: Some(body), ..pb::Request::default() };
    pb::Frame { requests: vec![request], ..pb::Frame::default() }.encoded_len()
}

/// The size of a frame with the reply to it.
fn reply_bytes() -> usize {
    let details = details();
    let patient = pb::Patient {
        restricted: false,
        again: false,
        unchanged: false,
        id: id(),
        version: 1,
        created_at_us: 1_790_000_000_000_000,
        details: Some(pb::Details {
            name: details.name.into(),
            email: details.email.into(),
            address: details.address.into(),
            date_of_birth: details.date_of_birth.to_julian_day(),
            registered_date: details.registered_date.to_julian_day(),
        }),
    };
    let outcome = pb::reply::Outcome::Patient(patient);
    let reply = pb::Reply { id: 1, outcome: Some(outcome), ..pb::Reply::default() };
    pb::Frame { replies: vec![reply], ..pb::Frame::default() }.encoded_len()
}
