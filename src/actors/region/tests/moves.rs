//! Shards while nodes join, leave, drain, flap, and lose contact with each other and with the database.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::*;
use super::cluster::{Cluster, Load, id_in, member, times, until, watch_epochs};
use super::ctx;
use crate::domain::cluster::NodeRole;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_nodes_do_each_shard_has_one_owner_and_loses_nothing() {
    let seed = std::env::var("HYGEIA_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} (HYGEIA_TEST_SEED)");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::new(8, times(300)).await;
    cluster.leases.slow.store(true, Ordering::SeqCst);
    let names = ["patient-1", "patient-2", "patient-3", "patient-4"];
    cluster.start("patient-1").await;
    let (stop, watching) = watch_epochs(Arc::clone(&cluster.regions));
    let load = Load::start(&cluster);
    for _ in 0..30 {
        let name = names[rng.usize(..names.len())];
        let (here, others) = (cluster.nodes.contains_key(name), cluster.nodes.len() > 1);
        match rng.u8(..10) {
            _ if !here => cluster.start(name).await,
            0 if others => cluster.kill(name).await,
            1 | 2 if others => cluster.leave(name).await,
            // A session that ends and reconnects.
            3 => {
                cluster.hidden.insert(name.into());
                cluster.publish();
                tokio::time::sleep(Duration::from_millis(rng.u64(..500))).await;
                cluster.hidden.remove(name);
            }
            // A lost connection to the database, for shorter or longer than leases last.
            4 => {
                let owner = cluster.nodes[name].owner.to_string();
                cluster.leases.cut.lock().unwrap().insert(owner.clone());
                tokio::time::sleep(Duration::from_millis(rng.u64(..500))).await;
                cluster.leases.cut.lock().unwrap().remove(&owner);
            }
            // A node that is cut off from everything, like a paused one. It must not give stale answers.
            5 | 6 if others => {
                let owner = cluster.nodes[name].owner.to_string();
                cluster.leases.cut.lock().unwrap().insert(owner.clone());
                cluster.hidden.insert(name.into());
                cluster.publish();
                let (begun, lasts) = (Instant::now(), Duration::from_millis(rng.u64(..900)));
                while begun.elapsed() < lasts {
                    for shard in 0..8 {
                        let at_least = load.acknowledged[usize::from(shard)].load(Ordering::SeqCst) as i64;
                        if let Ok(sum) = cluster.ask(name, shard).await {
                            assert!(sum >= at_least, "{name}, shard {shard}: {sum} is stale for {at_least}");
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                cluster.leases.cut.lock().unwrap().remove(&owner);
                cluster.hidden.remove(name);
            }
            7 => drop(cluster.draining.insert(name.into())),
            8 => drop(cluster.draining.remove(name)),
            _ => cluster.lose_hints.store(rng.bool(), Ordering::SeqCst),
        }
        cluster.publish();
        tokio::time::sleep(Duration::from_millis(rng.u64(..60))).await;
    }
    cluster.draining.clear();
    until("all reach the database", async || cluster.unable.lock().unwrap().is_empty()).await;
    cluster.publish();
    cluster.settled().await;
    let requests = load.end().await;
    cluster.settled().await;
    stop.store(true, Ordering::SeqCst);
    assert!(watching.await.expect("one owner at a time") > 100);
    let takeovers = cluster.leases.takeovers.lock().unwrap().clone();
    assert!(takeovers.iter().all(|after| *after >= cluster.times.ttl), "too early: {takeovers:?}");
    assert!(requests.len() > 100, "{} requests", requests.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_of_all_shards_fails_no_request_and_a_few_at_a_time_are_away() {
    let mut cluster = Cluster::new(64, times(3_000)).await;
    cluster.start("patient-1").await;
    cluster.settled().await;
    assert_eq!(cluster.served("patient-1").await.len(), 64);
    let load = Load::start(&cluster);
    cluster.start("patient-2").await;
    cluster.settled().await;
    let moved = cluster.served("patient-2").await.len();
    assert!((16..=48).contains(&moved), "{moved} of 64 moved");
    cluster.leave("patient-1").await;
    cluster.settled().await;
    assert_eq!(cluster.served("patient-2").await.len(), 64);
    let took = load.end().await;
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("{} requests, p50 {:?}, p99 {:?}, longest {:?}", took.len(), at(0.5), at(0.99), at(1.0));
    assert!(at(0.99) < Duration::from_secs(1) && at(1.0) < Duration::from_secs(3), "{:?}", at(1.0));
    assert!((1..=8).contains(&cluster.leases.largest_release.load(Ordering::SeqCst)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_taken_when_their_leases_run_out_and_nothing_is_asked_while_all_is_held() {
    let mut cluster = Cluster::new(8, times(1_000)).await;
    cluster.times.acquire_poll = Duration::from_millis(400);
    cluster.start("patient-1").await;
    cluster.start("patient-2").await;
    cluster.settled().await;
    let takes = || cluster.leases.takes.load(Ordering::SeqCst);
    let renewals = || cluster.leases.renewals.load(Ordering::SeqCst);
    let (took, renewed) = (takes(), renewals());
    until("a second of renewals", async || renewals() >= renewed + 8).await;
    assert_eq!(takes(), took, "leases were asked for although all are held");

    let orphans = cluster.served("patient-2").await;
    assert!(!orphans.is_empty());
    let ids: Vec<_> = orphans.iter().map(|shard| id_in(*shard, 8)).collect();
    cluster.kill("patient-2").await;
    let killed = Instant::now();
    until("one try", async || cluster.leases.takes.load(Ordering::SeqCst) > took).await;
    for id in ids {
        cluster.asker.write(&ctx(60_000), id, 1).await.expect("a write");
    }
    let (after, tries) = (killed.elapsed(), cluster.leases.takes.load(Ordering::SeqCst) - took);
    println!("served again after {after:?} and {tries} tries");
    assert!(after < Duration::from_millis(1_500), "{after:?}");
    assert!(tries <= 6, "{tries} tries");
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sees_no_front_leaves_its_shards_to_others_until_one_is_in_sight() {
    let mut cluster = Cluster::new(8, times(300)).await;
    // No front is reachable yet: nothing is taken, so nothing has to be given up again.
    cluster.hidden.insert("front".into());
    cluster.start("patient-1").await;
    assert!(cluster.status("patient-1").await.shards.is_empty());
    assert_eq!(cluster.leases.takes.load(Ordering::SeqCst), 0);
    assert!(!cluster.nodes["patient-1"].health.snapshot().0);
    cluster.hidden.clear();
    cluster.start("patient-2").await;
    cluster.settled().await;

    // A loss of contact shorter than the grace period changes nothing.
    let epochs = cluster.status("patient-1").await;
    cluster.hidden.insert("patient-1".into());
    cluster.nodes["patient-1"].view.send_replace(cluster.view_of("patient-1"));
    let seen = async || cluster.status("patient-1").await;
    until("it wants everything", async || seen().await.shards.len() == 8).await;
    cluster.hidden.clear();
    cluster.nodes["patient-1"].view.send_replace(cluster.view_of("patient-1"));
    until("as before", async || cluster.status("patient-1").await == epochs).await;

    // The node still reaches the database and renews its leases. It gives up only because no front is
    // reachable.
    cluster.hidden.insert("patient-1".into());
    cluster.publish();
    until("all are served elsewhere", async || cluster.served("patient-2").await.len() == 8).await;
    assert!(cluster.status("patient-1").await.shards.is_empty());
    until("told", async || !cluster.nodes["patient-1"].health.snapshot().0).await;
    cluster.hidden.clear();
    cluster.publish();
    cluster.settled().await;
    until("ready", async || cluster.nodes["patient-1"].health.snapshot().0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_take_the_shards_of_one_they_see_and_the_front_does_not() {
    let mut cluster = Cluster::new(8, times(300)).await;
    cluster.start("patient-1").await;
    cluster.start("patient-2").await;
    cluster.settled().await;
    assert!(!cluster.served("patient-1").await.is_empty());
    cluster.blind.insert("patient-1".into());
    until("all are served where the front sees them", async || {
        cluster.publish();
        cluster.served("patient-2").await.len() == 8
    })
    .await;
    cluster.blind.clear();
    until("as placed", async || {
        cluster.publish();
        !cluster.served("patient-1").await.is_empty() && cluster.served("patient-2").await.len() < 8
    })
    .await;
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_serve_a_shard_names_the_one_who_does() {
    let mut cluster = Cluster::new(8, times(3_000)).await;
    cluster.start("patient-1").await;
    cluster.start("patient-2").await;
    cluster.settled().await;
    let owner = |cluster: &Cluster, name: &str| Some(Arc::clone(&cluster.nodes[name].owner));
    let shard = cluster.served("patient-2").await[0];
    assert_eq!(cluster.ask("patient-2", shard).await, Ok(0));
    let second = owner(&cluster, "patient-2");
    assert_eq!(cluster.ask("patient-1", shard).await, Err(Failure::NotServing(second.clone())));

    // The shard is placed on the first node, but the second node still holds it and has not seen that view.
    let mine = member("patient-1", owner(&cluster, "patient-1").expect("one"), NodeRole::Patient, false);
    let theirs = member("patient-2", second.clone().expect("one"), NodeRole::Patient, true);
    let front = member("front", "front#1".into(), NodeRole::Front, false);
    let view = View::new("patient-1".into(), vec![mine, theirs, front]);
    cluster.nodes["patient-1"].view.send_replace(Arc::new(view));
    until("asked for in vain", async || {
        cluster.status("patient-1").await.shards.iter().any(|s| s.shard == shard && s.other == second)
    })
    .await;
    assert_eq!(cluster.ask("patient-1", shard).await, Err(Failure::NotServing(second)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_about_to_leave_keeps_what_nobody_else_could_serve() {
    let mut cluster = Cluster::new(8, times(300)).await;
    cluster.start("patient-1").await;
    cluster.settled().await;
    cluster.draining.insert("patient-1".into());
    cluster.publish();
    assert_eq!(cluster.served("patient-1").await.len(), 8);
    cluster.start("patient-2").await;
    until("handed over", async || cluster.served("patient-2").await.len() == 8).await;
    until("nothing is left", async || cluster.status("patient-1").await.shards.is_empty()).await;
    assert!(cluster.nodes["patient-1"].health.snapshot().0, "that it has nothing is no failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_reach_the_database_says_so_and_others_take_its_shards() {
    let mut cluster = Cluster::new(8, times(600)).await;
    cluster.start("patient-1").await;
    cluster.start("patient-2").await;
    cluster.settled().await;
    let unable = |cluster: &Cluster| cluster.unable.lock().unwrap().contains("patient-2");
    let owner = cluster.nodes["patient-2"].owner.to_string();
    cluster.leases.cut.lock().unwrap().insert(owner.clone());
    let cut = Instant::now();
    until("it says so", async || unable(&cluster)).await;
    cluster.publish();
    until("all are served elsewhere", async || cluster.served("patient-1").await.len() == 8).await;
    println!("served by the other after {:?}", cut.elapsed());
    assert!(cut.elapsed() < Duration::from_millis(1_200), "{:?}", cut.elapsed());
    until("it has given up", async || cluster.status("patient-2").await.shards.is_empty()).await;
    assert!(!cluster.nodes["patient-2"].health.snapshot().0);
    cluster.leases.cut.lock().unwrap().clear();
    until("it is back", async || !unable(&cluster)).await;
    cluster.publish();
    cluster.settled().await;
}
