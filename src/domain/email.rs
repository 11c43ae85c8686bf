//! E-mail addresses: their validation, and the one form of addresses of the same mailbox.

use super::idna;
use super::text::{is_bidi_control, nfc, trimmed};

/// The maximum number of characters of an e-mail address (RFC 5321, 4.5.3.1.3: a path of 256 octets including
/// its angle brackets).
pub const EMAIL_MAX_CHARS: usize = 254;
/// The same limit in bytes, which is the unit of the standard. A domain may have non-ASCII letters.
pub const EMAIL_MAX_BYTES: usize = EMAIL_MAX_CHARS;
/// The maximum number of bytes before the `@` (RFC 5321, 4.5.3.1.1).
const LOCAL_MAX_BYTES: usize = 64;

const REQUIRED: &str = "Email is required";
const TOO_LONG: &str = "Email cannot exceed 254 bytes";
const BIDI: &str = "Email cannot contain characters that steer the direction of text";
const INVALID: &str = "Email should be valid";
const LOCAL_ASCII: &str =
    "Email can only have ASCII characters before the @: other letters are not supported there";
const DOMAIN: &str = "Email should have a valid domain behind the @";
const SOUGHT: &str = "Should be 1 to 254 characters, none of them a control character";

/// The form of an e-mail address by which addresses are compared: lower case, with the domain in A-labels. It
/// contains no control character, so every database can store it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmailKey(Box<str>);

/// Never prints the address.
impl std::fmt::Debug for EmailKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmailKey(..)")
    }
}

impl std::ops::Deref for EmailKey {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl EmailKey {
    /// Returns the key of a search text. The text need not be a valid address; an invalid one matches
    /// nothing.
    ///
    /// # Errors
    /// A message if the text is blank, too long, or contains a control character.
    pub fn sought(text: &str) -> Result<Self, &'static str> {
        let text = trimmed(text);
        check_sought(text)?;
        Ok(EmailKey(email_key(text).into()))
    }

    /// Returns the key of a login name. A blank or too long name matches no user.
    ///
    /// # Errors
    /// A message if the text contains a control character.
    pub fn of_any_length(text: &str) -> Result<Self, &'static str> {
        let text = trimmed(text);
        if text.contains(char::is_control) {
            return Err("Cannot contain control characters");
        }
        Ok(EmailKey(email_key(text).into()))
    }

    /// Returns a position in the order of keys. A key gives itself, even one stored before these rules
    /// existed.
    ///
    /// # Errors
    /// As `sought`.
    pub fn place(text: &str) -> Result<Self, &'static str> {
        check_sought(text)?;
        Ok(EmailKey(text.to_lowercase().into()))
    }
}

fn check_sought(text: &str) -> Result<(), &'static str> {
    let fits = (1..=EMAIL_MAX_CHARS).contains(&text.chars().count());
    if fits && !text.contains(char::is_control) { Ok(()) } else { Err(SOUGHT) }
}

/// An e-mail address. Valid by construction.
#[derive(Clone, PartialEq, Eq)]
pub struct EmailAddress {
    given: Box<str>,
    key: EmailKey,
}

/// Never prints the address.
impl std::fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmailAddress(..)")
    }
}

impl EmailAddress {
    /// Parses `text` as an address, without invisible characters at its ends: a dot-atom of ASCII characters
    /// (RFC 5321, section 4.1.2), `@`, and a host name according to IDNA 2008. Quoted names and numeric
    /// addresses are not allowed.
    ///
    /// # Errors
    /// A message that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let given = nfc(trimmed(text));
        if given.is_empty() {
            return Err(REQUIRED);
        }
        if given.len() > EMAIL_MAX_BYTES {
            return Err(TOO_LONG);
        }
        if given.contains(is_bidi_control) {
            return Err(BIDI);
        }
        let (local, domain) = given.rsplit_once('@').ok_or(INVALID)?;
        if !local.is_ascii() && !local.contains(char::is_control) {
            return Err(LOCAL_ASCII);
        }
        if !is_dot_atom(local) || local.len() > LOCAL_MAX_BYTES {
            return Err(INVALID);
        }
        let domain = idna::canonical(domain).ok_or(if domain.is_ascii() { INVALID } else { DOMAIN })?;
        let key = format!("{}@{domain}", local.to_ascii_lowercase());
        if key.len() > EMAIL_MAX_BYTES {
            return Err(TOO_LONG);
        }
        Ok(EmailAddress { key: EmailKey(key.into()), given: given.into() })
    }

    /// Returns the address as given, in Normalization Form C.
    pub fn given(&self) -> &str {
        &self.given
    }

    /// Returns the form by which the address is compared.
    pub fn key(&self) -> &EmailKey {
        &self.key
    }
}

/// Returns the unique form of a stored address: `EmailAddress::key`, or the lower-case form for addresses
/// stored before these rules existed.
pub fn email_key(address: &str) -> String {
    if address.is_ascii() {
        // The rules change nothing but the case of an ASCII address.
        return address.to_ascii_lowercase();
    }
    EmailAddress::parse(address).map_or_else(|_| address.to_lowercase(), |address| address.key.0.into())
}

/// Returns whether `text` is a dot-atom (RFC 5322, section 3.2.3).
fn is_dot_atom(text: &str) -> bool {
    let atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
    text.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(atext))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_mailbox_have_one_key() {
        for (one, other) in [
            ("Ada@Example.com", "ada@example.COM"),
            ("ada@b\u{fc}cher.example", "ada@xn--bcher-kva.example"),
            ("ada@B\u{dc}CHER.example", "ADA@XN--BCHER-KVA.EXAMPLE"),
            ("ada@bu\u{308}cher.example", "ada@b\u{fc}cher.example"),
            ("\u{feff} ada@example.com\u{200b}", "ada@example.com"),
        ] {
            let key = |text| EmailAddress::parse(text).expect(text).key().clone();
            assert_eq!(*key(one), *key(other), "{one} {other}");
            assert_eq!(email_key(EmailAddress::parse(one).expect(one).given()), *key(other));
            assert_eq!(*EmailKey::sought(one).expect(one), *key(other));
        }
        assert_eq!(
            EmailAddress::parse(" Ada@B\u{fc}cher.example").expect("valid").given(),
            "Ada@B\u{fc}cher.example"
        );
    }

    #[test]
    fn what_is_no_address_says_why() {
        let long = format!("{}@example.com", "x".repeat(250));
        let long_local = format!("{}@example.com", "x".repeat(65));
        let long_label = format!("ada@{}.example", "\u{fc}".repeat(60));
        for (bad, why) in [
            ("", REQUIRED),
            (" \u{200b}\u{3000}", REQUIRED),
            (&long, TOO_LONG),
            ("ada@exam\u{200f}ple.com", BIDI),
            ("ada", INVALID),
            ("@example.com", INVALID),
            ("ada@", INVALID),
            (".a@x.org", INVALID),
            ("a.@x.org", INVALID),
            ("a..b@x.org", INVALID),
            ("a b@x.org", INVALID),
            ("a@b@x.org", INVALID),
            ("\"a b\"@x.org", INVALID),
            ("a\0@example.org", INVALID),
            ("a@x.org\0", INVALID),
            ("a@x\n.org", INVALID),
            (&long_local, INVALID),
            ("a@example.123", INVALID),
            ("a@[127.0.0.1]", INVALID),
            ("a@xn--bcher-kva8.example", INVALID),
            ("a@x.org.", INVALID),
            ("no\u{eb}@example.org", LOCAL_ASCII),
            ("no\u{200b}a@example.org", LOCAL_ASCII),
            ("noa@example.o\u{200b}rg", DOMAIN),
            ("noa@exam\u{ad}ple.org", DOMAIN),
            ("noa@\u{ff45}xample.org", DOMAIN),
            ("noa@example\u{3002}org", DOMAIN),
            (&long_label, DOMAIN),
        ] {
            assert_eq!(EmailAddress::parse(bad).map(|_| ()), Err(why), "{}", bad.escape_unicode());
        }
    }

    #[test]
    fn a_key_is_looked_for_without_control_characters() {
        for bad in ["", " \u{200b}", "a\0@example.org", "a@example.org\u{7f}", "a\u{9f}b", &"x".repeat(255)] {
            assert_eq!(EmailKey::sought(bad), Err(SOUGHT), "{}", bad.escape_unicode());
        }
        assert_eq!(EmailKey::place("a\0"), Err(SOUGHT));
        assert!(EmailKey::of_any_length("a\0").is_err());
        assert_eq!(EmailKey::of_any_length(&"X".repeat(300)).expect("nobody's").len(), 300);
        let old = "ada@example.org\u{200b}";
        assert_eq!(&*EmailKey::place(old).expect("a place"), old, "a list goes on behind whatever is in it");
        assert_eq!(&*EmailKey::sought(" ADMIN ").expect("no address, but a text"), "admin");
    }

    #[test]
    fn addresses_from_before_keep_their_keys() {
        for old in ["noa@\u{ff45}xample.org", "noa@example.org\u{200b}"] {
            let again = email_key(&email_key(old));
            assert_eq!(again, email_key(old), "{}", old.escape_unicode());
        }
        assert_eq!(email_key("noa@\u{ff25}xample.org"), "noa@\u{ff45}xample.org");
    }
}
