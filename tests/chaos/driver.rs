//! The clients of a run: many at the same time, over all fronts, on few patients and few addresses, so that they
//! get into each other's way. Everything they do is recorded.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::Api;
use crate::machinery::answers::Told;
use crate::machinery::history::{Call, Operation, Outcome, Recorder, Tag};

/// Clients at the same time.
const CLIENTS: u32 = 24;
/// Patients at the same time that everybody works on.
const SLOTS: usize = 10;
/// Operations on one patient; then another one takes the slot. The window of a check.
const LIFE_MAX: u32 = 150;
/// Operations on a patient once somebody wants it ended.
const AFTERLIFE_MAX: u32 = 12;
/// Contested addresses at the same time.
const ADDRESSES: usize = 3;
/// Operations on one contested address; then another one takes its place.
const CONTEST_MAX: u32 = 100;
/// How long a client thinks between two operations, at most.
const THINKS_MAX_MS: u64 = 40;
/// The same once nothing was done: what is away is not back at once, and attempts use lives up.
const SULKS_MAX_MS: u64 = 400;
/// Requests to any front, where only one serves: the others wait in vain, and keep their client from asking more.
const STRAYS_PERCENT: u8 = 10;
/// Registrations of one address at the same time, after a run.
const RIVALS: usize = 12;

/// A patient and the registration that made it.
#[derive(Clone, Copy)]
struct Known {
    id: Uuid,
    made_by: Tag,
}

#[derive(Default)]
struct Slot {
    patient: Option<Known>,
    left: u32,
    /// Somebody registers the next one.
    filling: bool,
}

#[derive(Default)]
struct Contest {
    generation: u32,
    used: u32,
    holder: Option<Known>,
}

/// What all clients share.
pub(crate) struct Driver {
    api: Api,
    pub(crate) recorder: Arc<Recorder>,
    tags: AtomicU64,
    slots: Vec<Mutex<Slot>>,
    contests: Vec<Mutex<Contest>>,
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
            let client = Client { driver: Arc::clone(self), number, rng, refused: false };
            clients.spawn(client.work());
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

    fn next_tag(&self) -> Tag {
        self.tags.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads a patient, and records it.
    pub(crate) async fn read(&self, client: u32, front: usize, id: Uuid, made_by: Tag) -> Outcome {
        let begun = self.begin(client, front, Some(Known { id, made_by }), Call::Read { listed: false });
        let told = self.api.read(front, id).await;
        self.finish(begun, &told)
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

    /// Many registrations of one new address at the same time over all fronts: how many were made, how many
    /// were refused as taken.
    pub(crate) async fn rivals(&self) -> (usize, usize) {
        let email = format!("rivals-{}@example.com", self.next_tag());
        let registrations = (0..RIVALS).map(|n| {
            let (tag, front, email) = (self.next_tag(), n % self.api.fronts(), email.clone());
            async move {
                let begun = self.begin(0, front, None, Call::Register(tag));
                let told = self.api.register(front, &email, tag).await;
                self.finish(begun, &told)
            }
        });
        let outcomes = join_all(registrations).await;
        let made = outcomes.iter().filter(|o| matches!(o, Outcome::Record { .. })).count();
        (made, outcomes.iter().filter(|o| **o == Outcome::Taken).count())
    }

    fn begin(&self, client: u32, front: usize, known: Option<Known>, call: Call) -> Operation {
        let made_by = match (known, call) {
            (Some(known), _) => known.made_by,
            (None, Call::Register(tag)) => tag,
            (None, _) => 0,
        };
        let (now, front) = (self.recorder.now(), u32::try_from(front).unwrap_or_default());
        let patient = known.map(|known| known.id);
        let (address, outcome) = (None, Outcome::Unknown);
        Operation { client, front, patient, address, made_by, call, invoked: now, returned: now, outcome }
    }

    fn finish(&self, mut operation: Operation, told: &Told) -> Outcome {
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
        if let (Some(serving), Outcome::Record { .. }) = (&self.serving, told.outcome) {
            serving.store(operation.front as usize, Ordering::Relaxed);
        }
        self.recorder.record(operation);
        told.outcome
    }
}

struct Client {
    driver: Arc<Driver>,
    number: u32,
    rng: fastrand::Rng,
    /// The last change was not done.
    refused: bool,
}

impl Client {
    async fn work(mut self) {
        while !self.driver.enough.load(Ordering::Relaxed) {
            match self.rng.u8(0..100) {
                0..6 => self.contest().await,
                6..8 => self.list().await,
                _ => self.serve_slot().await,
            }
            // The pace of the load, not a wait for anything.
            let refused = std::mem::take(&mut self.refused);
            let longest = if refused { SULKS_MAX_MS } else { THINKS_MAX_MS };
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..longest))).await;
        }
    }

    fn front(&mut self) -> usize {
        let any = self.rng.usize(0..self.driver.api.fronts());
        match &self.driver.serving {
            Some(serving) if self.rng.u8(0..100) >= STRAYS_PERCENT => serving.load(Ordering::Relaxed),
            _ => any,
        }
    }

    async fn serve_slot(&mut self) {
        let number = self.rng.usize(0..SLOTS);
        let known = {
            let mut slot = self.driver.slots[number].lock().expect("sane");
            match slot.patient {
                Some(known) if slot.left > 0 => {
                    slot.left -= 1;
                    Some(known)
                }
                _ if slot.filling => return,
                _ => {
                    slot.filling = true;
                    None
                }
            }
        };
        match known {
            Some(known) => self.operate(number, known).await,
            None => self.fill(number).await,
        }
    }

    async fn fill(&mut self, number: usize) {
        let (driver, front) = (Arc::clone(&self.driver), self.front());
        let tag = driver.next_tag();
        let begun = driver.begin(self.number, front, None, Call::Register(tag));
        let told = driver.api.register(front, &email_of(tag), tag).await;
        driver.finish(begun, &told);
        let mut slot = driver.slots[number].lock().expect("sane");
        slot.filling = false;
        slot.patient = told.patient.map(|id| Known { id, made_by: tag });
        slot.left = if matches!(told.outcome, Outcome::Record { .. }) { LIFE_MAX } else { AFTERLIFE_MAX };
    }

    async fn operate(&mut self, number: usize, known: Known) {
        let (driver, front) = (Arc::clone(&self.driver), self.front());
        let Known { id, made_by } = known;
        match self.rng.u8(0..100) {
            0..48 => {
                let outcome = driver.read(self.number, front, id, made_by).await;
                self.refused = outcome == Outcome::NotDone;
                // Sometimes what was read is changed, if it is still that.
                if let (Outcome::Record { version, .. }, 0..4) = (outcome, self.rng.u8(0..10)) {
                    let tag = driver.next_tag();
                    let begun = driver.begin(self.number, front, Some(known), Call::UpdateIf(tag, version));
                    let told = driver.api.update_if(front, id, version, (&email_of(made_by), tag)).await;
                    self.refused = driver.finish(begun, &told) == Outcome::NotDone;
                }
            }
            48..98 => {
                let tag = driver.next_tag();
                let begun = driver.begin(self.number, front, Some(known), Call::Update(tag));
                let told = driver.api.update(front, id, &email_of(made_by), tag).await;
                self.refused = driver.finish(begun, &told) == Outcome::NotDone;
            }
            _ => {
                {
                    let mut slot = driver.slots[number].lock().expect("sane");
                    slot.left = slot.left.min(AFTERLIFE_MAX);
                }
                let begun = driver.begin(self.number, front, Some(known), Call::Delete);
                let told = driver.api.delete(front, id).await;
                driver.finish(begun, &told);
            }
        }
    }

    /// Registers a contested address, or ends the record that has it.
    async fn contest(&mut self) {
        let (driver, front) = (Arc::clone(&self.driver), self.front());
        let number = self.rng.usize(0..ADDRESSES);
        let wants_end = self.rng.bool();
        let (address, holder) = {
            let mut contest = driver.contests[number].lock().expect("sane");
            contest.used += 1;
            if contest.used > CONTEST_MAX {
                *contest = Contest { generation: contest.generation + 1, used: 1, holder: None };
            }
            (contest.generation * ADDRESSES as u32 + number as u32, contest.holder.filter(|_| wants_end))
        };
        if let Some(holder) = holder {
            let begun = driver.begin(self.number, front, Some(holder), Call::Delete);
            let told = driver.api.delete(front, holder.id).await;
            driver.finish(Operation { address: Some(address), ..begun }, &told);
            return;
        }
        let tag = driver.next_tag();
        // The same address, however it is written.
        let name = if self.rng.bool() { "contested" } else { "Contested" };
        let begun = driver.begin(self.number, front, None, Call::Register(tag));
        let told = driver.api.register(front, &format!("{name}-{address}@example.com"), tag).await;
        driver.finish(Operation { address: Some(address), ..begun }, &told);
        let mut contest = driver.contests[number].lock().expect("sane");
        let same = contest.generation * ADDRESSES as u32 + number as u32 == address;
        if let Some(id) = told.patient.filter(|_| same && told.outcome != Outcome::Taken) {
            contest.holder = Some(Known { id, made_by: tag });
        }
    }

    /// One page of all records is a look at each patient that is known.
    async fn list(&mut self) {
        let (driver, front) = (Arc::clone(&self.driver), self.front());
        let known: Vec<_> =
            driver.slots.iter().filter_map(|slot| slot.lock().expect("sane").patient).collect();
        let call = Call::Read { listed: true };
        let begun: Vec<_> =
            known.iter().map(|known| driver.begin(self.number, front, Some(*known), call)).collect();
        match driver.api.list(front).await {
            Ok(listed) => {
                for operation in begun {
                    let found = listed.records.iter().find(|(id, ..)| operation.patient == Some(*id));
                    let outcome = match found {
                        Some((_, version, tag)) => Outcome::Record { version: *version, tag: *tag },
                        None if listed.complete => Outcome::Missing,
                        None => Outcome::Unknown,
                    };
                    driver.finish(operation, &Told { outcome, patient: None, surprise: None });
                }
            }
            Err(Some(surprise)) => driver.recorder.surprise(surprise),
            Err(None) => {}
        }
    }
}

fn email_of(made_by: Tag) -> String {
    format!("patient-{made_by}@example.com")
}
