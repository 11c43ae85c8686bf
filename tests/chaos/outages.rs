//! Who could not run when: nodes, by what was done to them, and this program, by its own heartbeat.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use crate::machinery::history::Recorder;
use crate::machinery::prompt::{Outage, Why};

/// The pause between two beats.
const BEAT: Duration = Duration::from_millis(10);
/// A beat that comes later than this means that the program was starved.
const LATE: Duration = Duration::from_millis(15);

/// All outages since the start of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    all: Mutex<Vec<(Why, Instant, Option<Instant>)>>,
}

impl Outages {
    /// It cannot run from now on.
    pub(crate) fn begin(&self, why: Why) {
        self.all.lock().expect("sane").push((why, Instant::now(), None));
    }

    /// It can run again.
    pub(crate) fn end(&self, why: Why) {
        let now = Instant::now();
        let mut all = self.all.lock().expect("sane");
        all.iter_mut().filter(|(w, _, to)| *w == why && to.is_none()).for_each(|(_, _, to)| *to = Some(now));
    }

    /// Records when this program gets no processor, until the handle is dropped.
    pub(crate) fn watch(self: &Arc<Self>) -> AbortOnDropHandle<()> {
        let outages = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let from = Instant::now();
                tokio::time::sleep(BEAT).await;
                if from.elapsed() > BEAT + LATE {
                    let starved = (Why::Starved, from + BEAT, Some(Instant::now()));
                    outages.all.lock().expect("sane").push(starved);
                }
            }
        }))
    }

    /// All of them, on the clock of a run. What is not over lasts until now.
    pub(crate) fn of(&self, recorder: &Recorder) -> Vec<Outage> {
        let now = Instant::now();
        let all = self.all.lock().expect("sane");
        let outage = |(why, from, to): &(Why, Instant, Option<Instant>)| Outage {
            why: *why,
            from: recorder.at(*from),
            to: recorder.at(to.unwrap_or(now)),
        };
        all.iter().map(outage).collect()
    }
}
