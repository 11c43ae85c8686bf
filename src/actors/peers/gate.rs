//! The only actor of a node that other nodes can send to. Supervised by `PeersActor`. It passes frames to the
//! sink and answers pings with the state of this node. Most frames bypass it (`shortcut`); only frames that
//! the session did not deliver arrive through ractor.
//!
//! Each message carries the link number of its session, which only the two ends know and which identifies the
//! sender. A message without a known link number is dropped.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use prost::Message as _;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, Message, RpcReplyPort};

use super::super::members::{FrameSink, Wire};
use super::manager::PeersMessage;
use crate::proto::cluster::{KnownPeer, PeerState};

/// The messages that arrive over a session. Their names and forms never change, because nodes of different
/// versions exchange them.
pub(super) enum GateMessage {
    /// Bytes for the sink.
    Frame {
        /// The link number of the session.
        link: u64,
        /// The frame.
        body: Vec<u8>,
    },
    /// Asks for the state of this node; answered at once. Request and answer are a `PeerState`.
    Ping {
        /// The link number of the session.
        link: u64,
        /// The state of the sender.
        state: Vec<u8>,
        /// Receives the answer.
        reply: RpcReplyPort<Vec<u8>>,
    },
}

pub(super) const FRAME: &str = "Frame";
const PING: &str = "Ping";

impl Message for GateMessage {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        let metadata = |link: u64| Some(link.to_be_bytes().to_vec());
        Ok(match self {
            GateMessage::Frame { link, body } => {
                SerializedMessage::Cast { variant: FRAME.to_owned(), args: body, metadata: metadata(link) }
            }
            GateMessage::Ping { link, state, reply } => SerializedMessage::Call {
                variant: PING.to_owned(),
                args: state,
                reply,
                metadata: metadata(link),
            },
        })
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        let link = |metadata: Option<Vec<u8>>| {
            let bytes = metadata.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).ok_or(BoxedDowncastErr)?;
            Ok(u64::from_be_bytes(bytes))
        };
        match message {
            SerializedMessage::Cast { variant, args, metadata } if variant == FRAME => {
                Ok(GateMessage::Frame { link: link(metadata)?, body: args })
            }
            SerializedMessage::Call { variant, args, reply, metadata } if variant == PING => {
                Ok(GateMessage::Ping { link: link(metadata)?, state: args, reply })
            }
            _ => Err(BoxedDowncastErr),
        }
    }
}

/// The gate's record of a session.
pub(super) struct Link {
    pub(super) ticket: u64,
    pub(super) owner: Arc<str>,
    /// Empty until the other node's gate is known.
    pub(super) wire: OnceLock<Wire>,
}

/// All sessions, by the link number that the peer puts on its messages.
pub(super) type Links = Arc<ArcSwap<HashMap<u64, Arc<Link>>>>;

/// The state that this node announces. Owned by `PeersActor`.
#[derive(Default)]
pub(super) struct Announced {
    pub(super) state: ArcSwap<PeerState>,
}

impl Announced {
    pub(super) fn to(&self, sees_you: bool) -> PeerState {
        PeerState { sees_you, ..PeerState::clone(&self.state.load()) }
    }

    pub(super) fn set_known(&self, known: Vec<KnownPeer>) {
        self.state.rcu(|state| PeerState { known: known.clone(), ..PeerState::clone(state) });
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.state.rcu(|state| PeerState { draining, ..PeerState::clone(state) });
    }
}

/// The actor.
pub(super) struct Gate;

/// The arguments of the gate.
pub(super) struct GateArgs {
    pub(super) links: Links,
    pub(super) announced: Arc<Announced>,
    pub(super) sink: FrameSink,
    pub(super) peers: ActorRef<PeersMessage>,
}

impl Actor for Gate {
    type Msg = GateMessage;
    type State = GateArgs;
    type Arguments = GateArgs;

    async fn pre_start(
        &self,
        _: ActorRef<GateMessage>,
        args: GateArgs,
    ) -> Result<GateArgs, ActorProcessingErr> {
        Ok(args)
    }

    async fn handle(
        &self,
        _: ActorRef<GateMessage>,
        message: GateMessage,
        state: &mut GateArgs,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            GateMessage::Frame { link, body } => {
                if let Some(link) = state.links.load().get(&link)
                    && let Some(wire) = link.wire.get()
                {
                    (state.sink)(&link.owner, wire, &body);
                }
            }
            GateMessage::Ping { link, state: theirs, reply } => {
                if let Some(link) = state.links.load().get(&link)
                    && let Ok(theirs) = PeerState::decode(&*theirs)
                {
                    let ours = state.announced.to(link.wire.get().is_some());
                    // The sender may be gone.
                    let _ = reply.send(ours.encode_to_vec());
                    let _ = state
                        .peers
                        .cast(PeersMessage::Heard { ticket: link.ticket, state: Box::new(theirs) });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of other versions send and read these messages.
    #[test]
    fn names_and_forms_of_messages_stay() {
        match (GateMessage::Frame { link: 258, body: b"body".to_vec() }).serialize() {
            Ok(SerializedMessage::Cast { variant, args, metadata }) => {
                assert_eq!((&*variant, &*args), ("Frame", &b"body"[..]));
                assert_eq!(metadata.as_deref(), Some(&[0, 0, 0, 0, 0, 0, 1, 2][..]));
            }
            other => panic!("{other:?}"),
        }
        let (reply, _) = tokio::sync::oneshot::channel();
        match (GateMessage::Ping { link: 1, state: vec![5], reply: reply.into() }).serialize() {
            Ok(SerializedMessage::Call { variant, args, metadata, .. }) => {
                assert_eq!((&*variant, &*args), ("Ping", &[5][..]));
                assert_eq!(metadata.map(|bytes| bytes.len()), Some(8));
            }
            other => panic!("{other:?}"),
        }
        let state = PeerState {
            protocol: 1,
            name: "a".into(),
            roles: vec!["front".into()],
            draining: true,
            sees_you: true,
            known: vec![KnownPeer { name: "b".into(), listed: true, ..KnownPeer::default() }],
            ..PeerState::default()
        };
        let golden = b"\x08\x01\x1a\x01a\x2a\x05front\x30\x01\x40\x01\x4a\x05\x0a\x01b\x20\x01";
        assert_eq!(state.encode_to_vec(), golden);
        let later = [&golden[..], b"\xfa\x01\x03new"].concat();
        assert_eq!(PeerState::decode(&*later).unwrap(), state, "what is not known is ignored");
    }

    #[test]
    fn what_is_not_known_or_has_no_link_is_not_taken() {
        let cast = |variant: &str, metadata| {
            let variant = variant.to_owned();
            GateMessage::deserialize(SerializedMessage::Cast { variant, args: Vec::new(), metadata }).is_ok()
        };
        assert!(cast("Frame", Some(vec![0; 8])));
        assert!(!cast("Frame", Some(vec![0; 7])) && !cast("Frame", None));
        assert!(!cast("Ping", Some(vec![0; 8])) && !cast("Later", Some(vec![0; 8])));
    }
}
