//! Validation of the fields that a caller sends: every rule of a field, with the message shown to the caller.

use std::collections::BTreeMap;

use ::time::Date;
use ::time::macros::format_description;
use uuid::Uuid;

use super::email::EmailAddress;
use super::ids::PatientId;
use super::patient::{PatientChange, PatientDetails, PatientPatch};
use super::text::{has_hidden, is_bidi_control, is_blank, is_noncharacter, nfc, trimmed};

/// The maximum number of characters of a name.
pub const NAME_MAX_CHARS: usize = 100;
/// The maximum number of characters of an address.
pub const ADDRESS_MAX_CHARS: usize = 500;

/// The error messages, by the field name that the caller knows.
pub type FieldErrors = BTreeMap<&'static str, &'static str>;

/// The fields as the caller sent them. A missing field is `None`.
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

/// Validates the details of a patient to register, on the day `today`.
///
/// # Errors
/// Every invalid field, with its message.
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

/// Validates a change of a patient, on the day `today`. The registered date is optional.
///
/// # Errors
/// Every invalid field, with its message.
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

/// Validates a change of some fields of a patient, on the day `today`. Fields that are not given stay
/// unchanged.
///
/// # Errors
/// Every invalid field, with its message.
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

/// The fields that a caller sent to open an account. A missing field is empty.
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
    /// The patient who gets the account.
    pub patient_id: PatientId,
    /// 1 to `NAME_MAX_CHARS` characters.
    pub name: Box<str>,
    /// An e-mail address.
    pub email: Box<str>,
}

/// Never prints its content.
impl std::fmt::Debug for AccountHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountHolder(..)")
    }
}

/// Validates the holder of an account to open.
///
/// # Errors
/// Every invalid field, with its message.
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

/// Parses a UUID in its usual form of 36 characters (RFC 9562, section 4).
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

const REGISTERED: DateWords = DateWords {
    field: "registeredDate",
    required: "Registered date is required",
    form: "Registered date must be a date of the form YYYY-MM-DD",
    no_day: "Registered date is not a calendar date: there is no such day",
};
const BIRTH: DateWords = DateWords {
    field: "dateOfBirth",
    required: "Date of birth is required",
    form: "Date of birth must be a date of the form YYYY-MM-DD",
    no_day: "Date of birth is not a calendar date: there is no such day",
};
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

/// The error messages of a text field.
struct Words {
    field: &'static str,
    required: &'static str,
    too_long: &'static str,
    control: &'static str,
    hidden: &'static str,
    /// `None` if the field may contain direction controls.
    bidi: Option<&'static str>,
}

fn name(value: Option<&str>, errors: &mut FieldErrors) -> Option<Box<str>> {
    let words = Words {
        field: "name",
        required: "Name is required",
        too_long: "Name cannot exceed 100 characters",
        control: "Name cannot contain control characters",
        hidden: "Name cannot contain invisible characters",
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
        hidden: "Address cannot contain invisible characters",
        bidi: None,
    };
    text(value, &words, ADDRESS_MAX_CHARS, errors)
}

/// Validates a text and returns it in Normalization Form C. It must contain something visible and must not be
/// too long. Invisible characters are trimmed at the ends, and refused inside unless a script needs them.
/// Control characters are refused, because PostgreSQL cannot store NUL in a text, and a name must not control
/// a terminal. Noncharacters are refused too. Line breaks and direction controls are allowed only in an
/// address.
fn text(value: Option<&str>, words: &Words, max_chars: usize, errors: &mut FieldErrors) -> Option<Box<str>> {
    let value = nfc(trimmed(value.unwrap_or_default()));
    let breaks_line = |c: char| matches!(c, '\n' | '\u{2028}' | '\u{2029}');
    let bad_char = |c: char| {
        ((c.is_control() || breaks_line(c)) && !(words.field == "address" && breaks_line(c)))
            || is_noncharacter(c)
    };
    let steering = words.bidi.filter(|_| value.contains(is_bidi_control));
    let message = if is_blank(&value) {
        words.required
    } else if value.chars().count() > max_chars {
        words.too_long
    } else if value.contains(bad_char) {
        words.control
    } else if let Some(message) = steering {
        message
    } else if has_hidden(&value, |c| words.bidi.is_none() && is_bidi_control(c)) {
        words.hidden
    } else {
        return Some(value.into());
    };
    errors.insert(words.field, message);
    None
}

fn email(value: Option<&str>, errors: &mut FieldErrors) -> Option<Box<str>> {
    match EmailAddress::parse(value.unwrap_or_default()) {
        Ok(email) => Some(email.given().into()),
        Err(message) => {
            errors.insert("email", message);
            None
        }
    }
}

fn registered(value: Option<&str>, errors: &mut FieldErrors) -> Option<Date> {
    date(value, &REGISTERED, errors)
}

fn birth(value: Option<&str>, today: Date, errors: &mut FieldErrors) -> Option<Date> {
    let birth = date(value, &BIRTH, errors)?;
    let message = if birth > today {
        BIRTH_FUTURE
    } else if birth.year() < BIRTH_EARLIEST_YEAR {
        BIRTH_TOO_EARLY
    } else {
        return Some(birth);
    };
    errors.insert(BIRTH.field, message);
    None
}

/// The error messages of a date field.
struct DateWords {
    field: &'static str,
    required: &'static str,
    form: &'static str,
    no_day: &'static str,
}

fn date(value: Option<&str>, words: &DateWords, errors: &mut FieldErrors) -> Option<Date> {
    let value = trimmed(value.unwrap_or_default());
    let message = match parse_date(value) {
        Ok(date) => return Some(date),
        Err(_) if value.is_empty() => words.required,
        Err(BadDate::Form) => words.form,
        Err(BadDate::NoSuchDay) => words.no_day,
    };
    errors.insert(words.field, message);
    None
}

/// Why a text is not a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDate {
    /// The text does not have the form of a date.
    Form,
    /// The text has the form of a date, but the calendar has no such day: 2023-02-29.
    NoSuchDay,
}

/// Parses a calendar date of the form `YYYY-MM-DD` (RFC 3339 `full-date`), and nothing else.
///
/// # Errors
/// Why the text is not a date.
pub fn parse_date(text: &str) -> Result<Date, BadDate> {
    let formed = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, b)| if matches!(at, 4 | 7) { b == b'-' } else { b.is_ascii_digit() });
    if !formed {
        return Err(BadDate::Form);
    }
    Date::parse(text, format_description!("[year]-[month]-[day]")).map_err(|_| BadDate::NoSuchDay)
}

/// Formats `date` as `YYYY-MM-DD`.
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
        input.name = Some("\u{200b}\u{202e}Zoe\u{ad}");
        assert_eq!(&*registration(&input, TODAY).expect("valid").name, "Zoe", "what nobody sees is trimmed");
        // Exactly the maximum number of characters after normalization.
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
        // Fewer characters than the limit, but more bytes.
        let wide_email = format!("ada@{}.example", "\u{fc}".repeat(130));
        let long_email = format!("{}@example.com", "x".repeat(250));
        type Edit<'a> = Box<dyn Fn(&mut PatientInput<'a>) + 'a>;
        let cases: Vec<(Edit<'_>, &str, &str)> = vec![
            (Box::new(|i| i.name = Some("   ")), "name", "Name is required"),
            (Box::new(|i| i.name = Some(&long_name)), "name", "Name cannot exceed 100 characters"),
            (Box::new(|i| i.name = Some("a\0b")), "name", "Name cannot contain control characters"),
            (Box::new(|i| i.name = Some("\u{200b}\u{2060}\u{3164}")), "name", "Name is required"),
            (Box::new(|i| i.name = Some("\u{2800}\u{301}")), "name", "Name is required"),
            (Box::new(|i| i.address = Some("\u{e0001}\u{ad} \u{202e}")), "address", "Address is required"),
            (Box::new(|i| i.name = Some("A\u{200d}da")), "name", "Name cannot contain invisible characters"),
            (
                Box::new(|i| i.address = Some("Lon\u{ad}don")),
                "address",
                "Address cannot contain invisible characters",
            ),
            (Box::new(|i| i.name = Some("a\u{2028}b")), "name", "Name cannot contain control characters"),
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
            (Box::new(|i| i.date_of_birth = Some("10.12.1815")), "dateOfBirth", BIRTH.form),
            (Box::new(|i| i.date_of_birth = Some("2026-02-30")), "dateOfBirth", BIRTH.no_day),
            (Box::new(|i| i.date_of_birth = Some("2023-02-29")), "dateOfBirth", BIRTH.no_day),
            (Box::new(|i| i.date_of_birth = Some("2026-13-01")), "dateOfBirth", BIRTH.no_day),
            (Box::new(|i| i.date_of_birth = Some("+026-01-01")), "dateOfBirth", BIRTH.form),
            (Box::new(|i| i.registered_date = Some("2026-00-00")), "registeredDate", REGISTERED.no_day),
            (Box::new(|i| i.date_of_birth = Some("2026-04-01")), "dateOfBirth", BIRTH_FUTURE),
            (Box::new(|i| i.date_of_birth = Some("0001-01-01")), "dateOfBirth", BIRTH_TOO_EARLY),
            (Box::new(|i| i.registered_date = Some("soon")), "registeredDate", REGISTERED.form),
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
