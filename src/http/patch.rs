//! Reads a JSON Merge Patch (RFC 7396) of a record. Absent fields stay as they are. No field can be removed,
//! because every field is required.

use time::Date;

use crate::domain::patient::PatientPatch;
use crate::domain::validate::{FieldErrors, PatientInput, patch};

use super::fields::Fields;
use super::patients::FIELDS;
use super::problem::Failure;

/// The media type of a merge patch.
pub(super) const MERGE_PATCH_JSON: &str = "application/merge-patch+json";

/// Error message for a field that a patch would remove.
pub(super) const NOT_REMOVED: &str = "Cannot be null: leave it out to keep it as it is";

/// Returns the patch in `body`, validated by the rules of the day `today`.
///
/// # Errors
/// `Invalid`, with all errors.
pub(super) fn read(body: &[u8], today: Date) -> Result<PatientPatch, Failure> {
    let fields = Fields::read(body, FIELDS)?;
    let [name, email, address, date_of_birth, registered_date] =
        fields.values.each_ref().map(|value| value.as_deref());
    let made = patch(&PatientInput { name, email, address, date_of_birth, registered_date }, today);
    // In a merge patch, null removes a field.
    let taken = FIELDS.into_iter().zip(fields.nulls).filter(|(_, null)| *null);
    let taken: FieldErrors = taken.map(|(field, _)| (field, NOT_REMOVED)).collect();
    let made = match made {
        Ok(patch) if taken.is_empty() => Ok(patch),
        Ok(_) => Err(taken),
        Err(mut errors) => {
            errors.extend(taken);
            Err(errors)
        }
    };
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
        assert_eq!(said, [NOT_REMOVED; 5]);
        let failure = read_json(json!({"name": 7, "email": "x", "version": 2})).expect_err("wrong");
        assert_eq!(failure.error.fields["name"], "Should be a text");
        assert_eq!(failure.error.fields["email"], "Email should be valid");
        assert_eq!(failure.other_fields["version"], "Unknown field");
        for no_object in [json!([]), json!(null), json!("x")] {
            assert!(read_json(no_object).is_err());
        }
    }
}
