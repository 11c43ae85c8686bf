//! The database file: accessible to its owner only, and used by one server process at a time.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use crate::store::{Error, Result};

/// The pause between two attempts to use a file that another process has locked.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Creates the file if it is missing. The file holds patient data, so only its owner may access it; the files
/// that SQLite creates beside it inherit its mode.
///
/// # Errors
/// `Unavailable`: the file can be neither created nor examined. `Broken`: the file has a second name (a hard
/// link). SQLite names its log after the database, so a process that opened the other name would miss the
/// content of the log.
pub(super) fn make(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(unusable)?;
    }
    // An existing file is not opened here: see `Lock`.
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(unusable(error)),
        _ => {}
    }
    match std::fs::metadata(path).map_err(unusable)? {
        file if file.is_file() && file.nlink() > 1 => Err(Error::Broken(format!(
            "the file has {} names (hard links), and must have one: remove the others, or copy it",
            file.nlink()
        ))),
        _ => Ok(()),
    }
}

fn unusable(error: std::io::Error) -> Error {
    Error::Unavailable(format!("the file cannot be opened: {error}"))
}

/// The lock of the file itself, by whatever name it was opened. Dropping this value, or the end of the
/// process, releases the lock.
///
/// The file is never closed. Closing one handle of a file releases the POSIX locks that SQLite's connections
/// of this process hold (sqlite.org/howtocorrupt.html, 2.2). `flock` locks are independent of those.
pub(super) struct Lock(ManuallyDrop<File>);

impl Lock {
    /// Takes the lock; waits for it at most `patience`.
    ///
    /// # Errors
    /// `Unavailable`: another process holds the lock, or the file cannot be opened.
    pub(super) async fn take(path: &Path, patience: Duration) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path).map_err(unusable)?;
        let lock = Lock(ManuallyDrop::new(file));
        let deadline = Instant::now() + patience;
        loop {
            match flock(&*lock.0, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(PAUSE).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Error::Unavailable("another server uses this database".to_owned()));
                }
                Err(error) => return Err(unusable(error.into())),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Unlocking cannot fail for a file that is open and locked; it has no effect on one that was never
        // locked.
        flock(&*self.0, FlockOperation::Unlock).ok();
    }
}
