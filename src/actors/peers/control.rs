//! What another node may have ractor make in this process. For every actor that a node names ractor starts one here
//! that stands for it, and for every name of a group it keeps an entry, in messages of any number and up to the length of
//! a frame. A node of ours names one, its gate, and one group.
//!
//! Invariant: nothing of a session reaches ractor that would have it keep more than `ACTORS_MAX` actors of that session,
//! or a group of another name.

use std::collections::BTreeSet;
use std::io;

use prost::encoding::{WireType, decode_key, decode_varint, encoded_len_varint};
use prost::{Message, Oneof};

use super::manager::{GROUP, SCOPE};

/// Actors of another node at a time: its gate, and one that has just taken the place of another.
const ACTORS_MAX: usize = 16;
/// The longest message about actors and groups.
pub(super) const CONTROL_BYTES_MAX: u64 = 16 * 1024;
/// How much of a message tells what it is about: a key, and a length.
const TELLING_BYTES: usize = 11;
/// Of a session's message, beside the one about actors and groups (ractor's `meta.proto`): about who is there, and
/// for an actor.
const AUTH: u32 = 1;
const NODE: u32 = 2;

/// What a message is about, by its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Nothing that is kept.
    Passing,
    /// Actors and groups; or it is no message as ractor writes them, and has to be looked at.
    Kept,
}

/// What a message of `message_bytes` is about; `None` if more of its beginning is needed to tell.
pub(super) fn about(beginning: &[u8], message_bytes: u64) -> Option<About> {
    let enough = beginning.len() >= TELLING_BYTES || beginning.len() as u64 >= message_bytes;
    let is_passing = |mut bytes: &[u8]| {
        let (field, kind) = decode_key(&mut bytes).ok()?;
        let length = decode_varint(&mut bytes).ok()?;
        // One field that is the whole message: nothing can stand behind it and count instead.
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

/// The actors of another node that ractor keeps for a session.
#[derive(Default)]
pub(super) struct Kept(BTreeSet<u64>);

impl Kept {
    /// Notes what ractor will keep after `message`.
    ///
    /// # Errors
    /// It is too much: the session has to end.
    pub(super) fn note(&mut self, message: &[u8]) -> io::Result<()> {
        // What is no message at all ractor does not read either.
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

/// What ends a session.
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
