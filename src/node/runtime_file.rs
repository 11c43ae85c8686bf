//! `runtime.json` in the data directory: the addresses that the running node uses, for scripts and `hygeia
//! healthcheck`. The settings may name port 0, which lets the system choose a port. The file is replaced
//! atomically.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file's name.
pub const NAME: &str = "runtime.json";

/// Maximum number of bytes that are read of the file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The addresses in use. A part that the node does not run is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeFile {
    /// The address at which HTTP listens, as `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// The address at which gRPC listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// The addresses of the brokers, including embedded ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<String>,
    /// The address at which other nodes of the cluster connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl RuntimeFile {
    /// Writes the file into `data_dir` and replaces an older one.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
        let draft = data_dir.join(format!("{NAME}.tmp"));
        let mut file = File::create(&draft)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&draft, data_dir.join(NAME))
    }

    /// Removes the file, because the addresses are no longer in use.
    pub fn remove(data_dir: &Path) {
        // The next start replaces a file that could not be removed.
        let _ = std::fs::remove_file(data_dir.join(NAME));
    }

    /// Reads the file in `data_dir`. Returns `None` if there is none.
    ///
    /// # Errors
    /// Errors of the file system; `InvalidData` if the content cannot be parsed. Unknown keys are ignored,
    /// because a newer version of the program may write more.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(data_dir.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        serde_json::from_str(&text).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_over_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("new");
        assert_eq!(RuntimeFile::read(&data_dir).unwrap(), None);
        let first = RuntimeFile { http: Some("127.0.0.1:1".into()), ..RuntimeFile::default() };
        first.write(&data_dir).unwrap();
        assert_eq!(RuntimeFile::read(&data_dir).unwrap(), Some(first));
        let all = RuntimeFile {
            http: Some("127.0.0.1:8080".into()),
            grpc: Some("[::1]:9001".into()),
            kafka: Some("127.0.0.1:9092".into()),
            cluster: None,
        };
        all.write(&data_dir).unwrap();
        assert_eq!(RuntimeFile::read(&data_dir).unwrap(), Some(all));
        let text = std::fs::read_to_string(data_dir.join(NAME)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["grpc"], "[::1]:9001");
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn what_it_is_not_is_an_error_and_what_is_new_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "{\"http\": \"127.0.0.1:1\"").unwrap();
        assert_eq!(RuntimeFile::read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::write(dir.path().join(NAME), "{\"http\": \"127.0.0.1:1\", \"later\": 1}").unwrap();
        assert_eq!(RuntimeFile::read(dir.path()).unwrap().unwrap().http.as_deref(), Some("127.0.0.1:1"));
    }
}
