//! Cursors of lists. A cursor is encrypted, since a place may contain a name, and is valid only in the list
//! for which it was given out. The key is derived from the secret that all fronts share.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::Date;
use uuid::Uuid;

use crate::auth::Auth;
use crate::domain::ids::PatientId;
use crate::domain::search::{Key, Place};
use crate::domain::time::Timestamp;

const PURPOSE: &str = "patients-cursor-2";
const ID_BYTES: usize = 16;
/// Longer than any cursor that is given out.
const CURSOR_MAX_CHARS: usize = 4096;

/// Returns `place` in the list `list` as text for a URL, or `None` if encryption fails.
pub(super) fn give_out(auth: &Auth, list: &str, place: &Place) -> Option<String> {
    let mut bytes = place.id.0.as_bytes().to_vec();
    match &place.key {
        Key::Time(time) => {
            bytes.push(b't');
            bytes.extend(time.0.to_be_bytes());
        }
        Key::Text(text) => {
            bytes.push(b'x');
            bytes.extend(text.as_bytes());
        }
        Key::Day(day) => {
            bytes.push(b'd');
            bytes.extend(day.to_julian_day().to_be_bytes());
        }
    }
    let nonce = key(auth)?.seal_in_place_append_tag(Aad::from(list), &mut bytes).ok()?;
    bytes.extend(nonce.as_ref());
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// Returns the place for which `text` was given out in the list `list`, or `None` if it was not.
pub(super) fn take_back(auth: &Auth, list: &str, text: &str) -> Option<Place> {
    if text.len() > CURSOR_MAX_CHARS {
        return None;
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let nonce = bytes.split_off(bytes.len().checked_sub(NONCE_LEN)?);
    let nonce = Nonce::try_assume_unique_for_key(&nonce).ok()?;
    let plain = key(auth)?.open_in_place(nonce, Aad::from(list), &mut bytes).ok()?;
    let (id, rest) = plain.split_at_checked(ID_BYTES)?;
    let (kind, rest) = rest.split_first()?;
    let key = match kind {
        b't' => Key::Time(Timestamp(i64::from_be_bytes(rest.try_into().ok()?))),
        b'x' => Key::Text(std::str::from_utf8(rest).ok()?.into()),
        b'd' => Key::Day(Date::from_julian_day(i32::from_be_bytes(rest.try_into().ok()?)).ok()?),
        _ => return None,
    };
    Some(Place { key, id: PatientId(Uuid::from_slice(id).ok()?) })
}

/// Returns the key for cursors; it has no other use.
fn key(auth: &Auth) -> Option<RandomizedNonceKey> {
    let halves = [auth.seal(PURPOSE, b"key 0"), auth.seal(PURPOSE, b"key 1")];
    RandomizedNonceKey::new(&AES_256_GCM_SIV, &halves.concat()).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;
    use crate::auth::fake::{FakeClock, FakeUsers, auth};

    const LIST: &str = "sort=name";

    #[test]
    fn a_cursor_comes_back_as_it_was_in_its_list_or_not_at_all() {
        let auth = auth(&FakeUsers::new(), &FakeClock::new());
        let id = PatientId(Uuid::from_u128(77));
        for key in [
            Key::Time(Timestamp(-5)),
            Key::Day(date!(1850 - 01 - 01)),
            Key::Text("canary".into()),
            Key::Text("".into()),
        ] {
            let place = Place { key, id };
            let text = give_out(&auth, LIST, &place).expect("a cursor");
            assert_eq!(take_back(&auth, LIST, &text), Some(place));
            assert_eq!(take_back(&auth, "sort=-name", &text), None, "of another list");
            for at in 0..text.len() {
                let mut tampered = text.clone().into_bytes();
                tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
                let tampered = String::from_utf8(tampered).expect("ASCII");
                assert_eq!(take_back(&auth, LIST, &tampered), None, "at {at}");
            }
            for bad in ["", "x", &text[1..], &format!("{text}AAAA"), "ä", &"A".repeat(CURSOR_MAX_CHARS + 1)]
            {
                assert_eq!(take_back(&auth, LIST, bad), None, "{bad}");
            }
        }
    }

    #[test]
    fn a_cursor_tells_nobody_where_it_leads() {
        let auth = auth(&FakeUsers::new(), &FakeClock::new());
        let place = Place { key: Key::Text("canary".into()), id: PatientId(Uuid::nil()) };
        let text = give_out(&auth, LIST, &place).expect("a cursor");
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64");
        assert!(!bytes.windows(6).any(|part| part == b"canary"));
        assert_ne!(give_out(&auth, LIST, &place), Some(text));
    }
}
