//! `hygeia certs`: creates an authority and certificates for the nodes of a cluster, for trying it out. An
//! existing authority is used again.
//!
//! Invariants: no file is overwritten, and a private key is created with permissions for its owner only.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::failure::{Exit, Failure};

const AUTHORITY: &str = "Hygeia development CA";
/// Minimum validity of the authority, which should outlive the certificates that it signs.
const AUTHORITY_DAYS_MIN: u32 = 3_650;
/// Certificates are valid from this long ago, because the clocks of other machines may be behind.
const BEFORE_NOW: Duration = Duration::hours(1);

/// The arguments of `hygeia certs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory for the files; created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The nodes' names, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    nodes: Vec<String>,
    /// The validity of the nodes' certificates, in days
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

/// Creates the files and prints their names.
pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(name) = args.nodes.iter().find(|name| !is_dns_name(name)) {
        let reason =
            format!("--nodes: {name:?} is no name of a node: small letters, digits, hyphens and dots");
        return Err(Failure::new(Exit::Usage, reason));
    }
    let files = |name: &String| (args.out.join(format!("{name}.pem")), args.out.join(format!("{name}.key")));
    for name in &args.nodes {
        let (certificate, key) = files(name);
        refuse_existing(&certificate)?;
        refuse_existing(&key)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&args.out).map_err(|e| failed(&args.out, e))?;
    let authority = Authority::open_or_make(&args.out, args.days, out)?;
    for name in &args.nodes {
        let (certificate, key) = files(name);
        let (certificate_pem, key_pem) =
            authority.sign(name, args.days).map_err(|e| failed(&certificate, e))?;
        write_new(&key, &key_pem, 0o600)?;
        write_new(&certificate, &certificate_pem, 0o644)?;
        writeln!(out, "{}", certificate.display())?;
    }
    Ok(())
}

/// The authority that signs the nodes' certificates: the files `ca.pem` and `ca.key`.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `dir`. Creates it if there is none, and prints the new certificate's path to
    /// `out`.
    ///
    /// # Errors
    /// One of the two files exists and the other does not, or a file cannot be read or written.
    pub(super) fn open_or_make(dir: &Path, days: u32, out: &mut dyn Write) -> Result<Self, Failure> {
        let (certificate, key_file) = (dir.join("ca.pem"), dir.join("ca.key"));
        let params = authority_params(days);
        if key_file.exists() {
            if !certificate.exists() {
                return Err(failed(&certificate, "it is missing, and its key is there"));
            }
            let pem = std::fs::read_to_string(&key_file).map_err(|e| failed(&key_file, e))?;
            let key = KeyPair::from_pem(&pem).map_err(|e| failed(&key_file, e))?;
            return Ok(Authority { issuer: Issuer::new(params, key) });
        }
        refuse_existing(&certificate)?;
        let key = KeyPair::generate().map_err(|e| failed(&key_file, e))?;
        let signed = params.self_signed(&key).map_err(|e| failed(&certificate, e))?;
        write_new(&key_file, &key.serialize_pem(), 0o600)?;
        write_new(&certificate, &signed.pem(), 0o644)?;
        writeln!(out, "{}", certificate.display())?;
        Ok(Authority { issuer: Issuer::new(params, key) })
    }

    /// Signs a certificate for `name`, which may begin with `*.`. Returns the certificate and its key, both
    /// as PEM.
    pub(super) fn sign(&self, name: &str, days: u32) -> Result<(String, String), rcgen::Error> {
        of_node(name, days, &self.issuer)
    }
}

fn authority_params(days: u32) -> CertificateParams {
    let mut params = validity(CertificateParams::default(), days.max(AUTHORITY_DAYS_MIN));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, AUTHORITY);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn of_node(name: &str, days: u32, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let mut params = validity(CertificateParams::new(vec![name.to_owned()])?, days);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn validity(mut params: CertificateParams, days: u32) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BEFORE_NOW;
    params.not_after = now + Duration::days(days.into());
    params
}

fn is_dns_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name != "ca" && name.split('.').all(is_label)
}

fn refuse_existing(path: &Path) -> Result<(), Failure> {
    if path.exists() { Err(failed(path, "it is there already, and is not written over")) } else { Ok(()) }
}

/// Creates a file, with `mode` from the start. Fails if the file exists.
pub(super) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| failed(path, e))
}

/// Builds the failure of a file operation.
pub(super) fn failed(path: &Path, reason: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn make(out: &Path, nodes: &[&str]) -> Result<String, Failure> {
        let nodes = nodes.iter().map(|&name| name.to_owned()).collect();
        let mut told = Vec::new();
        run(&Args { out: out.to_owned(), nodes, days: 1 }, &mut told)?;
        Ok(String::from_utf8(told).unwrap())
    }

    #[test]
    fn files_are_made_once_and_keys_are_for_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("certs");
        assert_eq!(make(&out, &["front", "patient-1.nodes.example.org"]).unwrap().lines().count(), 3);
        let authority = std::fs::read(out.join("ca.pem")).unwrap();
        for name in ["ca", "front", "patient-1.nodes.example.org"] {
            let key = std::fs::metadata(out.join(format!("{name}.key"))).unwrap();
            assert_eq!(key.permissions().mode() & 0o777, 0o600, "{name}");
        }
        let refused = make(&out, &["billing", "front"]).unwrap_err();
        assert!(refused.message.contains("front.pem: it is there already"), "{}", refused.message);
        assert!(!out.join("billing.pem").exists(), "all or nothing");
        assert_eq!(make(&out, &["billing"]).unwrap().lines().count(), 1, "signed by the same authority");
        assert_eq!(std::fs::read(out.join("ca.pem")).unwrap(), authority);
    }

    #[test]
    fn what_is_no_name_of_a_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../x", "A", "-a", "a..b", "ca", "a/b"] {
            assert_eq!(make(dir.path(), &[name]).unwrap_err().exit, Exit::Usage, "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
