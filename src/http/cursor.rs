//! Places in a list as callers carry them: opaque, and known again only if they are as they were given out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::auth::Auth;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::store::ListPosition;

const PURPOSE: &str = "patients-cursor-1";
const PLACE_BYTES: usize = 24;
const SEALED_BYTES: usize = PLACE_BYTES + 16;

/// `place` as a text for a URL.
pub(super) fn give_out(auth: &Auth, place: ListPosition) -> String {
    let mut sealed = [0; SEALED_BYTES];
    sealed[..8].copy_from_slice(&place.created_at.0.to_be_bytes());
    sealed[8..PLACE_BYTES].copy_from_slice(place.id.0.as_bytes());
    let seal = auth.seal(PURPOSE, &sealed[..PLACE_BYTES]);
    sealed[PLACE_BYTES..].copy_from_slice(&seal);
    URL_SAFE_NO_PAD.encode(sealed)
}

/// The place that `text` was given out for; `None` if it was not.
pub(super) fn take_back(auth: &Auth, text: &str) -> Option<ListPosition> {
    let sealed: [u8; SEALED_BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let (place, seal) = sealed.split_at(PLACE_BYTES);
    if auth.seal(PURPOSE, place) != seal {
        return None;
    }
    let (time, id) = place.split_at(8);
    Some(ListPosition {
        created_at: Timestamp(i64::from_be_bytes(time.try_into().ok()?)),
        id: PatientId(Uuid::from_slice(id).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::fake::{FakeClock, FakeUsers, auth};

    #[test]
    fn a_cursor_comes_back_as_it_was_or_not_at_all() {
        let auth = auth(&FakeUsers::new(), &FakeClock::new());
        let place = ListPosition { created_at: Timestamp(-5), id: PatientId(Uuid::from_u128(77)) };
        let text = give_out(&auth, place);
        assert_eq!(take_back(&auth, &text), Some(place));
        for at in 0..text.len() {
            let mut tampered = text.clone().into_bytes();
            tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
            let tampered = String::from_utf8(tampered).expect("ASCII");
            assert_eq!(take_back(&auth, &tampered), None, "at {at}");
        }
        for bad in ["", "x", &text[1..], &format!("{text}AAAA"), "ä"] {
            assert_eq!(take_back(&auth, bad), None, "{bad}");
        }
    }
}
