//! What one client does at a time: mostly one operation, sometimes a second one that follows from it.

use std::sync::Arc;
use std::time::Instant;

use crate::driver::{Driver, Known};
use crate::machinery::answers::Told;
use crate::machinery::history::{Call, Email, Look, Outcome, Part};
use crate::machinery::prompt::{Heard, Try};

/// Patients at the same time that everybody changes.
pub(crate) const BUSY: usize = 12;
/// Patients at the same time that are mostly read. A node that has lost its lease could change one of them and nobody
/// would notice, were it not fenced.
const QUIET: usize = 24;
/// All of them.
pub(crate) const SLOTS: usize = BUSY + QUIET;
/// Operations on one patient; then another one takes the slot. It bounds the window of a check, and is more than a
/// patient gets while the longest fault lasts.
const LIFE_MAX: u32 = 1_200;
/// Operations on a patient that is not known to be there, or that somebody has ended.
const AFTERLIFE_MAX: u32 = 12;
/// Contested addresses at the same time.
pub(crate) const ADDRESSES: usize = 3;
/// Operations on one contested address; then another one takes its place.
const CONTEST_MAX: u32 = 300;
/// Patients that contest one address at the same time.
const CONTESTANTS_MAX: usize = 3;

/// A place for a patient.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) patient: Option<Known>,
    left: u32,
    /// Somebody registers the next one.
    filling: bool,
    /// Somebody restricts the record for a moment.
    restricting: bool,
    /// Until then a quiet patient is only read.
    pub(crate) read_only_until: Option<Instant>,
}

/// An address that several patients want.
#[derive(Default)]
pub(crate) struct Contest {
    generation: u32,
    used: u32,
    contestants: Vec<Known>,
}

impl Contest {
    fn address(&self, number: usize) -> u32 {
        self.generation * ADDRESSES as u32 + number as u32
    }
}

/// One act.
pub(crate) struct Act {
    pub(crate) driver: Arc<Driver>,
    pub(crate) client: u32,
    pub(crate) front: usize,
    /// Whether the client waits for an earlier answer.
    pub(crate) waiting: bool,
    pub(crate) rng: fastrand::Rng,
}

impl Act {
    /// Plays it. Whether the last answer was that nothing was done.
    pub(crate) async fn play(mut self) -> bool {
        let (busy, quiet) = (self.rng.usize(..BUSY), self.rng.usize(BUSY..SLOTS));
        let outcome = match self.rng.u8(0..100) {
            // When the front goes on, what it is asked first shows whether its memory is stale.
            _ if self.waiting && self.rng.u8(0..10) < 6 => self.serve_slot(quiet).await,
            0..8 => self.contest().await,
            8..10 => {
                self.list().await;
                None
            }
            10..35 => self.serve_slot(quiet).await,
            _ => self.serve_slot(busy).await,
        };
        outcome == Some(Outcome::NotDone)
    }

    async fn perform(&self, known: Option<Known>, call: Call, keyed: bool) -> Told {
        self.driver.perform(self.client, self.front, known, call, keyed).await
    }

    async fn serve_slot(&mut self, number: usize) -> Option<Outcome> {
        let known = {
            let mut slot = self.driver.slots[number].lock().expect("sane");
            match slot.patient {
                Some(known) if slot.left > 0 => {
                    slot.left -= 1;
                    Some(known)
                }
                _ if slot.filling => return None,
                _ => {
                    slot.filling = true;
                    None
                }
            }
        };
        match known {
            Some(known) if number >= BUSY => Some(self.leave_quiet(number, known).await),
            Some(known) => Some(self.operate(number, known).await),
            None => Some(self.fill(number).await),
        }
    }

    async fn fill(&mut self, number: usize) -> Outcome {
        let tag = self.driver.next_tag();
        let (email, keyed) = (Email::Own, self.rng.bool());
        let told = self.perform(None, Call::Register { tag, email }, keyed).await;
        let mut slot = self.driver.slots[number].lock().expect("sane");
        slot.filling = false;
        slot.patient = told.patient.map(|id| Known { id, made_by: tag, email, version: 1 });
        slot.left = if matches!(told.outcome, Outcome::Record(_)) { LIFE_MAX } else { AFTERLIFE_MAX };
        told.outcome
    }

    /// A read of a quiet patient; seldom a change.
    async fn leave_quiet(&mut self, number: usize, known: Known) -> Outcome {
        let (tag, chance) = (self.driver.next_tag(), self.rng.u8(0..100));
        let read_only_until = self.driver.slots[number].lock().expect("sane").read_only_until;
        let may_change = read_only_until.is_none_or(|until| Instant::now() >= until);
        let call = match chance {
            0..4 if may_change => Call::Patch { tag, part: Part::Address, expected: None },
            4..7 => Call::Look(Look::History),
            _ => Call::Look(Look::Get),
        };
        self.perform(Some(known), call, false).await.outcome
    }

    /// One operation on the patient of a slot, and sometimes one that follows from it.
    async fn operate(&mut self, number: usize, known: Known) -> Outcome {
        let known = Some(known);
        let outcome = match self.rng.u16(0..1_000) {
            0..400 => self.look_and_change(known).await,
            400..440 => self.perform(known, Call::Look(Look::History), false).await.outcome,
            440..470 => self.perform(known, Call::Look(Look::Searched(Email::Own)), false).await.outcome,
            470..500 => self.restrict_for_a_moment(number, known).await,
            500..520 => self.perform(known, Call::OpenAccount, false).await.outcome,
            520..522 => self.end(number, known).await,
            522..860 => {
                let email = if self.rng.u8(0..10) == 0 { Email::Second } else { Email::Own };
                let call = Call::Put { tag: self.driver.next_tag(), email, expected: None };
                self.perform(known, call, false).await.outcome
            }
            _ => {
                let part = match self.rng.u8(0..10) {
                    0..5 => Part::Name,
                    5..9 => Part::Address,
                    _ => Part::Email(Email::Second),
                };
                let call = Call::Patch { tag: self.driver.next_tag(), part, expected: None };
                let keyed = self.rng.u8(0..10) < 4;
                self.perform(known, call, keyed).await.outcome
            }
        };
        let version = match outcome {
            Outcome::Record(record) => record.version,
            Outcome::At { version, .. } => version,
            _ => return outcome,
        };
        let mut slot = self.driver.slots[number].lock().expect("sane");
        let same = slot.patient.as_mut().filter(|patient| known.is_some_and(|known| known.id == patient.id));
        if let Some(patient) = same {
            patient.version = patient.version.max(version);
        }
        outcome
    }

    /// Sometimes what was read is changed, if it is still that.
    async fn look_and_change(&mut self, known: Option<Known>) -> Outcome {
        let outcome = self.perform(known, Call::Look(Look::Get), false).await.outcome;
        let Outcome::Record(record) = outcome else { return outcome };
        let (tag, expected) = (self.driver.next_tag(), Some(record.version));
        let call = match self.rng.u8(0..10) {
            0..3 => Call::Put { tag, email: record.email, expected },
            3 => Call::Patch { tag, part: Part::Address, expected },
            _ => return outcome,
        };
        let keyed = matches!(call, Call::Patch { .. }) && self.rng.bool();
        self.perform(known, call, keyed).await.outcome
    }

    /// Restricts a record and takes the restriction back, unless another client does that just now.
    async fn restrict_for_a_moment(&mut self, number: usize, known: Option<Known>) -> Outcome {
        let slot = |restricting: bool| {
            let mut slot = self.driver.slots[number].lock().expect("sane");
            std::mem::replace(&mut slot.restricting, restricting)
        };
        if slot(true) {
            return self.perform(known, Call::Look(Look::Get), false).await.outcome;
        }
        let mut outcome = self.perform(known, Call::Restrict { on: true }, false).await.outcome;
        if outcome == Outcome::Done {
            self.perform(known, Call::Look(Look::Searched(Email::Own)), false).await;
            outcome = self.perform(known, Call::Restrict { on: false }, false).await.outcome;
        }
        slot(false);
        outcome
    }

    async fn end(&mut self, number: usize, known: Option<Known>) -> Outcome {
        {
            let mut slot = self.driver.slots[number].lock().expect("sane");
            slot.left = slot.left.min(AFTERLIFE_MAX);
        }
        let expected = known.map(|known| known.version).filter(|_| self.rng.bool());
        self.perform(known, Call::Delete { expected }, false).await.outcome
    }

    /// Something about a contested address, or a patient that contests it.
    async fn contest(&mut self) -> Option<Outcome> {
        let number = self.rng.usize(0..ADDRESSES);
        let (address, contestant) = {
            let mut contest = self.driver.contests[number].lock().expect("sane");
            contest.used += 1;
            if contest.used > CONTEST_MAX {
                *contest = Contest { generation: contest.generation + 1, used: 1, contestants: Vec::new() };
            }
            let room = contest.contestants.len() < CONTESTANTS_MAX;
            let any = self.rng.choice(&contest.contestants).copied();
            (contest.address(number), any.filter(|_| !room || self.rng.u8(0..4) > 0))
        };
        let email = Email::Contested(address);
        let Some(known) = contestant else { return Some(self.enter(number, address).await) };
        let tag = self.driver.next_tag();
        let call = match self.rng.u8(0..20) {
            0 => Call::Delete { expected: None },
            1..5 => Call::Put { tag, email, expected: None },
            5..9 => Call::Patch { tag, part: Part::Email(email), expected: None },
            9..12 => Call::Put { tag, email: Email::Own, expected: None },
            12..15 => Call::Look(Look::Searched(email)),
            _ => Call::Look(Look::Get),
        };
        let keyed = matches!(call, Call::Patch { .. }) && self.rng.bool();
        let outcome = self.perform(Some(known), call, keyed).await.outcome;
        let looks_for_address = matches!(call, Call::Look(Look::Searched(_)));
        if matches!(outcome, Outcome::Ended) || outcome == Outcome::Missing && !looks_for_address {
            let mut contest = self.driver.contests[number].lock().expect("sane");
            contest.contestants.retain(|contestant| contestant.id != known.id);
        }
        Some(outcome)
    }

    /// A registration with a contested address.
    async fn enter(&mut self, number: usize, address: u32) -> Outcome {
        let (tag, email) = (self.driver.next_tag(), Email::Contested(address));
        let keyed = self.rng.bool();
        let told = self.perform(None, Call::Register { tag, email }, keyed).await;
        let mut contest = self.driver.contests[number].lock().expect("sane");
        let known =
            told.patient.filter(|_| told.outcome != Outcome::Taken && contest.address(number) == address);
        contest.contestants.extend(known.map(|id| Known { id, made_by: tag, email, version: 1 }));
        told.outcome
    }

    /// One page of all records is a look at each patient that is known.
    async fn list(&mut self) {
        let driver = &self.driver;
        let known: Vec<_> =
            driver.slots.iter().filter_map(|slot| slot.lock().expect("sane").patient).collect();
        let begin =
            |known: &Known| driver.begin(self.client, self.front, Some(*known), Call::Look(Look::Listed));
        let (sent, begun) = (driver.recorder.now(), known.iter().map(begin).collect::<Vec<_>>());
        let listed = driver.api().list(self.front).await;
        let heard = listed.as_ref().map_or_else(|(heard, _)| *heard, |_| Heard::Answered);
        let (node, returned) = (driver.api().node_of(self.front), driver.recorder.now());
        driver.recorder.tried(Try { node, sent, returned, heard });
        match listed {
            Ok(listed) => {
                for operation in begun {
                    let outcome = listed.look_for(operation.patient);
                    driver.finish(operation, self.front, &Told::plain(outcome));
                }
            }
            Err((_, Some(surprise))) => driver.recorder.surprise(surprise),
            Err((_, None)) => {}
        }
    }
}
