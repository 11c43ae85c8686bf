//! What every client of librdkafka tells us: its log lines, and whether the broker is there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Error, Link};

/// What was last heard of the broker, by any client. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct LinkState {
    away: Arc<Mutex<Option<String>>>,
}

impl LinkState {
    /// The broker answered.
    pub(super) fn up(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The broker cannot be reached.
    pub(super) fn away(&self, reason: String) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// What was last heard.
    pub(super) fn get(&self) -> Link {
        match &*self.away.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Link::Up,
            Some(reason) => Link::Away(reason.clone()),
        }
    }
}

/// The ear of one client.
pub(super) struct ClientEvents {
    role: &'static str,
    link: LinkState,
}

impl ClientEvents {
    /// The ear of the client that plays `role`.
    pub(super) fn new(role: &'static str, link: LinkState) -> Self {
        ClientEvents { role, link }
    }

    /// What was heard.
    pub(super) fn link(&self) -> &LinkState {
        &self.link
    }
}

impl ClientContext for ClientEvents {
    /// librdkafka names brokers, topics and partitions in its lines, never what a message holds, as long
    /// as its `debug` property is off.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        let role = self.role;
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "hygeia::kafka", role, fac, "{log_message}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "hygeia::kafka", role, fac, "{log_message}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "hygeia::kafka", role, fac, "{log_message}");
            }
            RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "hygeia::kafka", role, fac, "{log_message}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.link.away(reason.to_owned());
        }
        tracing::debug!(target: "hygeia::kafka", role = self.role, %error, "{reason}");
    }
}

/// The error of making a client. A bad property is named without its value, which may be a secret.
pub(super) fn making(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => Error::Settings(format!("librdkafka refuses {name}")),
        other => Error::Settings(other.to_string()),
    }
}

/// When a question has to be answered.
#[derive(Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// After `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        Deadline(Instant::now() + limit)
    }

    /// Whether nothing is left.
    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// What is left: never zero, which librdkafka takes for "do not even try".
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}
