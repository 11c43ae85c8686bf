//! Checks that every answer is true of the database at some moment between request and answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{KEY_LIFETIME, Question, Sim};
use crate::actors::entity::{Failure, Op, Refused, Write};
use crate::actors::patients::{Made, PatientReply, Patients};
use crate::domain::event::RecordedEvent;
use crate::domain::patient::{Patient, PatientCommand, PatientState};

impl Sim {
    pub(super) fn check(&self) -> Result<(), String> {
        for (n, question) in self.questions.iter().enumerate() {
            let Some((answered, result)) = &question.answer else {
                return Err(format!("question {n} was never answered"));
            };
            let held = |fits: &dyn Fn(&PatientState) -> bool| {
                self.db.held(question.id, question.asked, *answered, fits)
            };
            let is = |patient: &Arc<Patient>, state: &PatientState| {
                *state == PatientState::Active(Arc::clone(patient))
            };
            let good = match (&question.op, result) {
                (Op::Read, Ok(reply)) => reply.made == Made::Now && held(&|state| is(&reply.patient, state)),
                (Op::Read, Err(Failure::Refused(Refused::NotFound))) => {
                    held(&|state| !matches!(state, PatientState::Active(_)))
                }
                (Op::Read, Err(Failure::Refused(_) | Failure::Unknown)) => false,
                (Op::Write(write), Ok(reply)) if reply.made == Made::Nothing => {
                    changes_nothing(write, &reply.patient) && held(&|state| is(&reply.patient, state))
                }
                (Op::Write(write), Ok(reply)) => self.committed_once(question, write, reply, *answered),
                (Op::Write(write), Err(Failure::Refused(refused))) => {
                    self.refused_rightly(question, write, *refused, *answered)
                }
                (_, Err(_)) => true,
            };
            if !good {
                return Err(format!("question {n} on {} got a wrong answer: {result:?}", question.id));
            }
        }
        Ok(())
    }

    /// Returns the events of the question's command, with the steps at which they were committed.
    pub(super) fn events_of(
        &self,
        question: &Question,
        write: &Write<Patients>,
    ) -> Vec<&(u64, RecordedEvent)> {
        let events = self.db.events.get(&question.id).map(Vec::as_slice).unwrap_or_default();
        events.iter().filter(|(_, e)| e.command_id == write.command_id).collect()
    }

    fn committed_once(
        &self,
        question: &Question,
        write: &Write<Patients>,
        reply: &PatientReply,
        answered: u64,
    ) -> bool {
        let answer = &reply.patient;
        let mine = self.events_of(question, write);
        let [(step, recorded)] = *mine else { return false };
        // A repeated request may find the change of its first attempt, made before the repetition.
        let repeated = write.maybe_done || write.conditions.fingerprint.is_some();
        let in_time = *step <= answered && (repeated || *step >= question.asked);
        // Every answer to a command is the first one, and the change is the requested one.
        let same = recorded.event.patient() == answer && recorded.fingerprint == write.conditions.fingerprint;
        let mut before = self.db.events[&question.id].iter().map(|(_, e)| e.event.patient());
        let before = before.rfind(|p| p.version == answer.version - 1);
        let as_asked = match &write.command {
            PatientCommand::Register(_) => before.is_none(),
            _ if !write.conditions.meet(answer.version - 1) => false,
            PatientCommand::Patch(patch) => before.is_some_and(|before| {
                answer.details.name == *patch.name.as_ref().unwrap_or(&before.details.name)
                    && answer.details.email == before.details.email
            }),
            PatientCommand::Update(change) => answer.details.email == change.email,
            PatientCommand::Restrict(restricted) => answer.restricted == *restricted,
            PatientCommand::Delete => true,
        };
        // A change made before the request is reported as `Made::Before`.
        let told = reply.made == Made::Before || *step >= question.asked;
        in_time && same && as_asked && told
    }

    fn refused_rightly(
        &self,
        question: &Question,
        write: &Write<Patients>,
        refused: Refused,
        answered: u64,
    ) -> bool {
        let held =
            |fits: &dyn Fn(&PatientState) -> bool| self.db.held(question.id, question.asked, answered, fits);
        let mine = self.events_of(question, write);
        // A change made earlier under the key is reported, whatever the current state of the patient.
        let not_done = !mine.iter().any(|(step, _)| {
            *step < question.asked && (write.maybe_done || write.conditions.fingerprint.is_some())
        });
        match refused {
            Refused::NotFound => {
                not_done
                    && !matches!(write.command, PatientCommand::Register(_))
                    && held(&|state| !matches!(state, PatientState::Active(_)))
            }
            Refused::IdTaken => not_done && held(&|state| *state != PatientState::Absent),
            Refused::OtherVersion => {
                let other = |state: &PatientState| matches!(state, PatientState::Active(p) if !write.conditions.meet(p.version));
                not_done && held(&other)
            }
            Refused::EmailTaken => true,
            // Every caller here has access.
            Refused::Restricted => false,
            Refused::KeyReused => mine
                .iter()
                .any(|(step, e)| *step <= answered && e.fingerprint != write.conditions.fingerprint),
            Refused::KeyExpired => mine
                .iter()
                .any(|(step, e)| *step <= answered && question.answered_at.0 - e.at.0 >= KEY_LIFETIME),
        }
    }
}

/// Returns whether the command leaves `patient` unchanged. Only patches can, because names are never
/// repeated.
fn changes_nothing(write: &Write<Patients>, patient: &Patient) -> bool {
    let PatientCommand::Patch(patch) = &write.command else { return false };
    let same = |new: &Option<Box<str>>, old: &str| new.as_deref().is_none_or(|new| new == old);
    write.conditions.meet(patient.version)
        && same(&patch.name, &patient.details.name)
        && same(&patch.address, &patient.details.address)
}

/// The check has cases: the seeds reach every refusal and every repeated answer.
#[test]
fn the_seeds_reach_what_is_checked() {
    let mut reached = BTreeSet::new();
    for seed in 0..300 {
        let mut sim = Sim::new(seed, super::Flaw::None);
        sim.run(300);
        for question in &sim.questions {
            let Op::Write(write) = &question.op else { continue };
            let before = |(step, _): &&(u64, RecordedEvent)| *step < question.asked;
            match &question.answer {
                Some((_, Err(failure))) => _ = reached.insert(failure.as_str()),
                Some((_, Ok(reply))) if reply.made == Made::Nothing => _ = reached.insert("changes_nothing"),
                Some((_, Ok(_))) if sim.events_of(question, write).into_iter().any(|e| before(&e)) => {
                    reached.insert("answered_again");
                }
                _ => {}
            }
        }
    }
    for wanted in [
        "answered_again",
        "changes_nothing",
        "key_expired",
        "key_reused",
        "other_version",
        "id_taken",
        "not_found",
        "unknown",
    ] {
        assert!(reached.contains(wanted), "{wanted} is not among {reached:?}");
    }
}
