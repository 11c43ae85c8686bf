//! The output of a command.
//!
//! Invariant: a reader that closes the pipe early (`hygeia audit verify | head -1`) is not an error and does
//! not change the exit code.

use std::io::{self, ErrorKind, Write};

/// Writes to `inner` until the reader closes the pipe.
pub(super) struct Output<W> {
    inner: W,
    closed: bool,
}

impl<W: Write> Output<W> {
    pub(super) fn new(inner: W) -> Self {
        Output { inner, closed: false }
    }

    fn unless_closed<T>(&mut self, rest: T, print: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.closed {
            return Ok(rest);
        }
        match print(&mut self.inner) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(rest)
            }
            other => other,
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_closed(bytes.len(), |inner| inner.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_closed((), W::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts one line, and then fails with the given error.
    struct Reader(Vec<u8>, ErrorKind);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.ends_with(b"\n") {
                return Err(self.1.into());
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_goes_is_no_failure_and_a_full_disk_is_one() {
        let mut gone = Output::new(Reader(Vec::new(), ErrorKind::BrokenPipe));
        for line in ["one\n", "two\n", "three\n"] {
            gone.write_all(line.as_bytes()).expect("no failure");
        }
        gone.flush().expect("no failure");
        assert_eq!(gone.inner.0, b"one\n");
        let mut full = Output::new(Reader(Vec::new(), ErrorKind::StorageFull));
        full.write_all(b"one\n").expect("room");
        assert_eq!(full.write_all(b"two\n").expect_err("no room").kind(), ErrorKind::StorageFull);
    }
}
