//! The settings of the broker and the clients, and the librdkafka configuration derived from them.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use super::{Error, Result};

/// The value of `Settings::brokers` that selects the broker inside the process.
pub const EMBEDDED: &str = "embedded";

/// The longest wait of a fetch at the embedded broker. That broker does not wake a waiting fetch when a
/// message arrives, so this wait adds to the delay until an event is counted.
const EMBEDDED_FETCH_WAIT_MS: u64 = 40;

/// The range of `Settings::embedded_unread_max_bytes`. The minimum fits a few batches. The maximum leaves
/// room for what the gate underestimates, because the embedded broker drops messages at 5 MiB.
const EMBEDDED_UNREAD_LEAST: u64 = 1 << 20;
const EMBEDDED_UNREAD_MOST: u64 = 4 << 20;

/// The settings of the broker and of its clients.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `embedded`, or `host:port`, comma-separated if several.
    pub brokers: String,
    /// The client id sent to the broker.
    pub client_id: String,
    /// The topic of patient events.
    pub topic: String,
    /// The topic for messages that analytics cannot read.
    pub dead_letter_topic: String,
    /// The consumer group of analytics.
    pub group: String,
    /// The number of partitions of a topic that is created. It must not change later, because the order per
    /// patient depends on it.
    pub partitions: i32,
    /// Whether missing topics are created at an external broker.
    pub create_topics: bool,
    /// The most messages queued for the broker; then publishing waits.
    pub queue_max_messages: u32,
    /// The most bytes of messages queued for the broker; then publishing waits.
    pub queue_max_bytes: u64,
    /// How long a message waits to be batched with others, in milliseconds.
    pub linger_ms: u64,
    /// The time limit for the delivery of a message, retries included, in milliseconds.
    pub delivery_timeout_ms: u64,
    /// The time limit of one request to the broker, in milliseconds.
    pub request_timeout_ms: u64,
    /// The time limit of a metadata request, in milliseconds.
    pub metadata_timeout_ms: u64,
    /// The longest pause before a reconnect, in milliseconds.
    pub reconnect_max_ms: u64,
    /// How long the group waits for a heartbeat before it reassigns our partitions, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long the handling of a batch may take before the group reassigns our partitions, in milliseconds.
    pub poll_interval_max_ms: u64,
    /// How long a fetch waits for messages, in milliseconds. At most 40 with the embedded broker.
    pub fetch_wait_ms: u64,
    /// The most bytes that are read ahead.
    pub fetch_queue_max_bytes: u64,
    /// The most messages in one batch read.
    pub batch_max_messages: usize,
    /// The most bytes in one batch read; the last message may exceed it.
    pub batch_max_bytes: usize,
    /// The longest time to collect a batch while messages keep arriving, in milliseconds.
    pub batch_wait_ms: u64,
    /// The most unread bytes per partition of the embedded broker, which drops its oldest messages at 5 MiB.
    /// At this limit publishing waits for the consumer. 1 MiB to 4 MiB; zero: publishing never waits for the
    /// consumer.
    pub embedded_unread_max_bytes: u64,
    /// The protocol to the broker. Anything but plaintext needs the feature `kafka-tls`.
    pub security_protocol: SecurityProtocol,
    /// The SASL mechanism: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub sasl_mechanism: Option<String>,
    /// The SASL user.
    pub sasl_username: Option<String>,
    /// The SASL password.
    pub sasl_password: Option<Secret>,
    /// A file that contains the SASL password, instead of `sasl_password`.
    pub sasl_password_file: Option<String>,
    /// A file with the certificates (PEM) of the trusted authorities. Default: those of the system.
    pub ca_file: Option<String>,
    /// Further librdkafka properties, by librdkafka's names. They override all other settings.
    pub properties: Properties,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            brokers: EMBEDDED.into(),
            client_id: "hygeia".into(),
            topic: "patient".into(),
            dead_letter_topic: "patient.dlq".into(),
            group: "analytics-service".into(),
            partitions: 4,
            create_topics: true,
            queue_max_messages: 20_000,
            queue_max_bytes: 16 * 1024 * 1024,
            linger_ms: 1,
            delivery_timeout_ms: 30_000,
            request_timeout_ms: 10_000,
            metadata_timeout_ms: 5_000,
            reconnect_max_ms: 1_000,
            session_timeout_ms: 10_000,
            poll_interval_max_ms: 60_000,
            fetch_wait_ms: 500,
            fetch_queue_max_bytes: 4 * 1024 * 1024,
            batch_max_messages: 2_000,
            batch_max_bytes: 1024 * 1024,
            batch_wait_ms: 20,
            embedded_unread_max_bytes: 3 * 1024 * 1024,
            security_protocol: SecurityProtocol::Plaintext,
            sasl_mechanism: None,
            sasl_username: None,
            sasl_password: None,
            sasl_password_file: None,
            ca_file: None,
            properties: Properties::default(),
        }
    }
}

/// The protocol to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// No encryption and no login: only for trusted networks.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// A SASL login without encryption.
    SaslPlaintext,
    /// A SASL login over TLS.
    SaslSsl,
}

impl SecurityProtocol {
    const fn as_str(self) -> &'static str {
        match self {
            SecurityProtocol::Plaintext => "plaintext",
            SecurityProtocol::Ssl => "ssl",
            SecurityProtocol::SaslPlaintext => "sasl_plaintext",
            SecurityProtocol::SaslSsl => "sasl_ssl",
        }
    }
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// librdkafka properties. Only the names are printed, because a value may be a secret.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Settings {
    /// Returns whether the broker runs inside the process.
    pub fn is_embedded(&self) -> bool {
        self.brokers == EMBEDDED
    }

    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let checks = [
            (
                "brokers",
                !self.brokers.trim().is_empty(),
                "`embedded`, or host:port with commas between several",
            ),
            ("topic", !self.topic.is_empty(), "a name"),
            ("dead_letter_topic", !self.dead_letter_topic.is_empty(), "a name"),
            ("dead_letter_topic", self.dead_letter_topic != self.topic, "another name than topic has"),
            ("group", !self.group.is_empty(), "a name"),
            ("partitions", (1..=1_000).contains(&self.partitions), "1 to 1000"),
            ("queue_max_messages", self.queue_max_messages >= 1, "at least 1"),
            ("queue_max_bytes", self.queue_max_bytes >= 1024 * 1024, "at least 1048576"),
            ("batch_max_messages", self.batch_max_messages >= 1, "at least 1"),
            ("batch_max_bytes", self.batch_max_bytes >= 1, "at least 1"),
            (
                "embedded_unread_max_bytes",
                matches!(self.embedded_unread_max_bytes, 0 | EMBEDDED_UNREAD_LEAST..=EMBEDDED_UNREAD_MOST),
                "1048576 to 4194304, or 0 for no bound",
            ),
            (
                "delivery_timeout_ms",
                self.delivery_timeout_ms >= self.linger_ms.max(1),
                "at least 1, and at least linger_ms",
            ),
            (
                "security_protocol",
                self.security_protocol == SecurityProtocol::Plaintext || cfg!(feature = "kafka-tls"),
                "plaintext; the others need the feature kafka-tls",
            ),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        let broken = broken.map(|(key, _, allowed)| (key, allowed.to_owned()));
        broken.chain(self.out_of_range()).collect()
    }

    /// Returns numbers outside the range that librdkafka or this program accepts.
    fn out_of_range(&self) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("linger_ms", self.linger_ms, 0, 900_000),
            ("request_timeout_ms", self.request_timeout_ms, 10, 300_000),
            ("metadata_timeout_ms", self.metadata_timeout_ms, 1, 600_000),
            ("reconnect_max_ms", self.reconnect_max_ms, 0, 3_600_000),
            ("session_timeout_ms", self.session_timeout_ms, 1, 3_600_000),
            ("poll_interval_max_ms", self.poll_interval_max_ms, 1, 86_400_000),
            ("fetch_wait_ms", self.fetch_wait_ms, 0, 300_000),
            ("fetch_queue_max_bytes", self.fetch_queue_max_bytes, 1_024, 2_000_000_000),
            ("batch_wait_ms", self.batch_wait_ms, 0, 60_000),
        ]
        .into_iter()
        .filter(|(_, value, least, most)| !(least..=most).contains(&value))
        .map(|(key, _, least, most)| (key, format!("{least} to {most}")))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// `Settings`: the first setting that is not allowed.
    pub fn validate(&self) -> Result<()> {
        match self.problems().into_iter().next() {
            Some((key, allowed)) => Err(Error::Settings(format!("{key}: allowed is {allowed}"))),
            None => Ok(()),
        }
    }

    /// Returns the configuration of a client that neither produces nor consumes.
    pub(super) fn control_config(&self, bootstrap: &str) -> Result<ClientConfig> {
        let mut config = self.common_config(bootstrap)?;
        self.own_properties(&mut config);
        Ok(config)
    }

    fn common_config(&self, bootstrap: &str) -> Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("client.id", &self.client_id)
            .set("socket.timeout.ms", self.request_timeout_ms.to_string())
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", self.reconnect_max_ms.min(100).to_string())
            .set("reconnect.backoff.max.ms", self.reconnect_max_ms.to_string())
            .set("log.connection.close", "false")
            .set("statistics.interval.ms", "0")
            .set_log_level(RDKafkaLogLevel::Notice);
        if self.security_protocol != SecurityProtocol::Plaintext {
            self.secure(&mut config)?;
        }
        Ok(config)
    }

    /// Returns the configuration of the producer.
    pub(super) fn producer_config(&self, bootstrap: &str) -> Result<ClientConfig> {
        let mut config = self.common_config(bootstrap)?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("max.in.flight.requests.per.connection", "5")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", self.linger_ms.to_string())
            .set("queue.buffering.max.messages", self.queue_max_messages.to_string())
            .set("queue.buffering.max.kbytes", (self.queue_max_bytes / 1024).to_string())
            .set("message.timeout.ms", self.delivery_timeout_ms.to_string())
            .set("request.timeout.ms", self.request_timeout_ms.min(self.delivery_timeout_ms).to_string());
        self.own_properties(&mut config);
        Ok(config)
    }

    /// Returns the configuration of a consumer.
    pub(super) fn consumer_config(&self, bootstrap: &str) -> Result<ClientConfig> {
        let fetch_wait_ms = if self.is_embedded() {
            self.fetch_wait_ms.min(EMBEDDED_FETCH_WAIT_MS)
        } else {
            self.fetch_wait_ms
        };
        let mut config = self.common_config(bootstrap)?;
        config
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "range,roundrobin")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", (self.session_timeout_ms / 3).max(1).to_string())
            .set("max.poll.interval.ms", self.poll_interval_max_ms.max(self.session_timeout_ms).to_string())
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set("fetch.wait.max.ms", fetch_wait_ms.to_string())
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.message.max.bytes", (1024 * 1024).to_string())
            .set("fetch.max.bytes", self.fetch_queue_max_bytes.max(1024 * 1024).to_string())
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", (self.fetch_queue_max_bytes / 1024).max(1).to_string());
        self.own_properties(&mut config);
        Ok(config)
    }

    /// Returns the configuration of a consumer that reads single messages and joins no group.
    pub(super) fn look_config(&self, bootstrap: &str) -> Result<ClientConfig> {
        let mut config = self.common_config(bootstrap)?;
        config
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .set("queued.min.messages", "1")
            .set("queued.max.messages.kbytes", "1024");
        self.own_properties(&mut config);
        Ok(config)
    }

    fn secure(&self, config: &mut ClientConfig) -> Result<()> {
        config.set("security.protocol", self.security_protocol.as_str());
        let password = match (&self.sasl_password, &self.sasl_password_file) {
            (Some(password), _) => Some(password.0.clone()),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Error::Settings(format!("sasl_password_file {path}: {e}")))?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (None, None) => None,
        };
        let named = [
            ("sasl.mechanism", self.sasl_mechanism.clone()),
            ("sasl.username", self.sasl_username.clone()),
            ("sasl.password", password),
            ("ssl.ca.location", self.ca_file.clone()),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                config.set(name, value);
            }
        }
        Ok(())
    }

    fn own_properties(&self, config: &mut ClientConfig) {
        for (name, value) in &self.properties.0 {
            config.set(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_bad_settings_are_named() {
        Settings::default().validate().expect("defaults");
        type Edit = fn(&mut Settings);
        let edits: [(&str, Edit); 6] = [
            ("brokers", |s| s.brokers = " ".into()),
            ("group", |s| s.group = String::new()),
            ("dead_letter_topic", |s| s.dead_letter_topic = s.topic.clone()),
            ("partitions", |s| s.partitions = 0),
            ("batch_max_messages", |s| s.batch_max_messages = 0),
            ("delivery_timeout_ms", |s| s.delivery_timeout_ms = 0),
        ];
        for (named, edit) in edits {
            let mut settings = Settings::default();
            edit(&mut settings);
            let error = settings.validate().expect_err(named).to_string();
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }

    /// A consumer whose position is no longer in the log continues with the oldest remaining message and
    /// skips none.
    #[test]
    fn a_reader_whose_place_is_gone_begins_with_the_oldest_message() {
        let config = Settings::default().consumer_config("127.0.0.1:1").expect("a configuration");
        assert_eq!(config.get("auto.offset.reset"), Some("earliest"));
    }

    #[test]
    fn the_bound_of_what_is_unread_stays_below_what_the_embedded_broker_holds() {
        let with = |embedded_unread_max_bytes| Settings { embedded_unread_max_bytes, ..Settings::default() };
        for allowed in [0, 1 << 20, 4 << 20] {
            with(allowed).validate().expect("allowed");
        }
        for refused in [1, (1 << 20) - 1, (4 << 20) + 1, u64::MAX] {
            let said = with(refused).validate().expect_err("refused").to_string();
            assert!(said.contains("embedded_unread_max_bytes"), "{said}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = Settings {
            sasl_password: Some(Secret("canary-1".into())),
            properties: Properties([("ssl.key.password".to_owned(), "canary-2".to_owned())].into()),
            ..Settings::default()
        };
        let printed = format!("{settings:?}");
        assert!(!printed.contains("canary") && printed.contains("ssl.key.password"), "{printed}");
    }

    #[test]
    fn own_properties_win() {
        let settings = Settings {
            properties: Properties([("linger.ms".to_owned(), "7".to_owned())].into()),
            ..Settings::default()
        };
        let config = settings.producer_config("127.0.0.1:1").expect("config");
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get("enable.idempotence"), Some("true"));
    }

    #[cfg(not(feature = "kafka-tls"))]
    #[test]
    fn security_without_tls_is_refused() {
        let settings = Settings { security_protocol: SecurityProtocol::SaslSsl, ..Settings::default() };
        assert!(settings.validate().expect_err("no tls").to_string().contains("kafka-tls"));
    }
}
