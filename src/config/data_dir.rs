//! The directory for the node's files.
//!
//! Invariant: only users whom the owner permits can put a file there. Otherwise somebody else could place a
//! database or a secret that the node would take for its own.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, access};

/// The mode bit that lets everybody write.
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// Creates `path` if it is missing, and checks its permissions.
///
/// # Errors
/// Describes what is wrong with the directory.
pub(super) fn ensure(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| format!("the directory cannot be made: {error}"))?;
    let found =
        std::fs::metadata(path).map_err(|error| format!("the directory cannot be looked at: {error}"))?;
    let mode = found.permissions().mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(format!(
            "everybody may write there (mode {mode:o}), and so give the node another database or secret: `chmod o-w` \
             it, or name another directory"
        ));
    }
    access(path, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("the node cannot write there: {}", std::io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};

    use super::*;

    #[test]
    fn it_is_made_for_its_owner_and_one_that_everybody_may_write_to_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/data");
        ensure(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
        for (mode, allowed) in [(0o777, false), (0o1777, false), (0o702, false), (0o755, true), (0o770, true)]
        {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(ensure(&path).is_ok(), allowed, "{mode:o}");
        }
        let refused = ensure(Path::new("/dev/null")).unwrap_err();
        assert!(refused.contains("cannot be made"), "{refused}");
        let refused = ensure(Path::new("/proc/1/data")).unwrap_err();
        assert!(refused.contains("cannot be made"), "{refused}");
    }
}
