//! Under what conditions a change is wanted, and what becomes of one that is asked for a second time.

use super::ids::{Fingerprint, Version};
use super::time::Timestamp;

/// For how long the first answer to a change is given again to whoever repeats it under the same key.
pub const KEY_LIFETIME_HOURS: i64 = 24;

const HOUR_US: i64 = 3_600_000_000;

/// What a caller asks of a change beside the change itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The versions one of which the record must have (RFC 9110, section 13.1.1); none: any will do.
    /// No version at all is a condition that no record meets.
    pub expected: Option<Box<[Version]>>,
    /// Of a change that its caller may repeat under the same command id: what the request said.
    pub fingerprint: Option<Fingerprint>,
}

impl Conditions {
    /// Whether a record of this version meets what is expected.
    pub fn meet(&self, version: Version) -> bool {
        self.expected.as_ref().is_none_or(|versions| versions.contains(&version))
    }
}

/// How a request stands to a change that was made under its command id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repetition {
    /// It is the same request: it is answered as it was then.
    Same,
    /// Another request was made under this key.
    Another,
    /// The change is older than keys live.
    Expired,
}

/// How a request with the fingerprint `asked` stands at `now` to the change that was made `at` under its
/// command id, and recorded with the fingerprint `recorded`.
pub fn repetition(
    asked: Option<Fingerprint>,
    recorded: Option<Fingerprint>,
    at: Timestamp,
    now: Timestamp,
) -> Repetition {
    match asked {
        // The try of a request that had no answer: nobody else has its command id.
        None => Repetition::Same,
        Some(_) if now.0.saturating_sub(at.0) >= KEY_LIFETIME_HOURS * HOUR_US => Repetition::Expired,
        Some(_) if asked == recorded => Repetition::Same,
        Some(_) => Repetition::Another,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_expected_is_one_of_the_versions_named() {
        let expecting = |versions: Option<&[Version]>| Conditions {
            expected: versions.map(Into::into),
            ..Conditions::default()
        };
        assert!(expecting(None).meet(7));
        assert!(expecting(Some(&[3, 7])).meet(7));
        assert!(!expecting(Some(&[3, 7])).meet(4));
        assert!(!expecting(Some(&[])).meet(1), "a list of weak tags alone");
    }

    #[test]
    fn a_key_stands_for_one_request_and_for_a_day() {
        let (one, other) = (Some(Fingerprint(Uuid::from_u128(1))), Some(Fingerprint(Uuid::from_u128(2))));
        let (at, day) = (Timestamp(5), 24 * HOUR_US);
        assert_eq!(repetition(one, one, at, Timestamp(4 + day)), Repetition::Same);
        assert_eq!(repetition(one, other, at, Timestamp(4 + day)), Repetition::Another);
        assert_eq!(repetition(one, None, at, at), Repetition::Another);
        assert_eq!(repetition(one, one, at, Timestamp(5 + day)), Repetition::Expired);
        assert_eq!(repetition(one, other, at, Timestamp(5 + day)), Repetition::Expired);
        assert_eq!(repetition(None, one, at, Timestamp(i64::MAX)), Repetition::Same);
    }
}
