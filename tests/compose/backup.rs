//! The backup and the restore of docs/OPERATIONS.md, line by line as they stand there: from the cluster that runs into
//! another project, whose volumes are empty.

use std::time::Instant;

use crate::cluster::Cluster;
use crate::docker::{docker, top};
use crate::machinery::history::{Email, Outcome};

/// The project that is restored into.
pub(crate) const RESTORED: &str = "hygeia-compose-restored";

/// The lines of the first block of commands under a heading of the handbook.
fn lines_under(heading: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(top().join("docs/OPERATIONS.md")).map_err(|e| e.to_string())?;
    let section = text.split_once(&format!("\n{heading}\n")).map(|(_, section)| section);
    let block = section.and_then(|section| section.split_once("```sh\n")?.1.split_once("```"));
    block
        .map(|(lines, _)| lines.to_owned())
        .ok_or_else(|| format!("OPERATIONS.md has no commands under {heading:?}"))
}

/// Backs the cluster up, stops it, restores it elsewhere, and looks whether everything is there.
pub(crate) async fn restored(cluster: &Cluster) -> Result<(), String> {
    println!("a backup, restored in another project");
    let begun = Instant::now();
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (old, token) = (cluster.api().await?, cluster.token().await?);
    let register = async |tag| old.try_register(0, tag).await.ok_or("no patient is registered");
    let kept = register(fastrand::u64(1 << 50..1 << 51)).await?;
    cluster.compose.script(&lines_under("### Back up the cluster in containers")?, directory.path()).await?;
    let lost = register(fastrand::u64(1 << 51..1 << 52)).await?;
    // Two clusters at once would be too much for a small machine.
    cluster.compose.run(&["stop", "-t", "20"]).await?;

    let other = Cluster::prepare(cluster.compose.beside(RESTORED))?;
    // What a run that was cut off has left.
    other.compose.run(&["down", "-v", "--remove-orphans"]).await.ok();
    let tried = async {
        other
            .compose
            .script(&lines_under("### Restore the cluster in containers")?, directory.path())
            .await?;
        let other = other.ready().await?;
        if other.password != cluster.password {
            return Err("the restored cluster has other secrets".to_owned());
        }
        println!("  it is restored, and every node healthy, after {:.1} s", begun.elapsed().as_secs_f64());
        let api = other.api().await?;
        // The token that was given before holds, so its key could be read: the secret that encrypts it is there.
        for (token, how) in [(&token, "with a token of before"), (&other.token().await?, "with a new token")]
        {
            for (patient, expected) in [(kept, 200), (lost, 404)] {
                let status = other.read_with(token, patient).await?;
                if status != expected {
                    return Err(format!("{how}: {status} instead of {expected}"));
                }
            }
        }
        let tag = fastrand::u64(1 << 52..1 << 53);
        let new = api.try_register(0, tag).await.ok_or("the restored cluster registers nobody")?;
        let (_, _, account) = api.open_account(0, new, (tag, Email::Own)).await;
        if !matches!(account.outcome, Outcome::Account(_)) {
            return Err(format!("no account is opened: {:?}", account.outcome));
        }
        let front = other.compose.container("front").await?;
        for command in [["user", "list"], ["keys", "list"], ["cluster", "status"], ["audit", "verify"]] {
            let said = docker(&["exec", &front, "hygeia", command[0], command[1]]).await?;
            println!("  hygeia {}: {}", command.join(" "), said.lines().last().unwrap_or_default());
        }
        Ok(())
    };
    let tried = tried.await;
    cluster.compose.beside(RESTORED).run(&["down", "-v", "--remove-orphans", "-t", "20"]).await?;
    tried
}
