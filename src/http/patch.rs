//! Reading a JSON Merge Patch (RFC 7396) of a record: what is not there stays, and nothing may be taken away,
//! since every field is required.

use time::Date;

use crate::domain::patient::PatientPatch;
use crate::domain::validate::{PatientInput, patch};

use super::fields::Fields;
use super::patients::FIELDS;
use super::problem::Failure;

/// The media type of a merge patch.
pub(super) const MERGE_PATCH_JSON: &str = "application/merge-patch+json";

/// The patch that `body` says, by the rules of the day `today`.
///
/// # Errors
/// `Invalid`, with everything that is wrong.
pub(super) fn read(body: &[u8], today: Date) -> Result<PatientPatch, Failure> {
    let fields = Fields::read(body, FIELDS)?;
    // To take a field away is to give it empty: the rules say that it is required.
    let given = |at: usize| fields.values[at].as_deref().or(fields.nulls[at].then_some(""));
    let input = PatientInput {
        name: given(0),
        email: given(1),
        address: given(2),
        date_of_birth: given(3),
        registered_date: given(4),
    };
    let made = patch(&input, today);
    fields.checked(made)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::date;

    use super::*;

    fn read_json(patch: Value) -> Result<PatientPatch, Failure> {
        read(patch.to_string().as_bytes(), date!(2026 - 03 - 31))
    }

    #[test]
    fn what_is_not_there_stays() {
        assert_eq!(read_json(json!({})).expect("a patch"), PatientPatch::default());
        let patch = read_json(json!({"name": " Ada King ", "dateOfBirth": "1915-12-10"})).expect("a patch");
        let expected = PatientPatch {
            name: Some("Ada King".into()),
            date_of_birth: Some(date!(1915 - 12 - 10)),
            ..PatientPatch::default()
        };
        assert!(patch == expected);
    }

    #[test]
    fn nothing_is_taken_away_and_everything_wrong_is_said() {
        let failure = read_json(json!({
            "name": null, "email": null, "address": null, "dateOfBirth": null, "registeredDate": null
        }));
        let said: Vec<_> = failure.expect_err("required").error.fields.into_values().collect();
        assert_eq!(
            said,
            [
                "Address is required",
                "Date of birth is required",
                "Email is required",
                "Name is required",
                "Registered date is required",
            ]
        );
        let failure = read_json(json!({"name": 7, "email": "x", "version": 2})).expect_err("wrong");
        assert_eq!(failure.error.fields["name"], "Should be a text");
        assert_eq!(failure.error.fields["email"], "Email should be valid");
        assert_eq!(failure.other_fields["version"], "Unknown field");
        for no_object in [json!([]), json!(null), json!("x")] {
            assert!(read_json(no_object).is_err());
        }
    }
}
