//! `hygeia provision`: creates the secrets and certificates of a whole cluster, as a job before any node
//! runs.
//!
//! Each node has its own directory with the files that it needs and no others. The directory may be a volume
//! that only this node mounts. The originals stay in a directory that no node sees:
//!
//! | directory | files |
//! |---|---|
//! | `authority` | `ca.pem`, `ca.key`, `cluster.secret`, `keys.secret`, `audit.secret`, `database.password`, `admin.password` |
//! | of a node | `ca.pem`, `node.pem`, `node.key`, `cluster.secret`, `database.url`; front, patient, billing: `audit.secret`; front, billing: `keys.secret` |
//! | `database` | `password`, for the server |
//! | `jobs` | `database.url`, `admin.password`, for what runs once |
//!
//! Invariants:
//! - Existing originals are kept, so the job may be repeated. A secret that somebody placed in `authority`
//!   beforehand is used, provided that the node or the server that is to use it would accept it.
//! - A file with a secret is created with permissions for its owner only.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::certs::{Authority, failed, write_new};
use super::failure::{Exit, Failure};
use super::settings::SettingArgs;
use crate::auth;
use crate::config::{Config, Role, line_of_secret};
use crate::domain::secret::{SECRET_BYTES_MIN, stray_ends, weakness};

/// Number of random bytes in a secret.
const RANDOM_BYTES: usize = 48;
/// Maximum length of a secret that is read from a file, in bytes.
const SECRET_BYTES_MAX: usize = 4096;

const CLUSTER_SECRET: &str = "cluster.secret";
const KEYS_SECRET: &str = "keys.secret";
const AUDIT_SECRET: &str = "audit.secret";
const DATABASE_PASSWORD: &str = "database.password";
const ADMIN_PASSWORD: &str = "admin.password";
const DATABASE_URL: &str = "database.url";

/// The arguments of `hygeia provision`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The parent directory of all directories; created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Also create a directory of this name for nodes that join, with a certificate for any name under
    /// cluster.tls.allowed_suffix
    #[arg(long, value_name = "NAME")]
    joining: Option<String>,
    /// The owner (user id) of the files for nodes and jobs; by default the user who runs the command
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,
    /// The owner (user id) of the password file for the database server; by default the user who runs the
    /// command
    #[arg(long, value_name = "UID")]
    database_owner: Option<u32>,
    /// The validity of the nodes' certificates, in days
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace the nodes' certificates by new ones of the same authority
    #[arg(long)]
    renew: bool,
    /// Print this secret of the `authority` directory, and create nothing
    #[arg(long, value_name = "FILE", value_parser = [ADMIN_PASSWORD, DATABASE_PASSWORD])]
    show: Option<String>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Creates the files, and prints the names of new ones.
pub(super) fn run(
    args: Args,
    environment: Vec<(OsString, OsString)>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let authority = args.out.join("authority");
    if let Some(name) = &args.show {
        return Ok(writeln!(out, "{}", read(&authority.join(name))?)?);
    }
    let config = args.settings.clone().load(environment)?.config;
    provision(&args, &config, out)
}

fn provision(args: &Args, config: &Config, out: &mut dyn Write) -> Result<(), Failure> {
    if config.cluster.nodes.is_empty() {
        return Err(Failure::new(Exit::Config, "cluster.nodes: a file that names nodes is needed: --config"));
    }
    let joining = joining(args, config)?;
    let authority = args.out.join("authority");
    directory(&authority)?;
    let signer = Authority::open_or_make(&authority, args.days, out)?;
    let mut kept = |name: &str, rule: Rule| read_or_make(&authority.join(name), rule, out);
    let cluster_secret = kept(CLUSTER_SECRET, of_secret)?;
    let keys_secret = kept(KEYS_SECRET, of_secret)?;
    let audit_secret = kept(AUDIT_SECRET, of_secret)?;
    let password = kept(DATABASE_PASSWORD, of_database_password)?;
    let admin_password = kept(ADMIN_PASSWORD, auth::validate_password)?;
    let ca_file = authority.join("ca.pem");
    let ca = std::fs::read_to_string(&ca_file).map_err(|e| failed(&ca_file, e))?;
    let url = with_password(&config.store.url, &password)?;

    let listed = config.cluster.nodes.iter().map(|node| {
        let has = |roles: &[Role]| roles.iter().any(|role| node.roles.contains(role));
        let needs = Needs {
            keys: has(&[Role::Front, Role::Billing]),
            audit: has(&[Role::Front, Role::Patient, Role::Billing]),
        };
        (node.name.as_str(), node.name.clone(), needs)
    });
    for (name, certified, needs) in listed.chain(joining) {
        let mut place = Place { directory: args.out.join(name), owner: args.owner, out: &mut *out };
        directory(&place.directory)?;
        place.keep("ca.pem", &ca, 0o444)?;
        place.keep(CLUSTER_SECRET, &cluster_secret, 0o400)?;
        place.keep(DATABASE_URL, &url, 0o400)?;
        if needs.keys {
            place.keep(KEYS_SECRET, &keys_secret, 0o400)?;
        }
        if needs.audit {
            place.keep(AUDIT_SECRET, &audit_secret, 0o400)?;
        }
        place.certify(&signer, &certified, args)?;
    }
    // The server's image reads the file as root, before it switches to the server's own user.
    let owner = args.database_owner;
    let mut database = Place { directory: args.out.join("database"), owner, out: &mut *out };
    directory(&database.directory)?;
    database.keep("password", &password, 0o400)?;
    let mut jobs = Place { directory: args.out.join("jobs"), owner: args.owner, out };
    directory(&jobs.directory)?;
    jobs.keep(DATABASE_URL, &url, 0o400)?;
    jobs.keep(ADMIN_PASSWORD, &admin_password, 0o400)
}

/// The secrets that a node's roles need in addition to those of every node.
struct Needs {
    /// Whether the node checks tokens.
    keys: bool,
    /// Whether the node records accesses.
    audit: bool,
}

/// Returns the directory of nodes that join, the name in their certificate, and their secrets. Such nodes
/// have the patient role.
fn joining<'a>(args: &'a Args, config: &Config) -> Result<Option<(&'a str, String, Needs)>, Failure> {
    let Some(name) = &args.joining else { return Ok(None) };
    let Some(suffix) = &config.cluster.tls.allowed_suffix else {
        let reason = "cluster.tls.allowed_suffix is not set, and names of nodes that join must end so";
        return Err(Failure::new(Exit::Config, reason));
    };
    // Verifiers accept no wildcard for a whole top-level domain (RFC 6125, section 7.2).
    if suffix.matches('.').count() < 2 {
        let reason = format!(
            "cluster.tls.allowed_suffix: {suffix:?} needs two labels for a certificate of any name under it"
        );
        return Err(Failure::new(Exit::Config, reason));
    }
    Ok(Some((name, format!("*{suffix}"), Needs { keys: false, audit: true })))
}

/// A directory of files for a node, the database server or the jobs.
struct Place<'a> {
    directory: PathBuf,
    owner: Option<u32>,
    out: &'a mut dyn Write,
}

impl Place<'_> {
    /// Writes the file, unless it has that text and no wider permissions. A file with another text is
    /// replaced, because it is only a copy.
    fn keep(&mut self, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
        let path = self.directory.join(name);
        let says_it = std::fs::read_to_string(&path).is_ok_and(|there| there.trim_end() == text.trim_end());
        let is_open =
            std::fs::metadata(&path).is_ok_and(|there| there.permissions().mode() & 0o777 & !mode != 0);
        if says_it && !is_open { Ok(()) } else { self.replace(&path, text, mode) }
    }

    /// Creates a certificate and its key, unless both exist and no renewal is requested.
    fn certify(&mut self, signer: &Authority, name: &str, args: &Args) -> Result<(), Failure> {
        let (certificate, key) = (self.directory.join("node.pem"), self.directory.join("node.key"));
        if certificate.exists() && key.exists() && !args.renew {
            return Ok(());
        }
        let (certificate_pem, key_pem) = signer.sign(name, args.days).map_err(|e| failed(&certificate, e))?;
        self.replace(&key, &key_pem, 0o400)?;
        self.replace(&certificate, &certificate_pem, 0o444)
    }

    /// Replaces the file atomically: a reader sees either the old file or the new one.
    fn replace(&mut self, path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
        let draft = path.with_extension(format!("{:016x}.tmp", fastrand::u64(..)));
        write_new(&draft, text, mode)?;
        let owned = self.owner.map_or(Ok(()), |owner| chown(&draft, Some(owner), None));
        owned.and_then(|()| std::fs::rename(&draft, path)).map_err(|e| {
            // The draft holds a secret, so it is removed. A failure to remove it adds nothing to the reported
            // error.
            let _ = std::fs::remove_file(&draft);
            failed(path, e)
        })?;
        Ok(writeln!(self.out, "{}", path.display())?)
    }
}

fn directory(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|e| failed(path, e))
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| failed(path, e))?;
    match line_of_secret(&text).map_err(|reason| failed(path, reason))? {
        line if line.len() > SECRET_BYTES_MAX => Err(failed(path, "it is too long for a secret")),
        line => Ok(line.to_owned()),
    }
}

/// A rule that a secret must satisfy.
type Rule = fn(&str) -> Result<(), &'static str>;

fn of_secret(text: &str) -> Result<(), &'static str> {
    match text.len() {
        0..SECRET_BYTES_MIN => Err("at least 32 bytes are needed; `openssl rand -base64 48` makes some"),
        _ => stray_ends(text).or_else(|| weakness(text)).map_or(Ok(()), Err),
    }
}

fn of_database_password(text: &str) -> Result<(), &'static str> {
    match stray_ends(text) {
        Some(reason) => Err(reason),
        None if text.contains('\0') => Err("it holds a NUL, which ends a password of PostgreSQL"),
        None => Ok(()),
    }
}

fn read_or_make(path: &Path, rule: Rule, out: &mut dyn Write) -> Result<String, Failure> {
    if !path.exists() {
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(|e| failed(path, e))?;
        write_new(path, &URL_SAFE_NO_PAD.encode(random), 0o600)?;
        writeln!(out, "{}", path.display())?;
    }
    let text = read(path)?;
    rule(&text).map_err(|reason| failed(path, reason))?;
    Ok(text)
}

/// Inserts the password after the user's name in `url`, percent-encoded (RFC 3986, section 2.1).
fn with_password(url: &str, password: &str) -> Result<String, Failure> {
    let refused = |reason: &str| Err(Failure::new(Exit::Config, format!("store.url: {reason}")));
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| scheme.starts_with("postgres"))
    else {
        return refused("expected postgres://user@host:port/database, to put the password in");
    };
    match rest.split_once('@') {
        Some((user, host)) if !user.contains(':') => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            let encoded = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
            let password: String = password.bytes().map(encoded).collect();
            Ok(format!("{scheme}://{user}:{password}@{host}"))
        }
        Some(_) => refused("it has a password already, and the one of `authority` is to be used"),
        None => refused("it names no user, to whom the password belongs"),
    }
}

#[cfg(test)]
mod tests;
