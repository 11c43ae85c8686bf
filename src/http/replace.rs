//! Reads a replacement of a record's details: a form, or the record as it was read. The latter also has an id
//! and a version, which must be those of the record.

use time::Date;
use uuid::Uuid;

use crate::domain::ids::{PatientId, Version};
use crate::domain::patient::PatientChange;
use crate::domain::validate::{FieldErrors, PatientInput, change};

use super::fields::Fields;
use super::problem::Failure;

const ID: &str = "id";
const VERSION: &str = "version";
const FIELDS: [&str; 7] = ["name", "email", "address", "dateOfBirth", "registeredDate", ID, VERSION];

/// Returns the change of the record `id` in `body`, validated by the rules of the day `today`, and the
/// version that the body names.
///
/// # Errors
/// `Invalid`, with all errors.
pub(super) fn read(
    body: &[u8],
    id: PatientId,
    today: Date,
) -> Result<(PatientChange, Option<Version>), Failure> {
    let fields = Fields::read_with(body, FIELDS, Some(VERSION))?;
    let [name, email, address, date_of_birth, registered_date, named, _] =
        fields.values.each_ref().map(|value| value.as_deref());
    let [.., id_is_null, version_is_null] = fields.nulls;
    let input = PatientInput { name, email, address, date_of_birth, registered_date };
    let mut wrong = FieldErrors::new();
    let is_other = |named: &str| named.len() != 36 || Uuid::try_parse(named) != Ok(id.0);
    if id_is_null || named.is_some_and(is_other) {
        wrong.insert(ID, "Is not the id in the path: a record keeps its id");
    }
    if version_is_null || fields.number.is_some_and(|version| version < 1) {
        wrong.insert(VERSION, "Should be the version of the record: a whole number from 1 on");
    }
    let version = fields.number;
    let made = match change(&input, today) {
        Ok(change) if wrong.is_empty() => Ok((change, version)),
        Ok(_) => Err(wrong),
        Err(errors) => Err(errors.into_iter().chain(wrong).collect()),
    };
    fields.checked(made)
}

/// Combines two conditions: the record must have one of the versions `expected`, and the version `version`.
pub(super) fn both(expected: Option<Box<[Version]>>, version: Option<Version>) -> Option<Box<[Version]>> {
    match (expected, version) {
        (expected, None) => expected,
        (None, Some(version)) => Some([version].into()),
        (Some(expected), Some(version)) => Some(expected.into_iter().filter(|one| *one == version).collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::date;

    use super::*;

    const ID_TEXT: &str = "123e4567-e89b-12d3-a456-426614174000";

    fn read_with(more: Value) -> Result<(PatientChange, Option<Version>), Failure> {
        let mut body = json!({"name": "Ada", "email": "ada@example.org", "address": "London", "dateOfBirth": "1915-12-10"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let id = PatientId(Uuid::try_parse(ID_TEXT).expect("an id"));
        read(body.to_string().as_bytes(), id, date!(2026 - 03 - 31))
    }

    #[test]
    fn a_record_may_be_sent_back_as_it_was_read() {
        let (form, none) = read_with(json!({})).expect("a form");
        let (record, version) = read_with(json!({"id": ID_TEXT, "version": 7})).expect("a record");
        assert!(form == record);
        assert_eq!((none, version), (None, Some(7)));
        assert!(read_with(json!({"id": ID_TEXT.to_uppercase()})).is_ok(), "the same id");
    }

    #[test]
    fn another_id_and_what_is_no_version_are_refused() {
        for (more, field) in [
            (json!({"id": "123e4567-e89b-12d3-a456-426614174001"}), "id"),
            (json!({"id": "x"}), "id"),
            (json!({"id": null}), "id"),
            (json!({"id": 7}), "id"),
            (json!({"version": 0}), "version"),
            (json!({"version": -1}), "version"),
            (json!({"version": "7"}), "version"),
            (json!({"version": 7.5}), "version"),
            (json!({"version": u64::MAX}), "version"),
            (json!({"version": null}), "version"),
        ] {
            let failure = read_with(more.clone()).map(drop).expect_err("refused");
            assert!(failure.error.fields.keys().eq([&field]), "{more}");
        }
        let all = read_with(json!({"name": "", "id": "x", "version": 0, "restricted": true})).map(drop);
        let all = all.expect_err("refused");
        assert_eq!((all.error.fields.len(), all.other_fields.len()), (3, 1));
    }

    #[test]
    fn both_conditions_must_be_met() {
        let tags = |versions: &[Version]| Some(versions.into());
        assert_eq!(both(None, None), None);
        assert_eq!(both(tags(&[3, 4]), None), tags(&[3, 4]));
        assert_eq!(both(None, Some(4)), tags(&[4]));
        assert_eq!(both(tags(&[3, 4]), Some(4)), tags(&[4]));
        assert_eq!(both(tags(&[3]), Some(4)), tags(&[]), "a condition that no record meets");
    }
}
