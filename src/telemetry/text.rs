//! Escapes text and writes it into a line, within the size limit of the line.

use std::fmt;
use std::io::Write;

use time::OffsetDateTime;

use crate::domain::time::Timestamp;

/// The number of bytes checked at once: small enough for short texts, large enough for vector instructions.
const CHUNK_BYTES: usize = 16;

/// The length of the longest escape, that of a control character.
const ESCAPE_BYTES_MAX: usize = 6;

/// Writes escaped text into a line until the line has `max_bytes`.
pub(super) struct Escaping<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) max_bytes: usize,
    /// Whether some text did not fit.
    pub(super) cut: bool,
    /// Whether `"` and `\` are escaped, as JSON requires (RFC 8259, section 7).
    quotes: bool,
}

impl<'a> Escaping<'a> {
    /// Escapes text for a JSON string.
    pub(super) fn of_json(out: &'a mut Vec<u8>, max_bytes: usize) -> Self {
        Escaping { out, max_bytes, cut: false, quotes: true }
    }

    /// Escapes only control characters.
    pub(super) fn of_text(out: &'a mut Vec<u8>, max_bytes: usize) -> Self {
        Escaping { out, max_bytes, cut: false, quotes: false }
    }
}

impl Escaping<'_> {
    /// Appends as much of `text` as fits.
    pub(super) fn push(&mut self, text: &str) {
        let mut rest = text;
        loop {
            let bytes = rest.as_bytes();
            let plain = self.plain_bytes(bytes);
            let room = self.max_bytes.saturating_sub(self.out.len());
            if plain > room {
                self.out.extend_from_slice(&bytes[..rest.floor_char_boundary(room)]);
                self.cut = true;
                return;
            }
            self.out.extend_from_slice(&bytes[..plain]);
            let Some(byte) = bytes.get(plain) else { return };
            if room - plain < ESCAPE_BYTES_MAX {
                self.cut = true;
                return;
            }
            escape(self.out, *byte);
            rest = &rest[plain + 1..];
        }
    }
}

impl Escaping<'_> {
    /// Returns the number of bytes before the first one that must be escaped. Control characters could end a
    /// line or control a terminal.
    fn plain_bytes(&self, bytes: &[u8]) -> usize {
        const DEL: u8 = 0x7f;
        let (quote, backslash) = if self.quotes { (b'"', b'\\') } else { (DEL, DEL) };
        let escaped = |byte: u8| (byte < 0x20) | (byte == DEL) | (byte == quote) | (byte == backslash);
        // The fold has no early exit, so that the compiler can vectorise it. Most texts contain nothing to
        // escape.
        let clean = |chunk: &&[u8]| !chunk.iter().fold(false, |any, byte| any | escaped(*byte));
        let clean_bytes = bytes.chunks_exact(CHUNK_BYTES).take_while(clean).count() * CHUNK_BYTES;
        let rest = &bytes[clean_bytes..];
        clean_bytes + rest.iter().position(|byte| escaped(*byte)).unwrap_or(rest.len())
    }
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        if self.cut { Err(fmt::Error) } else { Ok(()) }
    }
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        other => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(other >> 4)]);
            out.push(HEX[usize::from(other & 0xf)]);
        }
    }
}

/// Formats timestamps as RFC 3339 in UTC with microseconds. Caches the text up to the second, because
/// consecutive lines mostly share it.
#[derive(Default)]
pub(super) struct Stamp {
    second: Option<i64>,
    text: Vec<u8>,
}

impl Stamp {
    /// Appends `at`.
    pub(super) fn push(&mut self, out: &mut Vec<u8>, at: Timestamp) {
        let (second, micros) = (at.0.div_euclid(1_000_000), at.0.rem_euclid(1_000_000));
        if self.second != Some(second) {
            let moment = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let (year, month, day) = moment.to_calendar_date();
            let (hour, minute, sec) = moment.to_hms();
            self.text.clear();
            let month = u8::from(month);
            // Writing to a vector does not fail.
            let _ = write!(self.text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{sec:02}.");
            self.second = Some(second);
        }
        out.extend_from_slice(&self.text);
        let mut digits = *b"000000Z";
        let mut rest = micros.unsigned_abs();
        for digit in digits[..6].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::format_description::well_known::Rfc3339;

    use super::*;

    fn escaped(text: &str, max_bytes: usize) -> (String, bool) {
        let mut out = Vec::new();
        let mut sink = Escaping::of_json(&mut out, max_bytes);
        sink.push(text);
        let cut = sink.cut;
        (String::from_utf8(out).unwrap(), cut)
    }

    proptest! {
        #[test]
        fn what_is_escaped_reads_back(text in any::<String>()) {
            let (inner, cut) = escaped(&text, usize::MAX);
            prop_assert!(!cut && !inner.contains(|c: char| c.is_ascii_control()));
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{inner}\"")).unwrap(), text);
        }

        #[test]
        fn what_is_cut_is_a_beginning_and_bounded(text in any::<String>(), max in 0usize..64) {
            let (inner, cut) = escaped(&text, max);
            let read = serde_json::from_str::<String>(&format!("\"{inner}\"")).unwrap();
            prop_assert!(text.starts_with(&read) && cut == (read != text));
            prop_assert!(inner.len() <= max, "{} bytes of {max}", inner.len());
        }

        #[test]
        fn a_stamp_is_rfc_3339(micros in -62_135_596_800_000_000i64..253_402_300_800_000_000) {
            let mut out = Vec::new();
            let mut stamp = Stamp::default();
            stamp.push(&mut out, Timestamp(micros));
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(text.len(), 27);
            let read = OffsetDateTime::parse(&text, &Rfc3339).unwrap();
            prop_assert_eq!(read.unix_timestamp_nanos(), i128::from(micros) * 1_000);
        }
    }

    #[test]
    fn every_escape() {
        assert_eq!(
            escaped("a\"b\\c\nd\re\tf\u{0}g\u{1b}h\u{7f}i\u{2028}ü", 1_000).0,
            "a\\\"b\\\\c\\nd\\re\\tf\\u0000g\\u001bh\\u007fi\u{2028}ü"
        );
    }
}
