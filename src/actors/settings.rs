//! The limits of the actors: the section `[actors]` of the configuration.

use std::time::Duration;

use serde::Deserialize;

use super::directory::AskSettings;
use super::region::LeaseTimes;
use super::restart::RestartPolicy;
use super::{journal, shard};

/// The limits of the actors.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Shards per kind. Read only when the cluster is created; later the value in the database counts.
    pub shards: u16,
    /// Entities of one kind that a node keeps in memory; the least recently used are evicted first.
    pub hot_entities_max: usize,
    /// Entities of one shard with a load or a commit in progress; further requests get 503.
    pub active_entities_per_shard_max: usize,
    /// Requests that may wait for one entity; further requests get 503.
    pub entity_queue_max: usize,
    /// The time limit for one read of an entity.
    pub load_timeout_ms: u64,
    /// Concurrent lists and searches of one kind; further ones get 503.
    pub queries_max: usize,
    /// Changes that may wait for a transaction; further ones get 503.
    pub journal_queue_rows_max: usize,
    /// Changes in one transaction.
    pub journal_batch_rows_max: usize,
    /// Changes that must have gathered before another transaction starts beside one in flight.
    pub journal_batch_rows_min: usize,
    /// The longest time that a change waits for others to gather, while a transaction is in flight and
    /// another one may start. It should be longer than a usual commit, so that the gathered changes share one
    /// transaction.
    pub journal_batch_wait_ms: u64,
    /// Transactions in flight. SQLite has one writer, so the value is 1 there.
    pub journal_transactions_max: usize,
    /// How long a lease lasts after its last renewal. Leases are renewed every third of this time, and the
    /// leases of other nodes are read every twelfth.
    pub lease_ttl_ms: u64,
    /// The time that the holder subtracts from `lease_ttl_ms`, because clocks may run at different speeds.
    pub lease_margin_ms: u64,
    /// The longest pause between two attempts to take leases that others hold. A node that misses no lease
    /// makes no attempt.
    pub acquire_poll_ms: u64,
    /// Shards of one kind that may be handed over to other nodes at the same time.
    pub handovers_max: usize,
    /// How long a node keeps its shards while it sees no front. It then gives them up to nodes that a front
    /// may reach.
    pub alone_grace_ms: u64,
    /// The pause before a request is retried; it doubles, with jitter.
    pub ask_pause_ms: u64,
    /// The longest pause before a request is retried.
    pub ask_pause_max_ms: u64,
    /// The pause before a retry while the shard moves between nodes; it doubles, with jitter.
    pub ask_moving_pause_ms: u64,
    /// The longest pause while the shard moves.
    pub ask_moving_pause_max_ms: u64,
    /// How long a request is retried while no node of the role is live; then it gets 503.
    pub ask_no_node_wait_ms: u64,
    /// Requests that may pause between attempts, for example for an unreachable node; further ones get 503.
    pub ask_waiting_max: usize,
    /// How often an actor is restarted before the node gives up.
    pub restart: RestartPolicy,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            shards: 64,
            hot_entities_max: 400_000,
            active_entities_per_shard_max: 1_024,
            entity_queue_max: 64,
            load_timeout_ms: 3_000,
            queries_max: 64,
            journal_queue_rows_max: 8_192,
            journal_batch_rows_max: 256,
            journal_batch_rows_min: 16,
            journal_batch_wait_ms: 20,
            journal_transactions_max: 4,
            lease_ttl_ms: 3_000,
            lease_margin_ms: 300,
            acquire_poll_ms: 100,
            handovers_max: 8,
            alone_grace_ms: 3_000,
            ask_pause_ms: 5,
            ask_pause_max_ms: 200,
            ask_moving_pause_ms: 3,
            ask_moving_pause_max_ms: 25,
            ask_no_node_wait_ms: 1_000,
            ask_waiting_max: 128,
            restart: RestartPolicy::default(),
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut within = |key, value: u64, low: u64, high: u64, allowed: &str| {
            if !(low..=high).contains(&value) {
                problems.push((key, allowed.to_owned()));
            }
        };
        let count = |n: usize| n as u64;
        within("shards", self.shards.into(), 1, 4_096, "1 to 4096");
        within("hot_entities_max", count(self.hot_entities_max), 1, u64::MAX, "at least 1");
        within(
            "active_entities_per_shard_max",
            count(self.active_entities_per_shard_max),
            1,
            1_000_000,
            "1 to 1000000",
        );
        within("entity_queue_max", count(self.entity_queue_max), 1, 1_000_000, "1 to 1000000");
        within("load_timeout_ms", self.load_timeout_ms, 1, 60_000, "1 to 60000");
        within("queries_max", count(self.queries_max), 1, 100_000, "1 to 100000");
        within("journal_queue_rows_max", count(self.journal_queue_rows_max), 1, 10_000_000, "1 to 10000000");
        within("journal_batch_rows_max", count(self.journal_batch_rows_max), 1, 4_096, "1 to 4096");
        within("journal_batch_rows_min", count(self.journal_batch_rows_min), 1, 4_096, "1 to 4096");
        within("journal_batch_wait_ms", self.journal_batch_wait_ms, 1, 1_000, "1 to 1000");
        within("journal_transactions_max", count(self.journal_transactions_max), 1, 64, "1 to 64");
        within("lease_ttl_ms", self.lease_ttl_ms, 300, 600_000, "300 to 600000");
        within(
            "lease_margin_ms",
            self.lease_margin_ms,
            0,
            self.lease_ttl_ms / 3,
            "0 to a third of lease_ttl_ms",
        );
        within("acquire_poll_ms", self.acquire_poll_ms, 1, self.lease_ttl_ms, "1 to lease_ttl_ms");
        within("handovers_max", count(self.handovers_max), 1, 4_096, "1 to 4096");
        let RestartPolicy { restarts_max, period_ms, pause_ms, pause_max_ms } = self.restart;
        within("restart.restarts_max", count(restarts_max), 0, 1_000, "0 to 1000");
        within("restart.period_ms", period_ms, 1, 86_400_000, "1 to 86400000");
        within("restart.pause_ms", pause_ms, 0, 60_000, "0 to 60000");
        within("restart.pause_max_ms", pause_max_ms, 0, 600_000, "0 to 600000");
        within("alone_grace_ms", self.alone_grace_ms, 1, 600_000, "1 to 600000");
        within("ask_pause_ms", self.ask_pause_ms, 1, 60_000, "1 to 60000");
        within("ask_pause_max_ms", self.ask_pause_max_ms, self.ask_pause_ms, 60_000, "ask_pause_ms to 60000");
        within("ask_moving_pause_ms", self.ask_moving_pause_ms, 1, 60_000, "1 to 60000");
        within(
            "ask_moving_pause_max_ms",
            self.ask_moving_pause_max_ms,
            self.ask_moving_pause_ms,
            60_000,
            "ask_moving_pause_ms to 60000",
        );
        within("ask_no_node_wait_ms", self.ask_no_node_wait_ms, 0, 60_000, "0 to 60000");
        within("ask_waiting_max", count(self.ask_waiting_max), 1, 100_000, "1 to 100000");
        problems
    }

    /// Returns the limits of each of `shards` shards.
    pub(crate) fn shard_limits(&self, shards: u16) -> shard::Limits {
        shard::Limits {
            hot_entities_max: self.hot_entities_max.div_ceil(usize::from(shards)),
            active_entities_max: self.active_entities_per_shard_max,
            entity_queue_max: self.entity_queue_max,
            load_timeout: Duration::from_millis(self.load_timeout_ms),
        }
    }

    /// Returns the limits of a journal over a store that takes `writers` concurrent transactions.
    pub(crate) fn journal_limits(&self, writers: usize) -> journal::Limits {
        journal::Limits {
            queue_rows_max: self.journal_queue_rows_max,
            batch_rows_max: self.journal_batch_rows_max,
            batch_rows_min: self.journal_batch_rows_min,
            batch_wait: Duration::from_millis(self.journal_batch_wait_ms),
            transactions_max: self.journal_transactions_max.min(writers),
        }
    }

    /// Returns the times that govern leases.
    pub(crate) fn lease_times(&self) -> LeaseTimes {
        LeaseTimes {
            ttl: Duration::from_millis(self.lease_ttl_ms),
            margin: Duration::from_millis(self.lease_margin_ms),
            acquire_poll: Duration::from_millis(self.acquire_poll_ms),
            alone_grace: Duration::from_millis(self.alone_grace_ms),
        }
    }

    /// Returns how requests are retried.
    pub(crate) fn ask_settings(&self) -> AskSettings {
        AskSettings {
            pause: Duration::from_millis(self.ask_pause_ms),
            pause_max: Duration::from_millis(self.ask_pause_max_ms),
            moving_pause: Duration::from_millis(self.ask_moving_pause_ms),
            moving_pause_max: Duration::from_millis(self.ask_moving_pause_max_ms),
            no_node_wait: Duration::from_millis(self.ask_no_node_wait_ms),
            waiting_max: self.ask_waiting_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_a_margin_that_eats_the_lease_does_not() {
        assert!(Settings::default().problems().is_empty());
        let settings = Settings { lease_margin_ms: 1_001, shards: 0, ..Settings::default() };
        let keys: Vec<_> = settings.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["shards", "lease_margin_ms"]);
    }

    /// The invariants of `LeaseTimes` hold for all allowed settings.
    #[test]
    fn the_times_of_leases_fit_each_other_whatever_is_set() {
        for lease_ttl_ms in (300..3_000).chain((3_000..=600_000).step_by(997)).chain([600_000]) {
            for lease_margin_ms in [0, 1, lease_ttl_ms / 10, lease_ttl_ms / 4, lease_ttl_ms / 3] {
                let acquire_poll_ms = lease_ttl_ms.min(100);
                let settings =
                    Settings { lease_ttl_ms, lease_margin_ms, acquire_poll_ms, ..Settings::default() };
                assert!(settings.problems().is_empty());
                let times = settings.lease_times();
                let (tick, timeout) = (times.tick(), times.statement_timeout());
                let all = (lease_ttl_ms, lease_margin_ms, tick, timeout);
                assert!(timeout >= times.ttl / 8 && timeout < tick, "{all:?}");
                assert!(tick + timeout * 2 + times.ttl / 20 <= times.believed(), "{all:?}");
                assert!(!times.watch_pause().is_zero() && times.watch_pause() < tick, "{all:?}");
            }
        }
    }
}
