//! The secrets that an embedded demo node generates for itself.
//!
//! Invariants: the file is created atomically, only its owner may read it, and two processes that create it
//! at the same time use the same secret.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::Problem;

/// A file with a secret.
pub(super) struct SecretFile {
    /// The file's name within the data directory.
    name: &'static str,
    /// The key of the setting that it provides.
    key: &'static str,
}

/// The secret that signs tokens under HS256.
pub(super) const JWT: SecretFile = SecretFile { name: "jwt-secret", key: "auth.jwt_secret" };
/// The secret that seals the access audit.
pub(super) const AUDIT: SecretFile = SecretFile { name: "audit-secret", key: "audit.secret" };

/// Number of random bytes in a secret.
const RANDOM_BYTES: usize = 48;

/// Maximum number of bytes that are read of the file.
const FILE_BYTES_MAX: u64 = 4096;

impl SecretFile {
    /// Returns the secret in `data_dir`; generates it if there is none.
    pub(super) fn read_or_make(&self, data_dir: &Path) -> Result<String, Problem> {
        let path = data_dir.join(self.name);
        let fail = |reason: String| {
            let reason = format!("the secret in {} cannot be used: {reason}", path.display());
            Problem { key: self.key.to_owned(), ..Problem::general(None, reason) }
        };
        match read(&path) {
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
                make(data_dir, &path).map_err(|e| fail(e.to_string()))?;
                read(&path).map_err(|refusal| fail(refusal.to_string()))
            }
            other => other.map_err(|refusal| fail(refusal.to_string())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("others than its owner may read it (mode {0:o}); `chmod 600` it, or delete it to have a new one")]
    Mode(u32),
    #[error("it does not hold what was written; delete it to have a new one")]
    Content,
}

fn read(path: &Path) -> Result<String, Refusal> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Refusal::Mode(mode));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    match URL_SAFE_NO_PAD.decode(text.trim_end()) {
        Ok(bytes) if bytes.len() == RANDOM_BYTES => Ok(text.trim_end().to_owned()),
        _ => Err(Refusal::Content),
    }
}

fn make(data_dir: &Path, path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    let draft = path.with_extension(format!("{:016x}.tmp", fastrand::u64(..)));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{}", URL_SAFE_NO_PAD.encode(random))?;
    file.sync_all()?;
    // Unlike a rename, a hard link does not replace a file that another process has created meanwhile.
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => File::open(data_dir)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("deep/data");
        let made = JWT.read_or_make(&data_dir).unwrap();
        assert!(made.len() >= 64, "{} bytes", made.len());
        assert_eq!(JWT.read_or_make(&data_dir).unwrap(), made);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data_dir.join(JWT.name)), 0o600);
        assert_eq!(mode(&data_dir), 0o700);
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left");
        let other = tempfile::tempdir().unwrap();
        assert_ne!(JWT.read_or_make(other.path()).unwrap(), made);
    }

    #[test]
    fn one_that_others_may_read_or_that_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = JWT.read_or_make(dir.path()).unwrap();
        let path = dir.path().join(JWT.name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refusal = JWT.read_or_make(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("mode 640") && !refusal.contains(&made), "{refusal}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "short").unwrap();
        let refusal = JWT.read_or_make(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("delete it") && !refusal.contains("short"), "{refusal}");
    }

    #[test]
    fn many_at_once_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let secrets: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| JWT.read_or_make(dir.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    }
}
