//! The actors of a node, by role.
//!
//! | role | actors |
//! |---|---|
//! | front | audit journal, directories of patients and of accounts |
//! | patient | patient journal, region with its shards |
//! | billing | audit journal, billing journal, region with its shards, directory of accounts, relay |
//! | bridge | Kafka bridge |
//! | analytics | analytics |
//! | front, billing | sessions, which check tokens |
//! | any, in a cluster | peers, first |
//!
//! They start in the order of the table in `actors::supervisor`.

use std::sync::Arc;
use std::time::Duration;

use super::callers;
use crate::actors::address::Address;
use crate::actors::analytics::{Analytics, AnalyticsArgs, AnalyticsMessage};
use crate::actors::audit::{AuditArgs, AuditHandle, AuditJournal, AuditMessage, Gathering};
use crate::actors::billing::Accounts;
use crate::actors::billing_relay::{self, BillingRelay, BillingRelayMessage};
use crate::actors::journal::Nudge;
use crate::actors::kafka_bridge::{BridgeMessage, KafkaBridge, KafkaBridgeArgs, ReplayOf};
use crate::actors::link::Links;
use crate::actors::patients::Patients;
use crate::actors::peers::Peers;
use crate::actors::sessions::{Sessions, SessionsArgs, SessionsMessage};
use crate::actors::supervisor::ChildSpec;
use crate::actors::system::{Chain, Parts, Runs};
use crate::audit::{Chains, Growth, Keys, Witness};
use crate::auth::Auth;
use crate::config::{Config, Role};
use crate::domain::time::Clock;
use crate::kafka::Kafka;
use crate::store::Store;

/// The addresses of the node's actors. An address is empty until its actor has started, and stays empty if
/// the node does not run that actor.
#[derive(Default)]
pub(super) struct Actors {
    pub(super) patients: Chain<Patients>,
    pub(super) accounts: Chain<Accounts>,
    pub(super) relay: Address<BillingRelayMessage>,
    pub(super) bridge: Address<BridgeMessage>,
    pub(super) analytics: Address<AnalyticsMessage>,
    pub(super) audit: Address<AuditMessage>,
    pub(super) sessions: Address<SessionsMessage>,
}

/// The components from which this node's audit is built.
pub(super) struct Audits {
    keys: Keys,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    pins_every: Duration,
    growth: Growth,
    /// Entries that the edges have recorded and that are not in a batch yet.
    gathering: Arc<Gathering>,
}

impl Audits {
    /// The handle by which the node's edges record accesses.
    pub(super) fn recorder(&self, actors: &Actors) -> AuditHandle {
        AuditHandle::new(Arc::clone(&self.gathering), actors.audit.clone())
    }

    /// Builds the components. Returns `None` where nothing is audited: the settings disable the audit, or the
    /// node has neither an edge nor the patient role.
    ///
    /// # Errors
    /// `audit.secret` is not set.
    pub(super) fn of(
        config: &Config,
        store: &Arc<dyn Store>,
        clock: &Arc<dyn Clock>,
        owner: &Arc<str>,
    ) -> Result<Option<Self>, &'static str> {
        let concerned = |role: &Role| matches!(role, Role::Front | Role::Patient | Role::Billing);
        if !config.audit.enabled || !config.node.roles.iter().any(concerned) {
            return Ok(None);
        }
        let keys = config.audit.keys().ok_or("audit.secret is not set")?;
        Ok(Some(Audits {
            keys,
            store: Arc::clone(store),
            clock: Arc::clone(clock),
            owner: Arc::clone(owner),
            pins_every: config.audit.pins_every(),
            growth: Growth::default(),
            gathering: Arc::new(Gathering::new(config.audit.queue_max)),
        }))
    }

    /// The secrets with which rows may be sealed.
    pub(super) fn keys(&self) -> Keys {
        self.keys.clone()
    }

    /// The chains of the part of the node named `part`.
    pub(super) fn chains(&self, part: &str) -> Chains {
        self.chains_telling(part, self.growth.clone())
    }

    /// The witness, which records the heads of the chains.
    pub(super) fn witness(&self) -> Witness {
        let own = self.chains_telling("witness", Growth::default());
        Witness::new(Arc::clone(&self.store) as _, self.growth.clone(), own)
    }

    fn chains_telling(&self, part: &str, growth: Growth) -> Chains {
        let (store, clock) = (Arc::clone(&self.store) as _, Arc::clone(&self.clock));
        let writer = format!("{}/{part}", self.owner);
        Chains::new(self.keys.present().clone(), writer, store, clock, self.pins_every, growth)
    }
}

/// Returns the node's actors in start order. `kafka` and `auth` are present for the roles that need them.
pub(super) fn children(
    config: &Config,
    parts: &Parts,
    kafka: Option<&Kafka>,
    auth: Option<&Auth>,
    peers: Option<&Peers>,
    audits: Option<&Audits>,
    actors: &Actors,
) -> Vec<ChildSpec> {
    let (store, runs) = (&parts.store, |role: Role| config.node.roles.contains(&role));
    let patients = Runs { serving: runs(Role::Patient), asking: runs(Role::Front) };
    let accounts = Runs { serving: runs(Role::Billing), asking: runs(Role::Front) || runs(Role::Billing) };
    let mut children: Vec<ChildSpec> = peers.map(Peers::child).into_iter().collect();
    if let Some(audits) = audits.filter(|_| runs(Role::Front) || runs(Role::Billing)) {
        children.push(audit(config, parts, audits, actors));
    }
    children.extend(actors.patients.children(parts, patients, Arc::clone(store) as _, nudges(parts, actors)));
    children.extend(actors.accounts.children(parts, accounts, Arc::clone(store) as _, Vec::new()));
    if runs(Role::Billing) {
        children.push(relay(config, parts, actors));
    }
    if let Some(kafka) = kafka.filter(|_| runs(Role::Bridge)) {
        children.push(bridge(config, parts, kafka, actors));
    }
    if let Some(kafka) = kafka.filter(|_| runs(Role::Analytics)) {
        children.push(analytics(config, parts, kafka, actors));
    }
    children.extend(auth.map(|auth| sessions(config, parts, auth, actors)));
    children
}

/// The hints after a commit: to relay and bridge on this node and on other nodes.
fn nudges(parts: &Parts, actors: &Actors) -> Vec<Nudge> {
    let (relay, bridge) = (actors.relay.clone(), actors.bridge.clone());
    let mut nudges: Vec<Nudge> = vec![
        Arc::new(move || {
            relay.cast(BillingRelayMessage::Nudge);
        }),
        Arc::new(move || {
            bridge.cast(BridgeMessage::Nudge);
        }),
    ];
    nudges.extend(parts.links.as_ref().map(Links::nudge));
    nudges
}

fn audit(config: &Config, parts: &Parts, audits: &Audits, actors: &Actors) -> ChildSpec {
    let args = AuditArgs {
        store: Arc::clone(&parts.store) as _,
        clock: Arc::clone(&parts.clock),
        chains: audits.chains("edge"),
        settings: config.audit.clone(),
        gathering: Arc::clone(&audits.gathering),
    };
    ChildSpec::new("audit-journal", || AuditJournal, args, actors.audit.clone())
}

fn relay(config: &Config, parts: &Parts, actors: &Actors) -> ChildSpec {
    let args = billing_relay::Args {
        store: Arc::clone(&parts.store) as _,
        accounts: Arc::new(actors.accounts.handle(parts)),
        leases: Arc::clone(&parts.store) as _,
        owner: Arc::clone(&parts.owner),
        members: parts.members.clone(),
        released: Arc::clone(&parts.released),
        clock: Arc::clone(&parts.clock),
        health: parts.health.clone(),
        settings: config.relay.clone(),
    };
    ChildSpec::new("billing-relay", BillingRelay::default, args, actors.relay.clone())
}

fn bridge(config: &Config, parts: &Parts, kafka: &Kafka, actors: &Actors) -> ChildSpec {
    let mut settings = config.bridge.clone();
    if config.kafka.is_embedded() {
        // The embedded broker loses its messages at each exit, and has room for little more than what
        // analytics has not read.
        settings.replay = ReplayOf::Uncounted;
    }
    let args = KafkaBridgeArgs {
        outbox: Arc::clone(&parts.store) as _,
        logs: Arc::clone(&parts.store) as _,
        leases: Arc::clone(&parts.store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        owner: Arc::clone(&parts.owner),
        members: parts.members.clone(),
        released: Arc::clone(&parts.released),
        settings,
    };
    ChildSpec::new("kafka-bridge", || KafkaBridge, args, actors.bridge.clone())
}

fn sessions(config: &Config, parts: &Parts, auth: &Auth, actors: &Actors) -> ChildSpec {
    let args = SessionsArgs {
        keeper: Arc::new(callers::Known(auth.clone())),
        health: parts.health.clone(),
        revocations_poll: Duration::from_millis(config.auth.revocations_poll_ms),
        keys_poll: Duration::from_millis(config.auth.keys_poll_ms),
    };
    ChildSpec::new("sessions", || Sessions, args, actors.sessions.clone())
}

fn analytics(config: &Config, parts: &Parts, kafka: &Kafka, actors: &Actors) -> ChildSpec {
    let args = AnalyticsArgs {
        projections: Arc::clone(&parts.store) as _,
        outbox: Arc::clone(&parts.store) as _,
        logs: Arc::clone(&parts.store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        settings: config.analytics.clone(),
    };
    ChildSpec::new("analytics", || Analytics, args, actors.analytics.clone())
}
