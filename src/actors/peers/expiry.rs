//! Reads the expiry of a certificate from its DER encoding, for display only. rustls decides whether a
//! certificate is valid.

use time::{Date, Month, OffsetDateTime, Time};

use crate::domain::time::Timestamp;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Returns the end of a certificate's validity (RFC 5280, section 4.1), or `None` if `der` is not a
/// certificate.
pub(super) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = expect(SEQUENCE, der)?;
    let (mut rest, _) = expect(SEQUENCE, certificate)?;
    if let Some((_, after)) = expect(VERSION, rest) {
        rest = after;
    }
    // Skip the serial number, the signature algorithm and the issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (_, _, after_begin) = element(validity)?;
    let (tag, end, _) = element(after_begin)?;
    moment(tag, std::str::from_utf8(end).ok()?)
}

/// Returns the first element of `der`: its tag, its content, and the bytes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match usize::from(first) {
        short @ ..0x80 => (short, rest),
        long => {
            let (bytes, rest) = rest.split_at_checked(long & 0x7f)?;
            let length = bytes
                .iter()
                .try_fold(0_usize, |length, byte| length.checked_mul(256)?.checked_add(usize::from(*byte)));
            (length?, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(wanted: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(tag, ..)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

fn moment(tag: u8, text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z')?;
    let years = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    if digits.len() != years + 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |at: usize| digits.get(years + at..years + at + 2)?.parse::<u8>().ok();
    let year: i32 = digits.get(..years)?.parse().ok()?;
    let year = match (tag, year) {
        (UTC_TIME, 50..) => 1900 + year,
        (UTC_TIME, _) => 2000 + year,
        _ => year,
    };
    let date = Date::from_calendar_date(year, Month::try_from(number(0)?).ok()?, number(2)?).ok()?;
    let at = OffsetDateTime::new_utc(date, Time::from_hms(number(4)?, number(6)?, number(8)?).ok()?);
    Some(Timestamp(at.unix_timestamp().checked_mul(1_000_000)?))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let key = KeyPair::generate().unwrap();
        for end in [
            datetime!(2027-02-28 23:59:58 UTC),
            datetime!(2049-12-31 0:00 UTC),
            datetime!(2123-01-02 3:04:05 UTC),
        ] {
            let mut params = CertificateParams::new(vec!["node.example.org".to_owned()]).unwrap();
            params.not_after = end;
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(not_after(certificate.der()), Some(Timestamp(end.unix_timestamp() * 1_000_000)));
            for cut in 0..certificate.der().len() {
                assert_eq!(not_after(&certificate.der()[..cut]), None, "cut after {cut} bytes");
            }
        }
        assert_eq!(moment(UTC_TIME, "991231235959Z"), Some(Timestamp(946_684_799_000_000)));
        for wrong in ["", "Z", "270230000000Z", "2702280000Z", "27022800000+Z", "270228000000"] {
            assert_eq!(moment(UTC_TIME, wrong), None, "{wrong}");
        }
    }
}
