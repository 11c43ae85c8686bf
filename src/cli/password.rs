//! A password from the terminal, without echo, or from standard input.

use std::io::{BufRead, IsTerminal};

use super::failure::{Exit, Failure};

/// The longest line that is read. What a password may be is for `auth` to say; this only bounds the
/// reading.
const LINE_BYTES_MAX: u64 = 4096;

/// Reads a new password: twice from a terminal, else the first line of standard input.
pub(super) fn read() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return first_line(stdin.lock());
    }
    let first = rpassword::prompt_password("Password: ")?;
    let second = rpassword::prompt_password("Once more: ")?;
    if first == second { Ok(first) } else { Err(Failure::new(Exit::Failed, "the two are not the same")) }
}

/// Reads a password that is there already: once from a terminal, else the first line of standard input.
pub(super) fn read_known() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(rpassword::prompt_password("Password: ")?);
    }
    first_line(stdin.lock())
}

fn first_line(input: impl BufRead) -> Result<String, Failure> {
    let failed = |reason: &str| Err(Failure::new(Exit::Failed, format!("the password: {reason}")));
    let mut line = Vec::new();
    input.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line)?;
    if line.len() as u64 > LINE_BYTES_MAX {
        return failed(&format!("a line of more than {LINE_BYTES_MAX} bytes"));
    }
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    match std::str::from_utf8(text) {
        Ok("") => failed("standard input has none"),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => failed("it is not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        assert_eq!(first_line(&b"two words \r\nnext"[..]).unwrap(), "two words ");
        assert_eq!(first_line(&b"no end"[..]).unwrap(), "no end");
    }

    #[test]
    fn none_too_long_and_not_utf_8_are_refused_without_saying_it() {
        for bad in [Vec::new(), b"\n".to_vec(), b"hunter2\xff\n".to_vec(), b"hunter2".repeat(600)] {
            let failure = first_line(&bad[..]).unwrap_err();
            assert!(failure.exit == Exit::Failed && !failure.message.contains("hunter2"), "{failure:?}");
        }
    }
}
