//! A node may answer from memory only what no other node can have changed. This must hold whatever happens to
//! its leases, to the answers to its renewals, and to the database's clock.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::super::*;
use super::Sum;
use super::cluster::{Cluster, id_in, ids_in, times, until};
use crate::actors::entity::{Op, Write};
use crate::domain::access::Caller;
use crate::domain::conditions::Conditions;
use crate::domain::ids::CommandId;

const SHARDS: u16 = 8;

fn add(n: i64) -> Op<Sum> {
    Op::Write(Write {
        command: n,
        conditions: Conditions::default(),
        command_id: CommandId(Uuid::new_v4()),
        caller: Caller::system("test"),
        traceparent: "t".into(),
        maybe_done: false,
    })
}

/// Creates two nodes, each of which serves the shards placed on it.
async fn two_nodes(ttl_ms: u64) -> Cluster {
    let mut cluster = Cluster::new(SHARDS, times(ttl_ms)).await;
    cluster.start("patient-1").await;
    cluster.start("patient-2").await;
    cluster.settled().await;
    cluster
}

impl Cluster {
    /// Cuts the node off from the database, or reconnects it.
    fn cut(&self, name: &str, is_cut: bool) {
        let (owner, mut cut) = (self.nodes[name].owner.to_string(), self.leases.cut.lock().unwrap());
        match is_cut {
            true => cut.insert(owner),
            false => cut.remove(&owner),
        };
    }

    /// Gives `name` a view without `other`. The view of `other` stays unchanged.
    fn hide_from(&mut self, name: &str, other: &str) {
        self.hidden.insert(other.into());
        self.nodes[name].view.send_replace(self.view_of(name));
        self.hidden.remove(other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_owner_wrote_while_a_new_epoch_was_awaited_is_read() {
    let mut cluster = two_nodes(600).await;
    let shard = cluster.served("patient-1").await[0];
    let remembered = id_in(shard, SHARDS);
    let unknown = ids_in(shard, SHARDS).nth(1).expect("another one");
    assert_eq!(cluster.ask_of("patient-1", remembered, add(1)).await, Ok(1));

    // The answer to a commit is lost. The shard waits for a new epoch, which it cannot get.
    cluster.cut("patient-1", true);
    cluster.sums.lose_answer.store(true, Ordering::SeqCst);
    assert_eq!(cluster.ask_of("patient-1", unknown, add(1)).await, Err(Failure::Unknown));
    cluster.hide_from("patient-2", "patient-1");
    until("the other one serves it", async || cluster.served("patient-2").await.contains(&shard)).await;
    assert_eq!(cluster.ask_of("patient-2", remembered, add(5)).await, Ok(6));
    cluster.unable.lock().unwrap().clear();
    cluster.leave("patient-2").await;

    cluster.cut("patient-1", false);
    let deadline = Instant::now() + super::cluster::PATIENCE;
    let read = loop {
        match cluster.ask("patient-1", shard).await {
            Ok(sum) => break sum,
            Err(failure) => assert!(Instant::now() < deadline, "{failure:?}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(read, 6, "a stale answer: the other owner made it 6");
    cluster.settled().await;
}

/// A new epoch whose answer was lost is requested again, and nothing is dropped from memory because of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_whose_answer_was_lost_is_had_all_the_same() {
    let cluster = two_nodes(1_500).await;
    let shard = cluster.served("patient-1").await[0];
    let (id, epoch_of) = (id_in(shard, SHARDS), async || {
        let status = cluster.status("patient-1").await;
        status.shards.iter().find(|status| status.shard == shard).expect("served").epoch.expect("held")
    });
    let before = epoch_of().await;
    cluster.leases.lose_refence.store(true, Ordering::SeqCst);
    cluster.sums.lose_answer.store(true, Ordering::SeqCst);
    assert_eq!(cluster.ask_of("patient-1", id, add(1)).await, Err(Failure::Unknown));
    assert_eq!(cluster.ask("patient-1", shard).await, Ok(1), "the read waits for the epoch");
    assert!(!cluster.leases.lose_refence.load(Ordering::SeqCst), "no answer was lost");
    assert_eq!(epoch_of().await.0, before.0 + 1);
}

/// Many shards that need an epoch at the same time share a few statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epochs_of_many_shards_are_asked_for_together() {
    let mut cluster = Cluster::new(64, times(3_000)).await;
    cluster.start("patient-1").await;
    cluster.settled().await;
    cluster.leases.slow.store(true, Ordering::SeqCst);
    let (cluster, all) = (&cluster, 0..64);
    cluster.sums.lose_answers.store(true, Ordering::SeqCst);
    let write = |shard| cluster.ask_of("patient-1", id_in(shard, 64), add(1));
    let written = futures::future::join_all(all.clone().map(write)).await;
    assert!(written.iter().all(|answer| *answer == Err(Failure::Unknown)), "{written:?}");
    cluster.sums.lose_answers.store(false, Ordering::SeqCst);
    let read = futures::future::join_all(all.map(|shard| cluster.ask("patient-1", shard))).await;
    assert!(read.iter().all(|answer| *answer == Ok(1)), "{read:?}");
    let statements = cluster.leases.refences.load(Ordering::SeqCst);
    println!("{statements} statements for 64 epochs");
    assert!((1..=16).contains(&statements), "{statements} statements for 64 epochs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_hangs_fails_no_read_and_moves_no_shard() {
    let cluster = two_nodes(1_500).await;
    let before = cluster.status("patient-1").await;
    let held = cluster.served("patient-1").await;
    let owner = cluster.nodes["patient-1"].owner.to_string();
    let tick = cluster.times.ttl / 3;
    for _ in 0..2 {
        *cluster.leases.hang.lock().unwrap() = Some((owner.clone(), tick * 6 / 5));
        let begun = Instant::now();
        while begun.elapsed() < tick * 5 {
            for shard in &held {
                let read = cluster.ask("patient-1", *shard).await;
                assert!(read.is_ok(), "shard {shard} after {:?}: {read:?}", begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(cluster.leases.hang.lock().unwrap().is_none(), "no renewal has hung");
        assert!(cluster.unable.lock().unwrap().is_empty(), "the node says that it is unable");
    }
    assert_eq!(cluster.status("patient-1").await.shards, before.shards);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_databases_clock_forwards_makes_nobody_answer_stale() {
    let mut cluster = two_nodes(1_500).await;
    let shard = cluster.served("patient-1").await[0];
    let id = id_in(shard, SHARDS);
    assert_eq!(cluster.ask_of("patient-1", id, add(1)).await, Ok(1));
    cluster.cut("patient-1", true);
    cluster.leases.step(3_600);
    cluster.hide_from("patient-2", "patient-1");
    until("the other one serves it", async || cluster.served("patient-2").await.contains(&shard)).await;
    assert_eq!(cluster.ask_of("patient-2", id, add(5)).await, Ok(6));
    let late = cluster.ask("patient-1", shard).await;
    assert!(late.is_err(), "a stale answer: {late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_databases_clock_backwards_keeps_no_orphan() {
    let mut cluster = two_nodes(1_500).await;
    let orphans = cluster.served("patient-1").await;
    cluster.leases.step(-3_600);
    cluster.kill("patient-1").await;
    let killed = Instant::now();
    until("the other one serves them", async || {
        let served = cluster.served("patient-2").await;
        orphans.iter().all(|shard| served.contains(shard))
    })
    .await;
    let after = killed.elapsed();
    println!("served again after {after:?}");
    assert!(after < cluster.times.ttl * 4 / 3, "{after:?}");
}

/// A failover takes the rest of the time to live and the pause between two reads of the leases. It never
/// takes less, because the holder might still answer from memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_is_taken_a_time_to_live_after_its_last_renewal_and_little_later() {
    let mut cluster = two_nodes(1_500).await;
    let ttl = cluster.times.ttl;
    let mut back = Vec::new();
    for _ in 0..5 {
        let orphans = cluster.served("patient-1").await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..600))).await;
        cluster.kill("patient-1").await;
        let killed = Instant::now();
        for shard in &orphans {
            let written = cluster.asker.write(&super::ctx(60_000), id_in(*shard, SHARDS), 1).await;
            written.expect("a write");
        }
        back.push(killed.elapsed());
        cluster.start("patient-1").await;
        cluster.settled().await;
    }
    let mut after = std::mem::take(&mut *cluster.leases.takeovers.lock().unwrap());
    after.sort_unstable();
    let (soonest, latest) = (after[0], after[after.len() - 1]);
    println!("taken {soonest:?} to {latest:?} after the last renewal; written again after {back:?}");
    assert!(soonest >= ttl, "{soonest:?}: its holder may have believed in it");
    assert!(latest < ttl * 3 / 2, "{latest:?}");
}
