//! What a hot patient costs in memory, and what a node costs that has nothing to do.

use std::time::Duration;

use serde::Deserialize;

use crate::load::{self, Task, Work};
use crate::node::Site;
use crate::patients::post_task;
use crate::report::{Reach, Report, Row};
use crate::stats::Spread;
use crate::{Effort, Result, say};

const PATIENTS: usize = 200_000;
/// Loaded before the first look, so that what any load costs is not counted as the patients'.
const WARM: usize = 2_000;

#[derive(Deserialize)]
struct Id {
    id: String,
}

/// The growth of a node that loads patients into memory. A first node registers them; a second one,
/// started on their data, loads them.
pub(crate) async fn hot(report: &mut Report) -> Result<()> {
    let site = Site::embedded()?;
    let node = site.start().await?;
    let token = node.token().await?;
    load::run(post_task(&node, &token, 64, "hot", PATIENTS, None)).await?;
    node.quiet().await?;
    // Asked of the first node: what a list leaves behind in the second one's allocator would hide the
    // first of what is to be counted.
    let ids: Vec<Id> = node.patients(&token, PATIENTS).await?;
    node.stop().await?;

    let node = site.start().await?;
    let token = node.token().await?;
    let mut paths: Vec<String> = ids.into_iter().map(|p| format!("/api/patients/{}", p.id)).collect();
    let rest = paths.split_off(WARM.min(paths.len()));
    let counted = rest.len();
    let load = |paths: Vec<String>| {
        let work = Work::Get { paths };
        load::run(Task { address: node.http, token: token.clone(), connections: 16, measured_ms: None, work })
    };
    load(paths).await?;
    node.quiet().await?;
    let before = node.rss_kib()?;
    load(rest).await?;
    node.quiet().await?;
    let per_patient = (node.rss_kib()? - before) / counted as f64;
    say(&format!("{per_patient:.3} KiB a patient, over {counted}"));
    report.add(Row {
        what: "memory per hot patient".into(),
        beside: format!("RSS, over {counted} patients"),
        ours: format!("{per_patient:.2} KiB"),
        yardstick: String::new(),
        ratio: Spread::of(&[per_patient]),
        reach: Some(Reach::AtMost(0.7)),
    });
    node.stop().await
}

/// How soon a node on the embedded defaults is ready, and what it takes when idle.
pub(crate) async fn start(effort: Effort, report: &mut Report) -> Result<()> {
    let (mut first_ms, mut again_ms, mut rss_mib) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let site = Site::embedded()?;
        for ready_ms in [&mut first_ms, &mut again_ms] {
            let node = site.start().await?;
            ready_ms.push(node.ready_after.as_secs_f64() * 1_000.0);
            node.quiet().await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            rss_mib.push(node.rss_kib()? / 1_024.0);
            node.stop().await?;
        }
    }
    let (first, again, rss) = (Spread::of(&first_ms), Spread::of(&again_ms), Spread::of(&rss_mib));
    say(&format!(
        "ready after {:.0} ms at first, {:.0} ms again; {:.1} MiB idle",
        first.median, again.median, rss.median
    ));
    for (what, ms) in [("on an empty directory", first), ("again", again)] {
        report.add(Row {
            what: format!("ready after start, embedded, {what}"),
            beside: "from the start of the process".into(),
            ours: format!("{:.0} ms", ms.median),
            yardstick: String::new(),
            ratio: ms,
            reach: Some(Reach::AtMost(500.0)),
        });
    }
    report.add(Row {
        what: "RSS when idle, embedded".into(),
        beside: String::new(),
        ours: format!("{:.1} MiB", rss.median),
        yardstick: String::new(),
        ratio: rss,
        reach: Some(Reach::AtMost(40.0)),
    });
    Ok(())
}
