//! The database's file: made for its owner alone, and served by one process at a time.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use crate::store::{Error, Result};

/// The pause between two tries to get at a file that another process has.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Makes the file if it is not there. It holds patient data: it is for its owner alone, and the files that SQLite makes
/// beside it take its mode.
///
/// # Errors
/// `Unavailable`: it can be neither made nor looked at; `Broken`: it has a second name (a hard link). SQLite names its
/// log after the database, so whoever came by the other name would miss what is in the log.
pub(super) fn make(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(unusable)?;
    }
    // A file that is there is not opened: see `Lock`.
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

/// The lock of the file itself, whatever name it was reached by. It goes with this, or with the process.
///
/// The file is never closed: closing one handle of a file takes the locks of all others of the process, and SQLite's
/// connections have theirs (sqlite.org/howtocorrupt.html, 2.2). SQLite's locks are of another kind, and not in its way.
pub(super) struct Lock(ManuallyDrop<File>);

impl Lock {
    /// Takes the lock, waiting for it at most `patience`.
    ///
    /// # Errors
    /// `Unavailable`: another process has it, or the file cannot be opened.
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
        // Of a file that is open and locked, unlocking cannot fail; of one that was never locked, it does nothing.
        flock(&*self.0, FlockOperation::Unlock).ok();
    }
}
