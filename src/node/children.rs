//! Which actors a node runs: its roles say.
//!
//! | role | actors |
//! |---|---|
//! | front | directories of patients and of accounts |
//! | patient | patient journal, region with its shards |
//! | billing | billing journal, region with its shards, directory of accounts, relay |
//! | bridge | Kafka bridge |
//! | analytics | analytics |
//! | any, in a cluster | peers, first |
//!
//! They start in the order of the table in `actors::supervisor`.

use std::sync::Arc;

use crate::actors::address::Address;
use crate::actors::analytics::{Analytics, AnalyticsArgs, AnalyticsMessage};
use crate::actors::billing::Accounts;
use crate::actors::billing_relay::{self, BillingRelay, BillingRelayMessage};
use crate::actors::journal::Nudge;
use crate::actors::kafka_bridge::{BridgeMessage, KafkaBridge, KafkaBridgeArgs};
use crate::actors::link::Links;
use crate::actors::patients::Patients;
use crate::actors::peers::Peers;
use crate::actors::supervisor::ChildSpec;
use crate::actors::system::{Chain, Parts, Runs};
use crate::config::{Config, Role};
use crate::kafka::Kafka;

/// The addresses at which the node's actors are, empty until they are started and for those it does not run.
#[derive(Default)]
pub(super) struct Actors {
    pub(super) patients: Chain<Patients>,
    pub(super) accounts: Chain<Accounts>,
    pub(super) relay: Address<BillingRelayMessage>,
    pub(super) bridge: Address<BridgeMessage>,
    pub(super) analytics: Address<AnalyticsMessage>,
}

/// The node's actors in start order. `kafka` is there for the roles that need it.
pub(super) fn children(
    config: &Config,
    parts: &Parts,
    kafka: Option<&Kafka>,
    peers: Option<&Peers>,
    actors: &Actors,
) -> Vec<ChildSpec> {
    let (store, runs) = (&parts.store, |role: Role| config.node.roles.contains(&role));
    let patients = Runs { serving: runs(Role::Patient), asking: runs(Role::Front) };
    let accounts = Runs { serving: runs(Role::Billing), asking: runs(Role::Front) || runs(Role::Billing) };
    let mut children: Vec<ChildSpec> = peers.map(Peers::child).into_iter().collect();
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
    children
}

/// What follows from a commit is told so at once, here and on other nodes.
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
    let args = KafkaBridgeArgs {
        outbox: Arc::clone(&parts.store) as _,
        leases: Arc::clone(&parts.store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        owner: Arc::clone(&parts.owner),
        members: parts.members.clone(),
        released: Arc::clone(&parts.released),
        settings: config.bridge.clone(),
    };
    ChildSpec::new("kafka-bridge", || KafkaBridge, args, actors.bridge.clone())
}

fn analytics(config: &Config, parts: &Parts, kafka: &Kafka, actors: &Actors) -> ChildSpec {
    let args = AnalyticsArgs {
        projections: Arc::clone(&parts.store) as _,
        outbox: Arc::clone(&parts.store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        settings: config.analytics.clone(),
    };
    ChildSpec::new("analytics", || Analytics, args, actors.analytics.clone())
}
