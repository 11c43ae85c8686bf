//! The encoding of a frame as a message of ractor's session protocol. Frames are inserted into the bytes that
//! ractor writes, and are removed from the bytes that ractor would read. They bypass the session's actors on
//! both sides, which saves six of eight task wakeups.
//!
//! The bytes on the wire do not depend on the path of a frame: they are a cast to the gate, as
//! `ractor_cluster` writes it (its `meta.proto` and `node.proto`). The gate still accepts frames that arrive
//! through ractor.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint};

use super::gate::FRAME;

/// The header of each message: its length in eight bytes, big-endian.
pub(super) const HEAD_BYTES: usize = 8;
/// The field of a session's message that holds a message for an actor.
const NODE: u32 = 2;
/// The field of that message that holds a cast.
const CAST: u32 = 1;
/// The fields of a cast.
const TO: u32 = 1;
const WHAT: u32 = 2;
const VARIANT: u32 = 3;
const METADATA: u32 = 6;
/// The largest size of the keys and lengths around a frame.
const AROUND_BYTES_MAX: usize = 80;

/// Returns the encoded frame for the gate `to`, with its header.
pub(super) fn write(to: u64, link: u64, body: &[u8]) -> Vec<u8> {
    let link = link.to_be_bytes();
    let part_len = |bytes: &[u8]| 1 + encoded_len_varint(bytes.len() as u64) + bytes.len();
    let to_len = if to == 0 { 0 } else { 1 + encoded_len_varint(to) };
    let what_len = if body.is_empty() { 0 } else { part_len(body) };
    let cast_len = (to_len + what_len + part_len(FRAME.as_bytes()) + part_len(&link)) as u64;
    let node_len = 1 + encoded_len_varint(cast_len) as u64 + cast_len;
    let message_len = 1 + encoded_len_varint(node_len) as u64 + node_len;
    let mut bytes = Vec::with_capacity(AROUND_BYTES_MAX + body.len());
    bytes.extend_from_slice(&message_len.to_be_bytes());
    for (field, len) in [(NODE, node_len), (CAST, cast_len)] {
        encode_key(field, WireType::LengthDelimited, &mut bytes);
        encode_varint(len, &mut bytes);
    }
    // proto3 omits empty fields.
    if to != 0 {
        encode_key(TO, WireType::Varint, &mut bytes);
        encode_varint(to, &mut bytes);
    }
    let parts = [(WHAT, body), (VARIANT, FRAME.as_bytes()), (METADATA, &link)];
    for (field, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
        encode_key(field, WireType::LengthDelimited, &mut bytes);
        encode_varint(part.len() as u64, &mut bytes);
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The length of the prefix that shows whether a message may be a frame.
const TELLING_BYTES: usize = 12;

/// Returns whether a message may be a frame, judged by its prefix, or `None` if a longer prefix is needed.
pub(super) fn may_be_frame(beginning: &[u8], message_bytes: u64) -> Option<bool> {
    let enough = beginning.len() >= TELLING_BYTES || beginning.len() as u64 == message_bytes;
    let is_cast = |mut bytes: &[u8]| {
        let node = decode_key(&mut bytes).ok()? == (NODE, WireType::LengthDelimited);
        let _ = decode_varint(&mut bytes).ok()?;
        let cast = decode_key(&mut bytes).ok()? == (CAST, WireType::LengthDelimited);
        Some(node && cast)
    };
    enough.then(|| is_cast(beginning) == Some(true))
}

/// Returns the body of the frame in `message`, if `message` is a frame of `link`.
pub(super) fn read(message: &[u8], link: u64) -> Option<&[u8]> {
    let node = only_part(message, NODE)?;
    let mut cast = only_part(node, CAST)?;
    let (mut what, mut variant, mut metadata) = (&[][..], &[][..], &[][..]);
    while !cast.is_empty() {
        match part(&mut cast)? {
            (WHAT, bytes) => what = bytes,
            (VARIANT, bytes) => variant = bytes,
            (METADATA, bytes) => metadata = bytes,
            _ => {}
        }
    }
    (variant == FRAME.as_bytes() && metadata == link.to_be_bytes()).then_some(what)
}

fn only_part(mut bytes: &[u8], field: u32) -> Option<&[u8]> {
    let (found, part) = part(&mut bytes)?;
    (found == field && bytes.is_empty()).then_some(part)
}

/// Reads the next field. The value is empty if it is a number.
fn part<'a>(bytes: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (field, kind) = decode_key(bytes).ok()?;
    match kind {
        WireType::Varint => {
            decode_varint(bytes).ok()?;
            Some((field, &[]))
        }
        WireType::LengthDelimited => {
            let len = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let part = bytes.get(..len)?;
            bytes.advance(len);
            Some((field, part))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cast of a frame as `ractor_cluster` 0.16 writes it. Nodes of all versions send and read it.
    const GOLDEN: &[u8] =
        b"\0\0\0\0\0\0\0\x1d\x12\x1b\x0a\x19\x08\x07\x12\x04body\x1a\x05Frame\x32\x08\0\0\0\0\0\0\x01\x02";

    #[test]
    fn a_frame_is_a_cast_of_ractor() {
        assert_eq!(write(7, 258, b"body"), GOLDEN);
        for bytes in [0, 1, 127, 128, 20_000, 3_000_000] {
            let body = vec![7; bytes];
            let written = write(u64::MAX, u64::MAX, &body);
            assert!(written.len() <= AROUND_BYTES_MAX + bytes);
            let (head, message) = written.split_at(HEAD_BYTES);
            assert_eq!(u64::from_be_bytes(head.try_into().unwrap()), message.len() as u64);
            assert_eq!(read(message, u64::MAX), Some(&body[..]));
            assert_eq!(read(message, 1), None, "of another link");
        }
    }

    #[test]
    fn what_is_no_frame_is_left_to_ractor() {
        let message = &GOLDEN[HEAD_BYTES..];
        assert_eq!(may_be_frame(message, message.len() as u64), Some(true));
        assert_eq!(may_be_frame(&message[..4], message.len() as u64), None);
        for other in [&b"\x0a\x02\x0a\x00"[..], b"\x12\x02\x12\x00", b"\x1a\x00", b"\x12", b"", b"\xff\xff"] {
            assert_eq!(may_be_frame(other, other.len() as u64), Some(false), "{other:?}");
            assert_eq!(read(other, 258), None);
        }
        for cut in 0..message.len() {
            assert_eq!(read(&message[..cut], 258), None);
        }
        let later = String::from_utf8_lossy(message).replace("Frame", "Later");
        assert_eq!(read(later.as_bytes(), 258), None);
    }
}
