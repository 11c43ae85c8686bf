//! How long the disk takes to keep what it was given, at the time of a measurement. Some machines' disks
//! change by an order of magnitude within minutes: a durable commit beside another one means something
//! only if the disk was the same for both.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use crate::stats::percentile;
use crate::{Result, say};

const PAGE: [u8; 8192] = [7; 8192];
const PAGES: u64 = 1_024;
const LOOK: Duration = Duration::from_millis(300);
/// From here on the looks of one scenario differ too much for its ratios to be trusted.
const STEADY_FACTOR: f64 = 2.0;

/// The looks at the disk during one scenario.
#[derive(Default)]
pub(crate) struct Disk {
    looks_us: Vec<f64>,
}

impl Disk {
    /// Looks: the median of overwriting a page and syncing it, as a database does with its log.
    pub(crate) async fn look(&mut self) -> Result<()> {
        self.looks_us.push(tokio::task::spawn_blocking(sync_us).await??);
        Ok(())
    }

    /// For the table: what the looks saw, and whether it held.
    pub(crate) fn told(&self) -> String {
        let low = self.looks_us.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.looks_us.iter().copied().fold(0.0, f64::max);
        let unsteady =
            if high > low * STEADY_FACTOR { ", **not steady: do not trust this ratio**" } else { "" };
        say(&format!("disk: {low:.0} to {high:.0} us a sync{unsteady}"));
        format!("; disk {low:.0} to {high:.0} us a sync{unsteady}")
    }
}

fn sync_us() -> Result<f64> {
    let mut file: File = tempfile::tempfile()?;
    for _ in 0..PAGES {
        file.write_all(&PAGE)?;
    }
    file.sync_all()?;
    let mut samples_us = Vec::new();
    let began = Instant::now();
    for page in (0..PAGES).cycle() {
        if began.elapsed() > LOOK {
            break;
        }
        file.seek(SeekFrom::Start(page * PAGE.len() as u64))?;
        file.write_all(&PAGE)?;
        let asked = Instant::now();
        file.sync_data()?;
        samples_us.push(u32::try_from(asked.elapsed().as_micros())?);
    }
    samples_us.sort_unstable();
    Ok(percentile(&samples_us, 0.5))
}
