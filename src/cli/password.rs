//! Reads a password from the terminal, without echo, or from standard input.

use std::io::{IsTerminal, Read};

use super::failure::{Exit, Failure};
use crate::config::line_of_secret;

/// Maximum number of bytes read. The rules for passwords are in `auth`.
const INPUT_BYTES_MAX: u64 = 4096;

/// Reads a new password: twice from a terminal, else the only line of standard input.
pub(super) fn read() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return only_line(stdin.lock());
    }
    let first = rpassword::prompt_password("Password: ")?;
    let second = rpassword::prompt_password("Once more: ")?;
    if first == second { Ok(first) } else { Err(Failure::new(Exit::Failed, "the two are not the same")) }
}

/// Reads an existing password: once from a terminal, else the only line of standard input.
pub(super) fn read_known() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(rpassword::prompt_password("Password: ")?);
    }
    only_line(stdin.lock())
}

fn only_line(input: impl Read) -> Result<String, Failure> {
    let failed = |reason: &str| Failure::new(Exit::Failed, format!("the password: {reason}"));
    let mut text = Vec::new();
    input.take(INPUT_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        return Err(failed(&format!("standard input has more than {INPUT_BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(&text).map_err(|_| failed("it is not UTF-8"))?;
    let line = line_of_secret(text).map_err(|reason| failed(&format!("standard input: {reason}")))?;
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_line_is_the_password() {
        assert_eq!(only_line(&b"two words \r\n"[..]).unwrap(), "two words ");
        assert_eq!(only_line(&b"no end"[..]).unwrap(), "no end");
        assert_eq!(only_line(&b"\xef\xbb\xbfof an editor\n"[..]).unwrap(), "of an editor");
    }

    #[test]
    fn none_several_too_long_and_not_utf_8_are_refused_without_saying_it() {
        for bad in [
            Vec::new(),
            b"\n".to_vec(),
            b"\xef\xbb\xbf\n".to_vec(),
            b"hunter2\nhunter3\n".to_vec(),
            b"hunter2\n\n".to_vec(),
            b"hunter2\rhunter3".to_vec(),
            b"hunter2\xff\n".to_vec(),
            b"hunter2".repeat(600),
        ] {
            let failure = only_line(&bad[..]).unwrap_err();
            assert!(failure.exit == Exit::Failed && !failure.message.contains("hunter"), "{failure:?}");
        }
    }
}
