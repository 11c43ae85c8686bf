//! Calls of the commands into the other rooms. No other file of `cli` makes them.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::failure::{Exit, Failure};
use crate::actors::status::ClusterStatus;
use crate::clock::SystemClock;
use crate::config::{self, Config};
use crate::domain::access::Role;
use crate::domain::time::{Clock, Timestamp};
use crate::{audit, auth, http, kafka, store};

/// How long the queries for the cluster's status may take.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// The operations of the `user` commands.
#[async_trait]
pub(super) trait Users: Send + Sync {
    /// Creates a user.
    async fn add(&self, email: &str, password: &str, role: Role) -> Result<(), Failure>;
    /// Sets a user's password.
    async fn set_password(&self, email: &str, password: &str) -> Result<(), Failure>;
    /// Disables or enables a user.
    async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), Failure>;
    /// Returns users in the order of e-mail addresses, starting behind `after`, at most `limit_rows`.
    async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<auth::User>, Failure>;
}

#[async_trait]
impl Users for auth::Users {
    async fn add(&self, email: &str, password: &str, role: Role) -> Result<(), Failure> {
        self.create(email, password, role, auth::By::Operator).await?;
        Ok(())
    }

    async fn set_password(&self, email: &str, password: &str) -> Result<(), Failure> {
        Ok(auth::Users::set_password(self, email, password).await?)
    }

    async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), Failure> {
        Ok(auth::Users::set_disabled(self, email, disabled).await?)
    }

    async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<auth::User>, Failure> {
        Ok(auth::Users::list(self, after, limit_rows).await?)
    }
}

/// Opens the database for the `user` commands.
pub(super) async fn open_users(config: &Config) -> Result<Box<dyn Users>, Failure> {
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    Ok(Box::new(auth::Users::new(&config.auth, store, Arc::new(SystemClock))))
}

/// The operations of the `keys` commands.
#[async_trait]
pub(super) trait Keys: Send + Sync {
    /// Creates the next key.
    async fn rotate(&self, revoke: bool) -> Result<auth::MadeKey, Failure>;
    /// Returns the keys, youngest first.
    async fn list(&self) -> Result<Vec<auth::KeyFacts>, Failure>;
}

#[async_trait]
impl Keys for auth::KeyAdmin {
    async fn rotate(&self, revoke: bool) -> Result<auth::MadeKey, Failure> {
        Ok(auth::KeyAdmin::rotate(self, revoke).await?)
    }

    async fn list(&self) -> Result<Vec<auth::KeyFacts>, Failure> {
        Ok(auth::KeyAdmin::list(self).await?)
    }
}

/// Opens the database for the `keys` commands.
pub(super) async fn open_keys(config: &Config) -> Result<Box<dyn Keys>, Failure> {
    if config.auth.token_algorithm != auth::TokenAlgorithm::EdDSA {
        let message = "auth.token_algorithm is HS256: there are no keys to rotate but auth.jwt_secret";
        return Err(Failure::new(Exit::Config, message));
    }
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    let keys = auth::KeyAdmin::new(&config.auth, store, Arc::new(SystemClock));
    Ok(Box::new(keys.map_err(|error| Failure::new(Exit::Config, error.to_string()))?))
}

/// Returns the secrets of the access audit: the present one, and those in the files `older`.
fn audit_keys(config: &Config, older: &[PathBuf]) -> Result<audit::Keys, Failure> {
    let mut config = config.clone();
    config.ensure_secrets()?;
    let no_secret = || Failure::new(Exit::Config, "audit.secret: not set; set HYGEIA__AUDIT__SECRET");
    let keys = config.audit.keys().ok_or_else(no_secret)?;
    let read = |path: &PathBuf| {
        let failed = |reason: String| Failure::new(Exit::Failed, format!("{}: {reason}", path.display()));
        let content = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        // The same rule as for the file of the present secret.
        let secret = config::line_of_secret(&content).map_err(|reason| failed(reason.to_owned()))?;
        Ok(audit::Key::of(secret.as_bytes()))
    };
    Ok(keys.with_older(older.iter().map(read).collect::<Result<Vec<_>, Failure>>()?))
}

/// Verifies the access audit and the archives at `paths`. Returns the report and a summary of each archive.
pub(super) async fn verify_audit(
    config: &Config,
    older_secrets: &[PathBuf],
    paths: &[PathBuf],
) -> Result<(audit::Report, Vec<audit::Archive>), Failure> {
    let keys = audit_keys(config, older_secrets)?;
    let read = |path: &PathBuf| {
        let file = File::open(path).map_err(audit::ArchiveError::from);
        let read =
            file.and_then(|file| audit::read_archive(BufReader::new(file), Some(&keys), |_, _| Ok(())));
        read.map_err(|error| failure_of(&error, path))
    };
    let archives = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    let report = audit::verify(&*store, &keys, &archives).await?;
    store.close().await;
    Ok((report, archives))
}

/// Moves the rows of the access audit before `before` into a new file at `path`.
pub(super) async fn archive_audit(
    config: &Config,
    older_secrets: &[PathBuf],
    before: Timestamp,
    path: &Path,
) -> Result<audit::Archive, Failure> {
    let keys = audit_keys(config, older_secrets)?;
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let writer = format!("{}#{}/archive", config.node.name, Uuid::now_v7());
    let chains = audit::Chains::new(
        keys.present().clone(),
        writer,
        Arc::clone(&store) as _,
        Arc::clone(&clock),
        config.audit.pins_every(),
        audit::Growth::default(),
    );
    let archiver = audit::Archiver { store: Arc::clone(&store), keys, clock, chains };
    let archived = archiver.archive(before, path).await;
    store.close().await;
    archived.map_err(|error| failure_of(&error, path))
}

fn failure_of(error: &audit::ArchiveError, path: &Path) -> Failure {
    match error {
        audit::ArchiveError::Store(error) => error.clone().into(),
        audit::ArchiveError::Refused(text) => Failure::new(Exit::Failed, text.clone()),
        error => Failure::new(Exit::Failed, format!("{}: {error}", path.display())),
    }
}

/// Migrates the schema. Creates the first administrator if the settings name one and there is no user.
/// Returns whether the administrator was created.
pub(super) async fn migrate(config: &Config) -> Result<bool, Failure> {
    let settings = config.store.clone().within(&config.data_dir);
    store::migrate(&settings).await?;
    if config.auth.first_admin_email.is_none() {
        return Ok(false);
    }
    let store = store::open(&settings, store::Use::Tool).await?;
    let users = auth::Users::new(&config.auth, Arc::clone(&store) as _, Arc::new(SystemClock));
    let made = auth::make_first_admin(&config.auth, &users).await;
    store.close().await;
    Ok(made? == auth::FirstAdmin::Made)
}

/// The pause between two attempts to reach the broker.
const BROKER_PAUSE: Duration = Duration::from_secs(1);

/// Creates the topics once the broker is available. Waits for it at most `patience`. Returns a list of the
/// topics and their numbers of partitions.
pub(super) async fn make_topics(config: &Config, patience: Duration) -> Result<String, Failure> {
    let deadline = tokio::time::Instant::now() + patience;
    let broker = kafka::Kafka::connect(&config.kafka)?;
    loop {
        match broker.ensure_topics().await {
            Ok(topics) => {
                let said = topics.iter().map(|(topic, count)| format!("{topic}: {count} partitions"));
                return Ok(said.collect::<Vec<_>>().join("\n"));
            }
            Err(kafka::Error::Away(_)) if tokio::time::Instant::now() + BROKER_PAUSE < deadline => {
                tokio::time::sleep(BROKER_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Adds to `status` what the database knows of the cluster.
pub(super) async fn ask_status(config: &Config, status: &mut ClusterStatus) -> Result<(), Failure> {
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    status.ask_database(&*store, SystemClock.now(), STATUS_LIMIT).await;
    store.close().await;
    Ok(())
}

/// Returns the OpenAPI document as JSON.
pub(super) fn openapi() -> String {
    http::openapi()
}
