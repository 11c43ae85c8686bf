//! Limits frames that cost a peer nothing and the server an answer: PING and SETTINGS (RFC 9113, section
//! 10.5). A peer that sends a flood of them is sent GOAWAY, and its connection is closed.
//!
//! Invariant: the bytes passed on to HTTP/2 end between two frames, so that it shuts down in order and the
//! peer can read the GOAWAY. The only exception is a flood whose frame headers are deliberately split.

use std::time::Instant;

/// Length of what a client sends before its first frame.
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

/// Number of such frames that may arrive at once. Each DATA or HEADERS frame allows one more, because some
/// clients measure the connection with a PING for each piece of a response.
const FRAMES_BURST: f64 = 100.0;
/// Number of such frames per second that may arrive permanently. Clients that keep a connection alive send at
/// most one in ten seconds.
const FRAMES_PER_S: f64 = 10.0;

/// A GOAWAY frame that names no stream, with `ENHANCE_YOUR_CALM` and the debug text that gRPC uses.
pub(super) const GOAWAY: &[u8] =
    b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0btoo_many_pings";

/// Counts the frames received on one connection.
pub(super) struct FloodGate {
    /// Number of bytes of the preface or of a frame's payload that are still to come.
    skip: usize,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    allowed: f64,
    counted_at: Instant,
}

impl FloodGate {
    pub(super) fn new(now: Instant) -> Self {
        FloodGate {
            skip: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            allowed: FRAMES_BURST,
            counted_at: now,
        }
    }

    /// Inspects received bytes. Returns `None`, or, if they are a flood, the number of bytes that may still
    /// be passed on.
    pub(super) fn look(&mut self, bytes: &[u8], now: Instant) -> Option<usize> {
        let since = now.saturating_duration_since(self.counted_at).as_secs_f64();
        self.allowed = (self.allowed + since * FRAMES_PER_S).min(FRAMES_BURST);
        self.counted_at = now;
        let mut at = 0;
        while at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            let taken = (HEADER_BYTES - self.header_bytes).min(bytes.len() - at);
            if self.skip > 0 || taken == 0 {
                continue;
            }
            self.header[self.header_bytes..][..taken].copy_from_slice(&bytes[at..at + taken]);
            self.header_bytes += taken;
            at += taken;
            if self.header_bytes < HEADER_BYTES {
                break;
            }
            self.header_bytes = 0;
            self.count();
            // A frame whose first bytes were passed on earlier cannot be cut off, so wait for the next frame.
            // A flood split into small pieces is cut off within a frame after twice the burst.
            if (self.allowed < 0.0 && taken == HEADER_BYTES) || self.allowed < -FRAMES_BURST {
                return Some(at.saturating_sub(HEADER_BYTES));
            }
        }
        None
    }

    /// Counts the frame whose header is complete (RFC 9113, section 4.1).
    fn count(&mut self) {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const ACK: u8 = 1;
        let [high, middle, low, kind, flags, ..] = self.header;
        self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match kind {
            SETTINGS | PING if flags & ACK == 0 => self.allowed -= 1.0,
            DATA | HEADERS => self.allowed = (self.allowed + 1.0).min(FRAMES_BURST),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: &[u8] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678";
    const PING_ACK: &[u8] = b"\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678";
    const DATA: &[u8] = b"\x00\x00\x03\x00\x00\x00\x00\x00\x01abc";

    fn opened(now: Instant) -> FloodGate {
        let mut gate = FloodGate::new(now);
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
        assert_eq!(gate.look(opening, now), None);
        gate
    }

    /// However the bytes are split, the flood is detected. Unless a piece is shorter than a frame header, the
    /// bytes passed on end between two frames.
    #[test]
    fn a_flood_is_found_at_the_beginning_of_a_frame() {
        let now = Instant::now();
        for piece in [1, 5, 17, 64, 1000, 100_000] {
            let mut gate = opened(now);
            let flood = PING.repeat(400);
            let mut handed_on = 0;
            let found = flood.chunks(piece).find_map(|bytes| match gate.look(bytes, now) {
                Some(rest) => Some(handed_on + rest),
                None => {
                    handed_on += bytes.len();
                    None
                }
            });
            let found = found.expect("a flood");
            let pings = found / PING.len();
            // In pieces shorter than a frame header, no header is complete within one piece.
            if piece < HEADER_BYTES {
                assert!((195..220).contains(&pings), "{piece}: after {pings}");
            } else {
                assert!(
                    found.is_multiple_of(PING.len()) && (95..120).contains(&pings),
                    "{piece}: after {pings}"
                );
            }
        }
    }

    #[test]
    fn what_clients_do_is_none() {
        let start = Instant::now();
        // PINGs at a slow rate are allowed permanently.
        let mut gate = opened(start);
        for second in 0..10_000 {
            assert_eq!(gate.look(&PING.repeat(5), start + Duration::from_secs(second)), None);
        }
        // Acknowledgements of our own PINGs, and one PING for each piece of a response.
        let mut gate = opened(start);
        assert_eq!(gate.look(&PING_ACK.repeat(1000), start), None);
        assert_eq!(gate.look(&[PING, DATA].concat().repeat(1000), start), None);
    }

    #[test]
    fn what_is_told_is_a_frame() {
        let (header, payload) = GOAWAY.split_at(HEADER_BYTES);
        assert_eq!((usize::from(header[2]), header[3]), (payload.len(), 7));
        assert_eq!(payload[7], 11, "ENHANCE_YOUR_CALM");
    }
}
