//! The clients of a run: many at the same time, over all fronts, on few patients and few addresses, so that they get
//! into each other's way. Everything they do is recorded.
//!
//! Each client has a front of its own. While that front does not answer, the client goes on asking it, on further
//! connections and ever more slowly, and the clients of the other fronts go on as before.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::act::{ADDRESSES, Act, Contest, SLOTS, Slot};
use crate::api::{Api, CLIENT_TIMEOUT, Request};
use crate::machinery::answers::Told;
use crate::machinery::history::{Call, Email, Look, Operation, Outcome, Recorder, Tag};
use crate::machinery::prompt::Try;

/// Clients at the same time, shared among the fronts.
pub(crate) const CLIENTS: u32 = 24;
/// Acts of one client at the same time: one, and those whose answer takes longer than `PATIENT`.
const OPEN_MAX: usize = 6;
/// How long a client waits for an act before it begins another, for each that is open.
const PATIENT: Duration = Duration::from_millis(400);
/// How long a client pauses between two acts, at most.
const PAUSE_MAX_MS: u64 = 40;
/// The same after an answer that says that nothing was done: another try at once would only use up the window.
const REFUSED_PAUSE_MAX_MS: u64 = 400;
/// Requests to any front, where only one serves: the others wait in vain and keep their client from asking more.
const STRAYS_PERCENT: u8 = 10;
/// Requests of a client to other fronts than its own.
const VISITS_PERCENT: u8 = 10;
/// How often a request under an `Idempotency-Key` is sent at most.
const TRIES_MAX: u32 = 4;
/// How long a client waits before it sends such a request again.
const AGAIN_AFTER: Duration = Duration::from_millis(2_500);
/// Registrations of one address at the same time, after a run.
const RIVALS: usize = 12;

/// A patient that somebody registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) id: Uuid,
    pub(crate) made_by: Tag,
    /// The address it was registered with.
    pub(crate) email: Email,
    /// A version that was seen.
    pub(crate) version: i64,
}

/// What all clients share.
pub(crate) struct Driver {
    api: Api,
    pub(crate) recorder: Arc<Recorder>,
    tags: AtomicU64,
    pub(crate) slots: Vec<Mutex<Slot>>,
    pub(crate) contests: Vec<Mutex<Contest>>,
    enough: AtomicBool,
    /// Where the last change was made: of fronts that know nothing of each other one serves.
    serving: Option<AtomicUsize>,
}

impl Driver {
    /// `equal`: whether any front serves any request.
    pub(crate) fn new(api: Api, equal: bool) -> Arc<Self> {
        Arc::new(Driver {
            api,
            recorder: Recorder::new(),
            tags: AtomicU64::new(1),
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
            contests: (0..ADDRESSES).map(|_| Mutex::default()).collect(),
            enough: AtomicBool::new(false),
            serving: (!equal).then(AtomicUsize::default),
        })
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// Starts all clients; what they choose follows from `seed`.
    pub(crate) fn start(self: &Arc<Self>, seed: u64) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for number in 1..=CLIENTS {
            let rng = fastrand::Rng::with_seed(seed ^ (u64::from(number) << 32));
            clients.spawn(Client { driver: Arc::clone(self), number, rng }.work());
        }
        clients
    }

    /// Tells the clients to end what they do, and waits for them.
    pub(crate) async fn stop(&self, mut clients: JoinSet<()>) {
        self.enough.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client panics");
        }
    }

    pub(crate) fn next_tag(&self) -> Tag {
        self.tags.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads a patient, and records it.
    pub(crate) async fn read(&self, front: usize, id: Uuid, made_by: Tag) -> Outcome {
        let known = Known { id, made_by, email: Email::Own, version: 1 };
        self.perform(0, front, Some(known), Call::Look(Look::Get), false).await.outcome
    }

    /// Through which fronts everything can be read once all is well: each by itself, or one of them, the likely
    /// one first.
    pub(crate) fn ways(&self) -> Vec<Vec<usize>> {
        let all = || 0..self.api.fronts();
        match &self.serving {
            Some(serving) => {
                let likely = serving.load(Ordering::Relaxed);
                vec![std::iter::once(likely).chain(all().filter(|front| *front != likely)).collect()]
            }
            None => all().map(|front| vec![front]).collect(),
        }
    }

    /// Many registrations of one new address at the same time over all fronts: how many were made, how many were
    /// refused as taken.
    pub(crate) async fn rivals(&self) -> (usize, usize) {
        // No contest uses such a number.
        let email = Email::Contested(u32::MAX - u32::try_from(self.next_tag()).unwrap_or_default());
        let registrations = (0..RIVALS).map(|n| {
            let (tag, front) = (self.next_tag(), n % self.api.fronts());
            self.perform(0, front, None, Call::Register { tag, email }, false)
        });
        let outcomes: Vec<_> = join_all(registrations).await.into_iter().map(|told| told.outcome).collect();
        let made = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Record(_))).count();
        (made, outcomes.iter().filter(|outcome| **outcome == Outcome::Taken).count())
    }

    /// Asks and records it. With `keyed` the request carries an `Idempotency-Key`, and is sent again, to other fronts
    /// by turns, until it is known what became of it.
    pub(crate) async fn perform(
        &self,
        client: u32,
        front: usize,
        known: Option<Known>,
        call: Call,
        keyed: bool,
    ) -> Told {
        let mut operation = self.begin(client, front, known, call);
        let key = keyed.then(|| format!("{}-{}", operation.made_by, call.tag().unwrap_or_default()));
        let (mut asked, mut in_doubt) = (front, false);
        loop {
            let last = key.is_none() || operation.tries >= TRIES_MAX;
            let wait = if last { CLIENT_TIMEOUT } else { AGAIN_AFTER };
            let (node, heard, mut told) = match (call, known) {
                (Call::OpenAccount, Some(known)) => {
                    let place = asked % self.api.accounts();
                    self.api.open_account(place, known.id, (known.made_by, known.email)).await
                }
                _ => {
                    let version = known.map_or(0, |known| known.version);
                    let (patient, made_by) = (operation.patient, operation.made_by);
                    let request =
                        Request { call, patient, made_by, known: version, key: key.as_deref(), wait };
                    let (heard, told) = self.api.ask(asked, request).await;
                    (self.api.node_of(asked), heard, told)
                }
            };
            let returned = self.recorder.now();
            operation.front = node as u32;
            self.recorder.tried(Try { node, sent: operation.sent, returned, heard });
            in_doubt |= told.outcome == Outcome::Unknown;
            if !last && matches!(told.outcome, Outcome::Unknown | Outcome::NotDone) {
                asked = (asked + 1) % self.api.fronts();
                operation.tries += 1;
                operation.sent = returned;
                continue;
            }
            // An earlier try may still be on its way, whatever the last one was refused for.
            if in_doubt && !matches!(told.outcome, Outcome::Record(_)) {
                told.outcome = Outcome::Unknown;
            }
            self.finish(operation, asked, &told);
            return told;
        }
    }

    /// The beginning of an operation at a front.
    pub(crate) fn begin(&self, client: u32, front: usize, known: Option<Known>, call: Call) -> Operation {
        let made_by = known.map(|known| known.made_by).or(call.tag()).unwrap_or_default();
        let now = self.recorder.now();
        Operation {
            client,
            front: self.api.node_of(front) as u32,
            patient: known.map(|known| known.id),
            made_by,
            call,
            invoked: now,
            sent: now,
            returned: now,
            due: Duration::MAX,
            tries: 1,
            outcome: Outcome::Unknown,
        }
    }

    /// Records the end of an operation whose last answer came from a front.
    pub(crate) fn finish(&self, mut operation: Operation, front: usize, told: &Told) {
        operation.returned = self.recorder.now();
        operation.outcome = told.outcome;
        if let Some(surprise) = &told.surprise {
            self.recorder.surprise(format!("{surprise} at {:.3} s", operation.returned.as_secs_f64()));
        }
        match (operation.patient, told.patient) {
            (Some(asked), Some(answered)) if asked != answered => {
                self.recorder.surprise("an answer about another patient than was asked for".into());
            }
            _ => {}
        }
        operation.patient = operation.patient.or(told.patient);
        if let (Some(serving), Outcome::Record(_)) = (&self.serving, told.outcome) {
            serving.store(front, Ordering::Relaxed);
        }
        self.recorder.record(operation);
    }
}

struct Client {
    driver: Arc<Driver>,
    number: u32,
    rng: fastrand::Rng,
}

impl Client {
    async fn work(mut self) {
        let mut open = JoinSet::new();
        while !self.driver.enough.load(Ordering::Relaxed) {
            let (front, rng) = (self.front(), self.rng.fork());
            let (driver, waiting) = (Arc::clone(&self.driver), !open.is_empty());
            open.spawn(Act { driver, client: self.number, front, waiting, rng }.play());
            let patience = PATIENT * open.len() as u32;
            let mut refused = false;
            // What is not answered for long is left open: the load goes on.
            if let Ok(Some(ended)) = tokio::time::timeout(patience, open.join_next()).await {
                refused = ended.expect("no act panics");
            }
            while open.len() >= OPEN_MAX {
                open.join_next().await;
            }
            // The pace of the load, not a wait for anything.
            let longest = if refused { REFUSED_PAUSE_MAX_MS } else { PAUSE_MAX_MS };
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..longest))).await;
        }
        while open.join_next().await.is_some() {}
    }

    fn front(&mut self) -> usize {
        let fronts = self.driver.api.fronts();
        let (own, any) = (self.number as usize % fronts, self.rng.usize(0..fronts));
        let chance = self.rng.u8(0..100);
        match &self.driver.serving {
            Some(serving) if chance >= STRAYS_PERCENT => serving.load(Ordering::Relaxed),
            None if chance >= VISITS_PERCENT => own,
            _ => any,
        }
    }
}
