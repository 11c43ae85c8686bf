//! Tests of what an asker remembers between attempts. A scripted directory fails each attempt.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use uuid::Uuid;

use super::*;
use crate::actors::address::Address;
use crate::actors::patients::Patients;
use crate::clock::SystemClock;
use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::ids::CommandId;
use crate::domain::patient::PatientCommand;

/// How an attempt ends.
#[derive(Clone)]
enum Ends {
    With(Failure),
    /// The actor that holds the request dies.
    Dropped,
}

/// What the directory saw of an attempt: the command id and `maybe_done`.
type Try = (CommandId, bool);

/// Replaces the directory.
struct Scripted;

struct Script {
    ends: VecDeque<Ends>,
    tries: Arc<Mutex<Vec<Try>>>,
}

impl Actor for Scripted {
    type Msg = DirectoryMessage<Patients>;
    type State = Script;
    type Arguments = Script;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        script: Script,
    ) -> std::result::Result<Script, ActorProcessingErr> {
        Ok(script)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        script: &mut Script,
    ) -> std::result::Result<(), ActorProcessingErr> {
        let DirectoryMessage::Ask(ask) = message else { return Ok(()) };
        if let Op::Write(write) = &ask.op {
            script.tries.lock().unwrap().push((write.command_id, write.maybe_done));
        }
        match script.ends.pop_front() {
            Some(Ends::With(failure)) => ask.reply.send(Err(failure)),
            Some(Ends::Dropped) | None => drop(ask),
        }
        Ok(())
    }
}

/// Runs one deletion whose attempts end as `ends` says, and then are dropped until the deadline. Returns the
/// attempts and the caller's error.
async fn tries_of(ends: &[Ends], budget: Duration) -> (Vec<Try>, ErrorCode) {
    let tries = Arc::new(Mutex::new(Vec::new()));
    let script = Script { ends: ends.iter().cloned().collect(), tries: Arc::clone(&tries) };
    let (actor, _) = Actor::spawn(None, Scripted, script).await.expect("starts");
    let directory = Address::default();
    directory.set(actor.clone());
    let settings = AskSettings {
        pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(1),
        moving_pause: Duration::from_millis(1),
        moving_pause_max: Duration::from_millis(1),
        no_node_wait: Duration::ZERO,
        waiting_max: 10,
    };
    let asker = Asker::<Patients>::new(directory, Arc::new(SystemClock), settings);
    let ctx = RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget);
    let told = asker.write(&ctx, Uuid::from_u128(1), PatientCommand::Delete).await;
    actor.stop(None);
    let tries = std::mem::take(&mut *tries.lock().unwrap());
    (tries, told.map(drop).expect_err("no try succeeds").code)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_change_that_may_be_done_stays_so_whatever_later_tries_say() {
    let refused = || Ends::With(Failure::Refused(crate::actors::entity::Refused::NotFound));
    // A dropped attempt may still be in transit. After a commit of unknown outcome the shard has a new epoch,
    // so nothing is in transit.
    let ends =
        [(Ends::Dropped, ErrorCode::OutcomeUnknown), (Ends::With(Failure::Unknown), ErrorCode::NotFound)];
    for (lost, expected) in ends {
        let ends = [
            Ends::With(Failure::NotServing(None)),
            lost,
            Ends::With(Failure::NotServing(None)),
            Ends::With(Failure::Busy),
            Ends::With(Failure::Unavailable),
            refused(),
        ];
        let (tries, told) = tries_of(&ends, LONG).await;
        let maybe_done: Vec<_> = tries.iter().map(|(_, maybe_done)| *maybe_done).collect();
        // After the first attempt nothing was done. The second attempt leaves the outcome unknown, so
        // `maybe_done` is set from the third on.
        assert_eq!(maybe_done, [false, false, true, true, true, true]);
        assert!(tries.iter().all(|(command, _)| *command == tries[0].0), "one command id for all tries");
        assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn a_change_that_may_be_done_is_never_called_undone_at_the_end() {
    let budget = Duration::from_millis(300);
    for last in [Failure::NotServing(None), Failure::Busy, Failure::Unavailable, Failure::Unsupported] {
        let name = last.as_str();
        let mut ends = vec![Ends::With(Failure::Unknown)];
        ends.extend(std::iter::repeat_n(Ends::With(last), 1_000));
        let (tries, told) = tries_of(&ends, budget).await;
        assert_eq!(told, ErrorCode::OutcomeUnknown, "{name}, after {} tries", tries.len());
        assert!(tries.len() > 2, "{name}");
    }
}

#[tokio::test]
async fn a_change_that_was_not_begun_is_called_so_and_not_tried_again() {
    for (last, code) in [
        (Failure::Busy, ErrorCode::Overloaded),
        (Failure::Unavailable, ErrorCode::Unavailable),
        (Failure::Unsupported, ErrorCode::Unavailable),
        (Failure::Expired, ErrorCode::DeadlineExceeded),
    ] {
        let name = last.as_str();
        let (tries, told) = tries_of(&[Ends::With(last)], LONG).await;
        assert_eq!((tries.len(), told), (1, code), "{name}");
    }
}

#[tokio::test]
async fn one_that_nobody_serves_until_the_deadline_was_not_done() {
    let ends = vec![Ends::With(Failure::NotServing(None)); 1_000];
    let (tries, told) = tries_of(&ends, Duration::from_millis(300)).await;
    assert_eq!(told, ErrorCode::Unavailable);
    assert!(tries.len() > 2 && tries.iter().all(|(_, maybe_done)| !maybe_done), "{tries:?}");
}
