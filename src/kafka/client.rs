//! The callbacks shared by all librdkafka clients: log lines, and whether the broker can be reached.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Error, Link};

/// The last known state of the connection, as seen by any client. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LinkState {
    away: Arc<Mutex<Option<String>>>,
}

impl LinkState {
    /// Records that the broker answered.
    pub(super) fn up(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records that the broker cannot be reached.
    pub(super) fn away(&self, reason: String) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Returns the last known state.
    pub(super) fn get(&self) -> Link {
        match &*self.away.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Link::Up,
            Some(reason) => Link::Away(reason.clone()),
        }
    }
}

/// The callbacks of one client.
pub(super) struct ClientEvents {
    role: &'static str,
    link: LinkState,
}

impl ClientEvents {
    /// Returns the callbacks of the client named `role` in log lines.
    pub(super) fn new(role: &'static str, link: LinkState) -> Self {
        ClientEvents { role, link }
    }

    /// Returns the shared connection state.
    pub(super) fn link(&self) -> &LinkState {
        &self.link
    }
}

impl ClientContext for ClientEvents {
    /// Logs a line of librdkafka. The lines name brokers, topics and partitions, but no message content as
    /// long as librdkafka's `debug` property is off.
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

/// Converts an error from the creation of a client. A rejected property is named without its value, which may
/// be a secret.
pub(super) fn making(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => Error::Settings(format!("librdkafka refuses {name}")),
        other => Error::Settings(other.to_string()),
    }
}

/// The deadline of a blocking request.
#[derive(Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// Returns the deadline `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        Deadline(Instant::now() + limit)
    }

    /// Returns whether the deadline has passed.
    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// Returns the remaining time: at least 1 ms, because librdkafka does not try at all with zero.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}
