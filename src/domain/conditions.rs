//! The conditions of a change, and the treatment of repeated requests.

use super::ids::{Fingerprint, Version};
use super::time::Timestamp;

/// How long a request repeated under the same key gets the first answer, in hours.
pub const KEY_LIFETIME_HOURS: i64 = 24;

const HOUR_US: i64 = 3_600_000_000;

/// The conditions that a caller sets for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The versions of which the record must have one (RFC 9110, section 13.1.1). `None` allows any version.
    /// An empty list is a condition that no record meets.
    pub expected: Option<Box<[Version]>>,
    /// The fingerprint of a request that its caller may repeat under the same command id.
    pub fingerprint: Option<Fingerprint>,
}

impl Conditions {
    /// Returns whether a record of this version meets the expected versions.
    pub fn meet(&self, version: Version) -> bool {
        self.expected.as_ref().is_none_or(|versions| versions.contains(&version))
    }
}

/// How a request relates to an earlier change under the same command id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repetition {
    /// The same request, which gets the same answer.
    Same,
    /// Another request than the one made under this key.
    Another,
    /// The change is older than the lifetime of keys.
    Expired,
}

/// Returns how a request with the fingerprint `asked` relates, at `now`, to the change with the same command
/// id. That change was made `at` and recorded with the fingerprint `recorded`.
pub fn repetition(
    asked: Option<Fingerprint>,
    recorded: Option<Fingerprint>,
    at: Timestamp,
    now: Timestamp,
) -> Repetition {
    match asked {
        // A retry of a request that got no answer. No other request has its command id.
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
