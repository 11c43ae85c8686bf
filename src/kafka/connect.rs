//! `Kafka`: the connection of this process to the broker, and the broker itself if it is embedded.
//!
//! The embedded broker is librdkafka's mock cluster. It lives as long as the control client that created it.
//! That client is kept here and not in an actor, so that a restarted actor finds the same broker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use super::client::{ClientEvents, Deadline, LinkState, making};
use super::consumer::KafkaConsumer;
use super::gate::Gate;
use super::look;
use super::producer::{KafkaPublisher, ProducerEvents};
use super::{Broker, Consumer, Error, Link, Names, Publisher, Result, Settings};
use crate::domain::topic_log::{self, LogAnchor, MessageSight, PartitionSight};

/// How long the control client polls for pending log lines and errors.
const DRAIN: Duration = Duration::from_millis(1);

type Control = BaseProducer<ProducerEvents>;

/// The broker. Cloning is cheap; clones share the connection.
#[derive(Clone)]
pub struct Kafka {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    names: Names,
    bootstrap: String,
    link: LinkState,
    gate: Option<Arc<Gate>>,
    publisher: Arc<KafkaPublisher>,
    cluster_id: OnceCell<String>,
    /// One token per consumer of this process, held until the consumer has left the group.
    members: TaskTracker,
    /// Sends metadata requests, one at a time. It owns the embedded broker, so it must be the last field.
    control: Arc<Mutex<Control>>,
}

impl Kafka {
    /// Starts the embedded broker, or prepares the connection to the configured brokers without contacting
    /// them. Returns within milliseconds.
    ///
    /// # Errors
    /// `Settings`: a setting is not allowed, or librdkafka rejects it.
    pub fn connect(settings: &Settings) -> Result<Kafka> {
        settings.validate()?;
        let link = LinkState::default();
        let control = control(settings, &link)?;
        let bootstrap = match control.client().mock_cluster() {
            None => settings.brokers.clone(),
            Some(broker) => {
                for topic in [&settings.topic, &settings.dead_letter_topic] {
                    broker.create_topic(topic, settings.partitions, 1).map_err(|e| making(&e))?;
                }
                broker.bootstrap_servers()
            }
        };
        let names = Names {
            topic: settings.topic.as_str().into(),
            dead_letter_topic: settings.dead_letter_topic.as_str().into(),
            group: settings.group.as_str().into(),
        };
        let gate = (settings.is_embedded() && settings.embedded_unread_max_bytes > 0)
            .then(|| Arc::new(Gate::new(settings.embedded_unread_max_bytes)));
        let producer_config = settings.producer_config(&bootstrap)?;
        let watched = gate.clone().map(|gate| (Arc::clone(&names.topic), gate));
        let publisher = Arc::new(KafkaPublisher::new(settings, producer_config, link.clone(), watched)?);
        // Consumers are created later; check now whether librdkafka accepts their settings.
        settings.consumer_config(&bootstrap)?.create_native_config().map_err(|e| making(&e))?;
        let cluster_id = OnceCell::new();
        if settings.is_embedded() {
            cluster_id.set(format!("embedded-{}", uuid::Uuid::now_v7())).unwrap_or_default();
        }
        let settings = settings.clone();
        let control = Arc::new(Mutex::new(control));
        let members = TaskTracker::new();
        let inner = Inner { settings, names, bootstrap, link, gate, publisher, cluster_id, members, control };
        Ok(Kafka { inner: Arc::new(inner) })
    }

    /// Returns the address of the broker: `host:port`, comma-separated if several.
    pub fn bootstrap_servers(&self) -> &str {
        &self.inner.bootstrap
    }

    /// Waits until every consumer has left its group, including consumers that still run. After that, the
    /// broker assigns the partitions to others at once instead of after `session_timeout_ms`.
    pub async fn left(&self) {
        self.inner.members.close();
        self.inner.members.wait().await;
    }

    /// Runs a blocking request to the cluster on a blocking thread, and records whether the broker answered.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let control = Arc::clone(&self.inner.control);
        let link = self.inner.link.clone();
        let deadline = Deadline::after(Duration::from_millis(self.inner.settings.metadata_timeout_ms));
        let asked = tokio::task::spawn_blocking(move || {
            let control = control.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = question(&control, deadline);
            control.poll(DRAIN);
            match &answer {
                Ok(_) => link.up(),
                Err(Error::Away(reason)) => link.away(reason.clone()),
                Err(_) => {}
            }
            answer
        });
        asked.await.unwrap_or_else(|_| Err(Error::Away("the question was not asked".into())))
    }

    /// Creates missing topics at an external broker, and returns the number of partitions of each. An
    /// existing topic may have another number than the settings say.
    ///
    /// # Errors
    /// `Away`: the broker cannot be reached, or it refused. `Settings`: librdkafka rejects the settings.
    pub async fn ensure_topics(&self) -> Result<Vec<(String, usize)>> {
        let refused = self.create_topics().await?;
        if let Some((topic, code)) = refused.into_iter().next() {
            return Err(Error::Away(format!("the topic {topic} was not made: {code}")));
        }
        let settings = &self.inner.settings;
        let topics = [settings.topic.clone(), settings.dead_letter_topic.clone()];
        self.ask(move |control, deadline| {
            let count = |topic: String| {
                let metadata =
                    control.client().fetch_metadata(Some(&topic), deadline.left()).map_err(|e| away(&e))?;
                match metadata.topics().iter().map(|topic| topic.partitions().len()).sum() {
                    0 => Err(Error::Away(format!("the topic {topic} is not there yet"))),
                    partitions => Ok((topic, partitions)),
                }
            };
            topics.into_iter().map(count).collect()
        })
        .await
    }

    /// Creates the topics. Returns the topics that were refused, with the reason. An existing topic is not an
    /// error.
    async fn create_topics(&self) -> Result<Vec<(String, RDKafkaErrorCode)>> {
        let settings = &self.inner.settings;
        let admin = self.admin()?;
        let topics = [&settings.topic, &settings.dead_letter_topic]
            .map(|t| NewTopic::new(t, settings.partitions, TopicReplication::Fixed(-1)));
        let results = admin.create_topics(&topics, &self.admin_options()).await;
        // Dropping the client waits for a thread.
        tokio::task::spawn_blocking(move || drop(admin));
        let refused = results.map_err(|e| away(&e))?.into_iter().filter_map(std::result::Result::err);
        Ok(refused.filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists).collect())
    }

    fn admin(&self) -> Result<AdminClient<ClientEvents>> {
        let config = self.inner.settings.control_config(&self.inner.bootstrap)?;
        config
            .create_with_context(ClientEvents::new("admin", self.inner.link.clone()))
            .map_err(|e| making(&e))
    }

    fn admin_options(&self) -> AdminOptions {
        let limit = Duration::from_millis(self.inner.settings.metadata_timeout_ms);
        AdminOptions::new().request_timeout(Some(limit))
    }

    /// Creates missing topics. A failure is only logged: where the broker refuses, somebody else may create
    /// the topics.
    async fn make_topics(&self) {
        match self.create_topics().await {
            Ok(refused) => {
                for (topic, code) in refused {
                    tracing::warn!(target: "hygeia::kafka", topic, %code, "the topic was not made");
                }
            }
            Err(error) => tracing::warn!(target: "hygeia::kafka", %error, "no topic was made"),
        }
    }

    async fn ask_cluster_id(&self) -> Result<String> {
        let id = self.ask(|control, deadline| {
            let id = control.client().fetch_cluster_id(deadline.left());
            id.filter(|id| !id.is_empty())
                .ok_or_else(|| Error::Away("it does not tell its cluster id".into()))
        });
        let id = id.await?;
        if self.inner.settings.create_topics {
            self.make_topics().await;
        }
        Ok(id)
    }

    /// Returns the offsets that each partition of the topic holds; empty if there is no topic.
    async fn sights(&self) -> Result<Vec<PartitionSight>> {
        let topic = Arc::clone(&self.inner.names.topic);
        self.ask(move |control, deadline| {
            let client = control.client();
            let metadata = client.fetch_metadata(Some(&topic), deadline.left()).map_err(|e| away(&e))?;
            let partitions = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id());
            partitions
                .map(|partition| {
                    let (low, high) =
                        client.fetch_watermarks(&topic, partition, deadline.left()).map_err(|e| away(&e))?;
                    Ok(PartitionSight { partition, low, high })
                })
                .collect()
        })
        .await
    }

    /// Returns the messages at these anchors.
    async fn look_at(&self, anchors: Vec<LogAnchor>) -> Result<Vec<MessageSight>> {
        let inner = &self.inner;
        let config = inner.settings.look_config(&inner.bootstrap)?;
        let events = ClientEvents::new("looker", inner.link.clone());
        let topic = Arc::clone(&inner.names.topic);
        let deadline = Deadline::after(Duration::from_millis(inner.settings.metadata_timeout_ms));
        let looked =
            tokio::task::spawn_blocking(move || look::at(&config, events, &topic, &anchors, deadline));
        looked.await.unwrap_or_else(|_| Err(Error::Away("the messages were not looked at".into())))
    }

    /// Gives tests access to the control client of the embedded broker, to inject faults.
    #[cfg(test)]
    pub(super) fn with_control<T>(&self, f: impl FnOnce(&Control) -> T) -> T {
        f(&self.inner.control.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn control(settings: &Settings, link: &LinkState) -> Result<Control> {
    let mut config = settings.control_config(&settings.brokers)?;
    if settings.is_embedded() {
        config.remove("bootstrap.servers").set("test.mock.num.brokers", "1");
    }
    let events = ProducerEvents(ClientEvents::new("control", link.clone()));
    Control::from_config_and_context(&config, events).map_err(|e| making(&e))
}

#[async_trait]
impl Broker for Kafka {
    async fn cluster_id(&self) -> Result<String> {
        self.inner.cluster_id.get_or_try_init(|| self.ask_cluster_id()).await.cloned()
    }

    async fn departure(&self, anchors: &[LogAnchor]) -> Result<Option<String>> {
        if self.inner.settings.is_embedded() {
            // The log of the embedded broker lives as long as this process.
            return Ok(None);
        }
        let sights = self.sights().await?;
        if sights.is_empty() {
            if self.inner.settings.create_topics {
                self.make_topics().await;
            }
            return Err(Error::Away(format!("the topic {} is not there", self.inner.names.topic)));
        }
        let wanted = topic_log::worth_reading(anchors, &sights);
        let messages = if wanted.is_empty() { Vec::new() } else { self.look_at(wanted).await? };
        Ok(topic_log::departure(anchors, &sights, &messages))
    }

    async fn retention(&self) -> Result<Option<Duration>> {
        let admin = self.admin()?;
        let topic = ResourceSpecifier::Topic(&self.inner.names.topic);
        let told = admin.describe_configs([&topic], &self.admin_options()).await;
        tokio::task::spawn_blocking(move || drop(admin));
        let refused = |code| Error::Away(format!("the topic's retention is not told: {code}"));
        let config = told.map_err(|e| away(&e))?.into_iter().next();
        let config = config.ok_or_else(|| Error::Away("the topic's retention is not told".into()))?;
        let config = config.map_err(refused)?;
        let told = config.get("retention.ms").and_then(|entry| entry.value.as_deref());
        let ms = told.and_then(|value| value.parse::<i64>().ok());
        let ms = ms.ok_or_else(|| Error::Away("the topic's retention is not told".into()))?;
        Ok(u64::try_from(ms).ok().map(Duration::from_millis))
    }

    fn renew_publisher(&self) {
        self.inner.publisher.renew();
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.inner.publisher) as Arc<dyn Publisher>
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>> {
        let inner = &self.inner;
        let config = inner.settings.consumer_config(&inner.bootstrap)?;
        let (link, gate, member) = (inner.link.clone(), inner.gate.clone(), inner.members.token());
        let consumer = KafkaConsumer::join(&inner.settings, &config, link, gate, member)?;
        Ok(Box::new(consumer))
    }

    async fn watermarks(&self) -> Result<Vec<PartitionSight>> {
        self.sights().await
    }

    fn link(&self) -> Link {
        match self.inner.link.get() {
            Link::Up if self.inner.gate.as_ref().is_some_and(|gate| gate.is_closed()) => Link::Full,
            link => link,
        }
    }

    async fn probe(&self) -> Result<()> {
        let topic = Arc::clone(&self.inner.names.topic);
        self.ask(move |control, deadline| {
            control.client().fetch_metadata(Some(&topic), deadline.left()).map_err(|e| away(&e))?;
            Ok(())
        })
        .await
    }

    fn names(&self) -> Names {
        self.inner.names.clone()
    }
}

fn away(error: &KafkaError) -> Error {
    Error::Away(error.to_string())
}
