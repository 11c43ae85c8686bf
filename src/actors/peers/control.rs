//! Limits on what another node can make ractor keep in this process. ractor starts an actor here for every
//! actor that a peer names, and keeps an entry for every process group. The number of such messages is
//! unlimited, and each may be as long as a frame. A node of this program names one actor, its gate, and one
//! group.
//!
//! Invariant: no bytes of a session reach ractor that would make it keep more than `ACTORS_MAX` actors of
//! that session, or a group of another name.

use std::collections::BTreeSet;
use std::io;

use prost::encoding::{WireType, decode_key, decode_varint, encoded_len_varint};
use prost::{Message, Oneof};

use super::manager::{GROUP, SCOPE};

/// The most actors of a peer at a time. A peer has one gate, or two for a moment after a restart.
const ACTORS_MAX: usize = 16;
/// The longest message about actors and groups, in bytes.
pub(super) const CONTROL_BYTES_MAX: u64 = 16 * 1024;
/// The length of the prefix that identifies a message: a key and a length.
const TELLING_BYTES: usize = 11;
/// The fields of a session's message in ractor's `meta.proto`, besides the one about actors and groups:
/// authentication, and messages for an actor.
const AUTH: u32 = 1;
const NODE: u32 = 2;

/// The kind of a message, judged by its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// ractor keeps nothing of the message.
    Passing,
    /// The message is about actors and groups, or is not in ractor's form. It must be inspected.
    Kept,
}

/// Returns the kind of a message of `message_bytes` bytes, or `None` if a longer prefix is needed.
pub(super) fn about(beginning: &[u8], message_bytes: u64) -> Option<About> {
    let enough = beginning.len() >= TELLING_BYTES || beginning.len() as u64 >= message_bytes;
    let is_passing = |mut bytes: &[u8]| {
        let (field, kind) = decode_key(&mut bytes).ok()?;
        let length = decode_varint(&mut bytes).ok()?;
        // The first field must be the whole message, because a later field would override it.
        let head = 1 + encoded_len_varint(length) as u64;
        let whole = length.checked_add(head)? == message_bytes;
        Some(matches!(field, AUTH | NODE) && kind == WireType::LengthDelimited && whole)
    };
    enough.then(|| if is_passing(beginning) == Some(true) { About::Passing } else { About::Kept })
}

/// The part of ractor's `meta.proto` and `control.proto` that names actors.
#[derive(Clone, PartialEq, Message)]
struct Sessions {
    #[prost(oneof = "Part", tags = "1, 2, 3")]
    part: Option<Part>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Part {
    #[prost(bytes, tag = "1")]
    Auth(Vec<u8>),
    #[prost(bytes, tag = "2")]
    Node(Vec<u8>),
    #[prost(message, tag = "3")]
    Control(Control),
}

#[derive(Clone, PartialEq, Message)]
struct Control {
    #[prost(oneof = "Change", tags = "1, 2, 5, 6")]
    change: Option<Change>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Change {
    #[prost(message, tag = "1")]
    Spawn(Spawn),
    #[prost(message, tag = "2")]
    Terminate(Terminate),
    #[prost(message, tag = "5")]
    Join(Group),
    #[prost(message, tag = "6")]
    Leave(Group),
}

#[derive(Clone, PartialEq, Message)]
struct Spawn {
    #[prost(message, repeated, tag = "1")]
    actors: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct Terminate {
    #[prost(uint64, repeated, tag = "1")]
    pids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Group {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(message, repeated, tag = "2")]
    actors: Vec<Named>,
    #[prost(string, tag = "3")]
    scope: String,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(uint64, tag = "1")]
    pid: u64,
}

/// The remote actors that ractor keeps for a session.
#[derive(Default)]
pub(super) struct Kept(BTreeSet<u64>);

impl Kept {
    /// Records the actors that ractor keeps after `message`.
    ///
    /// # Errors
    /// The peer names too many actors or another group. The session must end.
    pub(super) fn note(&mut self, message: &[u8]) -> io::Result<()> {
        // ractor does not read an undecodable message either.
        let Ok(Sessions { part: Some(Part::Control(control)) }) = Sessions::decode(message) else {
            return Ok(());
        };
        let actors = match control.change {
            Some(Change::Terminate(Terminate { pids })) => {
                self.0.retain(|pid| !pids.contains(pid));
                return Ok(());
            }
            Some(Change::Join(Group { group, scope, .. })) if group != GROUP || scope != SCOPE => {
                return Err(refused("it joins a group that no node of ours has".to_owned()));
            }
            Some(Change::Spawn(Spawn { actors }) | Change::Join(Group { actors, .. })) => actors,
            Some(Change::Leave(_)) | None => return Ok(()),
        };
        for Named { pid } in actors {
            self.0.insert(pid);
            if self.0.len() > ACTORS_MAX {
                return Err(refused(format!("it names more than {ACTORS_MAX} actors")));
            }
        }
        Ok(())
    }
}

/// Returns the error that ends a session.
pub(super) fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: Change) -> Vec<u8> {
        Sessions { part: Some(Part::Control(Control { change: Some(change) })) }.encode_to_vec()
    }

    fn named(pids: impl IntoIterator<Item = u64>) -> Vec<Named> {
        pids.into_iter().map(|pid| Named { pid }).collect()
    }

    fn join(group: &str, pids: impl IntoIterator<Item = u64>) -> Vec<u8> {
        of(Change::Join(Group { group: group.into(), actors: named(pids), scope: SCOPE.into() }))
    }

    #[test]
    fn so_many_actors_are_kept_and_no_more_however_they_are_named() {
        let most = ACTORS_MAX as u64;
        let mut kept = Kept::default();
        kept.note(&of(Change::Spawn(Spawn { actors: named(0..most) }))).expect("room");
        kept.note(&join(GROUP, 0..most)).expect("the same ones");
        assert!(kept.note(&join(GROUP, [most])).is_err());
        let mut kept = Kept::default();
        for pid in 0..1_000 {
            kept.note(&join(GROUP, [pid])).expect("one at a time");
            kept.note(&of(Change::Terminate(Terminate { pids: vec![pid] }))).expect("gone");
        }
        for pid in 0..most {
            kept.note(&of(Change::Spawn(Spawn { actors: named([pid]) }))).expect("room");
        }
        assert!(kept.note(&of(Change::Spawn(Spawn { actors: named([most]) }))).is_err());
        assert!(Kept::default().note(&join("another", [1])).is_err());
        assert!(Kept::default().note(&join("another", [])).is_err());
    }

    #[test]
    fn a_message_is_passed_unseen_only_if_nothing_stands_behind_its_first_field() {
        let node = Sessions { part: Some(Part::Node(vec![7; 300])) }.encode_to_vec();
        let spawn = of(Change::Spawn(Spawn { actors: named([1]) }));
        let of_whole = |message: &[u8]| about(message, message.len() as u64);
        assert_eq!(of_whole(&node), Some(About::Passing));
        assert_eq!(about(&node[..TELLING_BYTES], node.len() as u64), Some(About::Passing));
        assert_eq!(about(&node[..TELLING_BYTES - 1], node.len() as u64), None);
        assert_eq!(of_whole(&spawn), Some(About::Kept));
        let behind = [&node[..], &spawn].concat();
        assert_eq!(of_whole(&behind), Some(About::Kept), "the last one counts");
        let many = of(Change::Spawn(Spawn { actors: named(0..100) }));
        assert!(Kept::default().note(&[&node[..], &many].concat()).is_err());
        let halves = [
            &of(Change::Spawn(Spawn { actors: named(0..10) }))[..],
            &of(Change::Spawn(Spawn { actors: named(10..20) })),
        ];
        assert!(Kept::default().note(&halves.concat()).is_err(), "two halves of one message are added up");
        for nonsense in [&b""[..], b"\xff", b"\x12\xff", b"\x12\x05\x00", &[0xff; 20]] {
            assert_eq!(of_whole(nonsense), Some(About::Kept), "{nonsense:?}");
            Kept::default().note(nonsense).expect("nothing is kept of it");
        }
    }
}
