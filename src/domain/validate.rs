//! Turning what a caller typed into details that hold: every rule of a field, with the message a
//! caller is shown.

use std::collections::BTreeMap;

use ::time::Date;
use ::time::macros::format_description;
use uuid::Uuid;
use validator::ValidateEmail;

use super::ids::PatientId;
use super::patient::{PatientChange, PatientDetails, PatientPatch};
use super::text::{is_bidi_control, is_noncharacter, nfc};

/// The most characters a name may have.
pub const NAME_MAX_CHARS: usize = 100;
/// The most characters an e-mail address may have (RFC 5321, 4.5.3.1.3: a path of 256 octets with
/// its angle brackets).
pub const EMAIL_MAX_CHARS: usize = 254;
/// The same in bytes, of which the standard speaks: an address may have other letters than those of ASCII
/// (RFC 6531, section 3.3).
pub const EMAIL_MAX_BYTES: usize = EMAIL_MAX_CHARS;
/// The most characters an address may have.
pub const ADDRESS_MAX_CHARS: usize = 500;

/// What is wrong, by the field's name as the caller knows it.
pub type FieldErrors = BTreeMap<&'static str, &'static str>;

/// The fields as a caller gave them; a missing one is `None`.
#[derive(Clone, Default)]
pub struct PatientInput<'a> {
    /// `name`
    pub name: Option<&'a str>,
    /// `email`
    pub email: Option<&'a str>,
    /// `address`
    pub address: Option<&'a str>,
    /// `dateOfBirth`, `YYYY-MM-DD`
    pub date_of_birth: Option<&'a str>,
    /// `registeredDate`, `YYYY-MM-DD`
    pub registered_date: Option<&'a str>,
}

/// The details of a patient to register, on the day `today`.
///
/// # Errors
/// Every field that does not hold, with its message.
pub fn registration(input: &PatientInput<'_>, today: Date) -> Result<PatientDetails, FieldErrors> {
    let mut errors = FieldErrors::new();
    let common = common(input, today, &mut errors);
    let registered = registered(input.registered_date, &mut errors);
    match (common, registered) {
        (Some(c), Some(registered_date)) if errors.is_empty() => Ok(PatientDetails {
            name: c.name,
            email: c.email,
            address: c.address,
            date_of_birth: c.date_of_birth,
            registered_date,
        }),
        _ => Err(errors),
    }
}

/// The change of a patient, on the day `today`; the registered date may be left out.
///
/// # Errors
/// Every field that does not hold, with its message.
pub fn change(input: &PatientInput<'_>, today: Date) -> Result<PatientChange, FieldErrors> {
    let mut errors = FieldErrors::new();
    let common = common(input, today, &mut errors);
    let registered_date = input.registered_date.and_then(|text| registered(Some(text), &mut errors));
    match common {
        Some(c) if errors.is_empty() => Ok(PatientChange {
            name: c.name,
            email: c.email,
            address: c.address,
            date_of_birth: c.date_of_birth,
            registered_date,
        }),
        _ => Err(errors),
    }
}

/// The change of what is given of a patient, on the day `today`; what is not given stays.
///
/// # Errors
/// Every field that does not hold, with its message.
pub fn patch(input: &PatientInput<'_>, today: Date) -> Result<PatientPatch, FieldErrors> {
    let mut errors = FieldErrors::new();
    let patch = PatientPatch {
        name: input.name.and_then(|text| name(Some(text), &mut errors)),
        email: input.email.and_then(|text| email(Some(text), &mut errors)),
        address: input.address.and_then(|text| address(Some(text), &mut errors)),
        date_of_birth: input.date_of_birth.and_then(|text| birth(Some(text), today, &mut errors)),
        registered_date: input.registered_date.and_then(|text| registered(Some(text), &mut errors)),
    };
    if errors.is_empty() { Ok(patch) } else { Err(errors) }
}

/// What a caller gave to open an account; what it left out is empty.
#[derive(Clone, Copy)]
pub struct AccountInput<'a> {
    /// `patientId`
    pub patient_id: &'a str,
    /// `name`
    pub name: &'a str,
    /// `email`
    pub email: &'a str,
}

/// The holder of an account to open. Valid by construction.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountHolder {
    /// Whose account it will be.
    pub patient_id: PatientId,
    /// 1 to `NAME_MAX_CHARS` characters.
    pub name: Box<str>,
    /// An e-mail address.
    pub email: Box<str>,
}

/// Never prints what it holds.
impl std::fmt::Debug for AccountHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountHolder(..)")
    }
}

/// The holder of an account to open.
///
/// # Errors
/// Every field that does not hold, with its message.
pub fn account(input: &AccountInput<'_>) -> Result<AccountHolder, FieldErrors> {
    let mut errors = FieldErrors::new();
    let patient_id = uuid(input.patient_id, &mut errors);
    let name = name(Some(input.name), &mut errors);
    let email = email(Some(input.email), &mut errors);
    match (patient_id, name, email) {
        (Some(patient_id), Some(name), Some(email)) => Ok(AccountHolder { patient_id, name, email }),
        _ => Err(errors),
    }
}

/// A UUID in its usual form of 36 characters (RFC 9562, section 4).
fn uuid(value: &str, errors: &mut FieldErrors) -> Option<PatientId> {
    let value = value.trim();
    let parsed = (value.len() == 36).then(|| Uuid::try_parse(value).ok()).flatten();
    if parsed.is_none() {
        let missing = value.is_empty();
        errors.insert(
            "patientId",
            if missing { "Patient id is required" } else { "Patient id should be a UUID" },
        );
    }
    parsed.map(PatientId)
}

const REGISTERED_FORM: &str = "Registered date must be a date of the form YYYY-MM-DD";
const BIRTH_FORM: &str = "Date of birth must be a date of the form YYYY-MM-DD";
const BIRTH_FUTURE: &str = "Date of birth cannot be in the future";
const BIRTH_EARLIEST_YEAR: i32 = 1850;
const BIRTH_TOO_EARLY: &str = "Date of birth cannot be before 1850";

struct Common {
    name: Box<str>,
    email: Box<str>,
    address: Box<str>,
    date_of_birth: Date,
}

fn common(input: &PatientInput<'_>, today: Date, errors: &mut FieldErrors) -> Option<Common> {
    let name = name(input.name, errors);
    let address = address(input.address, errors);
    let email = email(input.email, errors);
    let date_of_birth = birth(input.date_of_birth, today, errors);
    Some(Common { name: name?, email: email?, address: address?, date_of_birth: date_of_birth? })
}

/// What is said of a text that does not hold.
struct Words {
    field: &'static str,
    required: &'static str,
    too_long: &'static str,
    control: &'static str,
    /// None: it may hold marks of direction.
    bidi: Option<&'static str>,
}

fn name(value: Option<&str>, errors: &mut FieldErrors) -> Option<Box<str>> {
    let words = Words {
        field: "name",
        required: "Name is required",
        too_long: "Name cannot exceed 100 characters",
        control: "Name cannot contain control characters",
        bidi: Some("Name cannot contain characters that steer the direction of text"),
    };
    text(value, &words, NAME_MAX_CHARS, errors)
}

fn address(value: Option<&str>, errors: &mut FieldErrors) -> Option<Box<str>> {
    let words = Words {
        field: "address",
        required: "Address is required",
        too_long: "Address cannot exceed 500 characters",
        control: "Address cannot contain control characters",
        bidi: None,
    };
    text(value, &words, ADDRESS_MAX_CHARS, errors)
}

/// A text in Normalization Form C that is neither blank nor too long, and holds no control characters
/// (PostgreSQL has no NUL in a text, and no terminal should be steered by a name), no noncharacters and no
/// marks of direction; a line break is fine in an address alone.
fn text(value: Option<&str>, words: &Words, max_chars: usize, errors: &mut FieldErrors) -> Option<Box<str>> {
    let value = nfc(value.unwrap_or_default().trim());
    let bad_char =
        |c: char| (c.is_control() && !(words.field == "address" && c == '\n')) || is_noncharacter(c);
    let steering = words.bidi.filter(|_| value.contains(is_bidi_control));
    let message = if value.is_empty() {
        words.required
    } else if value.chars().count() > max_chars {
        words.too_long
    } else if value.contains(bad_char) {
        words.control
    } else if let Some(message) = steering {
        message
    } else {
        return Some(value.into());
    };
    errors.insert(words.field, message);
    None
}

fn email(value: Option<&str>, errors: &mut FieldErrors) -> Option<Box<str>> {
    let value = nfc(value.unwrap_or_default().trim());
    let message = if value.is_empty() {
        "Email is required"
    } else if value.len() > EMAIL_MAX_BYTES {
        "Email cannot exceed 254 bytes"
    } else if value.contains(is_bidi_control) {
        "Email cannot contain characters that steer the direction of text"
    } else if !value.validate_email() {
        "Email should be valid"
    } else {
        return Some(value.into());
    };
    errors.insert("email", message);
    None
}

fn registered(value: Option<&str>, errors: &mut FieldErrors) -> Option<Date> {
    date(value, "registeredDate", "Registered date is required", REGISTERED_FORM, errors)
}

fn birth(value: Option<&str>, today: Date, errors: &mut FieldErrors) -> Option<Date> {
    let birth = date(value, "dateOfBirth", "Date of birth is required", BIRTH_FORM, errors)?;
    let message = if birth > today {
        BIRTH_FUTURE
    } else if birth.year() < BIRTH_EARLIEST_YEAR {
        BIRTH_TOO_EARLY
    } else {
        return Some(birth);
    };
    errors.insert("dateOfBirth", message);
    None
}

fn date(
    value: Option<&str>,
    field: &'static str,
    required: &'static str,
    form: &'static str,
    errors: &mut FieldErrors,
) -> Option<Date> {
    let value = value.unwrap_or_default().trim();
    if value.is_empty() {
        errors.insert(field, required);
        return None;
    }
    let parsed = parse_date(value);
    if parsed.is_none() {
        errors.insert(field, form);
    }
    parsed
}

/// A calendar date of the form `YYYY-MM-DD` (RFC 3339 `full-date`), and nothing else.
pub fn parse_date(text: &str) -> Option<Date> {
    (text.len() == 10).then(|| Date::parse(text, format_description!("[year]-[month]-[day]")).ok()).flatten()
}

/// `date` as `YYYY-MM-DD`.
pub fn format_date(date: Date) -> String {
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

#[cfg(test)]
mod tests {
    use ::time::macros::date;

    use super::*;

    const TODAY: Date = date!(2026 - 03 - 31);

    fn valid() -> PatientInput<'static> {
        PatientInput {
            name: Some("Ada Lovelace"),
            email: Some("Ada@Example.com"),
            address: Some("12 St James's Square\nLondon"),
            date_of_birth: Some("1915-12-10"),
            registered_date: Some("2026-01-02"),
        }
    }

    #[test]
    fn valid_input_is_taken_as_given() {
        let details = registration(&valid(), TODAY).expect("valid");
        assert_eq!(&*details.email, "Ada@Example.com");
        assert_eq!(details.email_key(), "ada@example.com");
        assert_eq!(details.date_of_birth, date!(1915 - 12 - 10));
    }

    #[test]
    fn what_looks_the_same_is_stored_the_same() {
        let mut input = valid();
        input.name = Some("Zoe\u{308} \u{5d0}\u{5d1}");
        input.address = Some("1 \u{200f}Way");
        let details = registration(&input, TODAY).expect("valid");
        assert_eq!(&*details.name, "Zo\u{eb} \u{5d0}\u{5d1}");
        assert_eq!(&*details.address, "1 \u{200f}Way", "an address may be in two directions");
        // As many characters as may be, once they are put together.
        let name = "e\u{301}".repeat(NAME_MAX_CHARS);
        input.name = Some(&name);
        assert_eq!(registration(&input, TODAY).expect("valid").name.chars().count(), NAME_MAX_CHARS);
    }

    #[test]
    fn everything_missing_is_said_at_once() {
        let errors = registration(&PatientInput::default(), TODAY).expect_err("empty");
        let said: Vec<_> = errors.into_iter().collect();
        assert_eq!(
            said,
            [
                ("address", "Address is required"),
                ("dateOfBirth", "Date of birth is required"),
                ("email", "Email is required"),
                ("name", "Name is required"),
                ("registeredDate", "Registered date is required"),
            ]
        );
    }

    #[test]
    fn each_rule_has_its_message() {
        let long_name = "x".repeat(101);
        let long_address = "x".repeat(501);
        // Fewer characters than bytes.
        let wide_email = format!("ada@{}.example", "\u{fc}".repeat(130));
        let long_email = format!("{}@example.com", "x".repeat(250));
        type Edit<'a> = Box<dyn Fn(&mut PatientInput<'a>) + 'a>;
        let cases: Vec<(Edit<'_>, &str, &str)> = vec![
            (Box::new(|i| i.name = Some("   ")), "name", "Name is required"),
            (Box::new(|i| i.name = Some(&long_name)), "name", "Name cannot exceed 100 characters"),
            (Box::new(|i| i.name = Some("a\0b")), "name", "Name cannot contain control characters"),
            (Box::new(|i| i.email = Some("not-an-address")), "email", "Email should be valid"),
            (Box::new(|i| i.name = Some("a\u{ffff}b")), "name", "Name cannot contain control characters"),
            (
                Box::new(|i| i.name = Some("Ada\u{202e}ecalevoL")),
                "name",
                "Name cannot contain characters that steer the direction of text",
            ),
            (Box::new(|i| i.email = Some(&long_email)), "email", "Email cannot exceed 254 bytes"),
            (Box::new(|i| i.email = Some(&wide_email)), "email", "Email cannot exceed 254 bytes"),
            (
                Box::new(|i| i.email = Some("ada@example\u{200f}.com")),
                "email",
                "Email cannot contain characters that steer the direction of text",
            ),
            (
                Box::new(|i| i.address = Some(&long_address)),
                "address",
                "Address cannot exceed 500 characters",
            ),
            (Box::new(|i| i.date_of_birth = Some("10.12.1815")), "dateOfBirth", BIRTH_FORM),
            (Box::new(|i| i.date_of_birth = Some("2026-02-30")), "dateOfBirth", BIRTH_FORM),
            (Box::new(|i| i.date_of_birth = Some("2026-04-01")), "dateOfBirth", BIRTH_FUTURE),
            (Box::new(|i| i.date_of_birth = Some("0001-01-01")), "dateOfBirth", BIRTH_TOO_EARLY),
            (Box::new(|i| i.registered_date = Some("soon")), "registeredDate", REGISTERED_FORM),
        ];
        for (edit, field, message) in cases {
            let mut input = valid();
            edit(&mut input);
            let errors = registration(&input, TODAY).expect_err(message);
            assert_eq!(errors.into_iter().collect::<Vec<_>>(), [(field, message)]);
        }
    }

    #[test]
    fn the_holder_of_an_account_has_the_rules_of_a_patient() {
        let input = AccountInput {
            patient_id: "123e4567-e89b-12d3-a456-426614174000",
            name: "Ada Lovelace",
            email: "ada@example.com",
        };
        let holder = account(&input).expect("valid");
        assert_eq!(holder.patient_id.to_string(), input.patient_id);
        let errors = account(&AccountInput { patient_id: "", name: " ", email: "ada" }).expect_err("invalid");
        assert_eq!(
            errors.into_iter().collect::<Vec<_>>(),
            [
                ("email", "Email should be valid"),
                ("name", "Name is required"),
                ("patientId", "Patient id is required")
            ]
        );
        for bad in ["7", "123e4567e89b12d3a456426614174000", "{123e4567-e89b-12d3-a456-42661417400}"] {
            assert!(account(&AccountInput { patient_id: bad, ..input }).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_may_leave_the_registered_date_out_but_not_spoil_it() {
        let mut input = valid();
        input.registered_date = None;
        assert_eq!(change(&input, TODAY).expect("valid").registered_date, None);
        input.registered_date = Some("x");
        assert!(change(&input, TODAY).is_err());
    }
}
