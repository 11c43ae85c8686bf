//! New epochs, step by step: what survives one, what does not, and which requests wait for it.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::domain::patient::Patient;

type Answer = Result<PatientReply, Failure>;

/// A core with its results: the answers by ticket, and the effects that it requests.
struct Stage {
    core: Core<Patients, Ticket>,
    world: SimWorld,
    tickets: Ticket,
    answers: HashMap<Ticket, Answer>,
    loads: Vec<Uuid>,
    appends: Vec<PatientAppend>,
    refences: usize,
    lost: bool,
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn loaded(id: Uuid, version: i64) -> store::Result<Loaded<Patients>> {
    let patient = Patient {
        id: PatientId(id),
        version,
        created_at: Timestamp(0),
        restricted: false,
        details: details(1),
    };
    Ok(Loaded { state: PatientState::Active(Arc::new(patient)), applied: None })
}

fn change() -> Op<Patients> {
    Op::Write(Write {
        command: PatientCommand::Patch(PatientPatch { name: Some("n2".into()), ..PatientPatch::default() }),
        conditions: Conditions::default(),
        command_id: CommandId(Uuid::new_v4()),
        caller: Caller::system("s"),
        traceparent: "t".into(),
        maybe_done: false,
    })
}

impl Stage {
    fn new() -> Self {
        Stage {
            core: Core::new(0, Epoch(1), Limits { hot_entities_max: 9, active_entities_max: 9, ..LIMITS }),
            world: SimWorld::new(Flaw::None),
            tickets: 0,
            answers: HashMap::new(),
            loads: Vec::new(),
            appends: Vec::new(),
            refences: 0,
            lost: false,
        }
    }

    fn ask(&mut self, id: Uuid, op: Op<Patients>) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let trace = TraceContext { trace_id: 1, span_id: 1, parent_id: 0, sampled: false };
        self.core.request(Request { id, op, deadline: MonoTime(1_000), trace, ticket }, &self.world);
        self.collect();
        ticket
    }

    /// Reads an entity that is not in memory, and loads it.
    fn load(&mut self, id: Uuid, version: i64) -> i64 {
        let ticket = self.ask(id, Op::Read);
        self.end_load(id, version);
        self.version_told(ticket)
    }

    fn end_load(&mut self, id: Uuid, version: i64) {
        self.core.loaded(id, loaded(id, version), &self.world);
        self.collect();
    }

    fn end_append(&mut self, id: Uuid, result: AppendResult) {
        self.core.appended(id, result, &self.world);
        self.collect();
    }

    /// Makes a change whose commit ends with an unknown outcome, so that the shard requests a new epoch.
    fn lose_an_answer(&mut self, id: Uuid) {
        self.load(id, 1);
        self.ask(id, change());
        self.end_append(id, Err(NotCommitted::Store(store::Error::Unknown("as asked".into()))));
        assert_eq!(self.refences, 1);
    }

    fn collect(&mut self) {
        let mut effects = Vec::new();
        self.core.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Reply(ticket, answer) => {
                    assert!(self.answers.insert(ticket, answer).is_none(), "{ticket} was answered twice");
                }
                Effect::Load { id, .. } => self.loads.push(id),
                Effect::Append { append, .. } => self.appends.push(append),
                Effect::Refence => self.refences += 1,
                Effect::Lost => self.lost = true,
            }
        }
    }

    fn version_told(&self, ticket: Ticket) -> i64 {
        self.answers[&ticket].as_ref().expect("a record").patient.version
    }

    fn is_not_serving(&self, ticket: Ticket) -> bool {
        self.answers.get(&ticket).is_some_and(|answer| *answer == Err(Failure::NotServing(None)))
    }
}

#[test]
fn the_next_epoch_keeps_what_is_in_memory() {
    let mut stage = Stage::new();
    stage.load(id(1), 7);
    stage.lose_an_answer(id(2));
    stage.core.refenced(Epoch(2), &stage.world);
    stage.collect();
    let loads = stage.loads.len();
    let read = stage.ask(id(1), Op::Read);
    assert_eq!(stage.version_told(read), 7);
    assert_eq!(stage.loads.len(), loads, "it was in memory");
    stage.ask(id(1), change());
    assert_eq!(stage.appends.last().map(|append| append.epoch), Some(Epoch(2)));
    assert!(!stage.lost);
}

#[test]
fn an_epoch_that_is_not_the_next_one_ends_what_was_remembered_loaded_and_awaited() {
    for epoch in [Epoch(3), Epoch(1)] {
        let mut stage = Stage::new();
        stage.load(id(1), 7);
        let loading = stage.ask(id(3), Op::Read);
        stage.load(id(4), 1);
        let committing = stage.ask(id(4), change());
        let behind = stage.ask(id(4), Op::Read);
        stage.lose_an_answer(id(2));

        // Another owner had epoch 2, and may have changed everything.
        stage.core.refenced(epoch, &stage.world);
        stage.collect();
        let read = stage.ask(id(1), Op::Read);
        assert!(stage.is_not_serving(read), "answered from memory: {:?}", stage.answers.get(&read));
        stage.end_load(id(3), 1);
        assert!(stage.is_not_serving(loading), "it may have been read before the other owner's change");
        assert!(stage.lost, "the region is told, for a new incarnation to begin with an empty memory");
        // The result of the commit does not depend on the lease. The state after it is not known.
        stage.end_append(id(4), Ok(AppendOutcome::Committed));
        assert_eq!(stage.version_told(committing), 2);
        assert!(stage.is_not_serving(behind), "{:?}", stage.answers.get(&behind));
        assert!(stage.core.is_idle());
    }
}
