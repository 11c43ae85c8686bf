//! A question to a local actor and its answer: ours, ractor as it is, and actix.

pub(crate) mod ours;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor as _, Addr, Context, Handler, Message};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::report::{Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::{Effort, Result, say};

/// How many ask at the same time, beside one alone.
pub(crate) const MANY: usize = 64;

/// Nanoseconds per ask with one asker, and asks per second with many.
struct Measured {
    one_ns: f64,
    many_rate: f64,
}

/// Asks each by turns.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let (bare, _) = ractor::Actor::spawn(None, Bare, ()).await?;
    let actix = start_actix()?;
    let chain = ours::Ours::start().await?;
    let ask_bare = async |_| {
        let asked = bare.clone();
        measure(effort.measured, move || ask_ractor(asked.clone())).await
    };
    let ask_ours = async |_| {
        let asked = chain.asked();
        measure(effort.measured, move || asked.clone().ask()).await
    };
    let ask_other = async |_| {
        let asked = actix.clone();
        measure(effort.measured, move || ask_actix(asked.clone())).await
    };
    let (own, ractors) = by_turns(effort.rounds, ask_ours, ask_bare).await?;
    add(report, "a patient in memory, by our handle", &own, &ractors);
    let (actixes, ractors) = by_turns(effort.rounds, ask_other, ask_bare).await?;
    add(report, "actix", &actixes, &ractors);
    bare.stop(None);
    chain.stop().await
}

fn add(report: &mut Report, what: &str, rounds: &[Measured], beside: &[Measured]) {
    let of = |rounds: &[Measured], pick: fn(&Measured) -> f64| {
        median(&rounds.iter().map(pick).collect::<Vec<_>>())
    };
    let told = |rounds: &[Measured]| {
        let (one, many) = (of(rounds, |m| m.one_ns) / 1_000.0, of(rounds, |m| m.many_rate));
        format!("{one:.1} us with one asker, {many:.0}/s with {MANY}")
    };
    say(&format!("{what}: {}", told(rounds)));
    let many = |rounds: &[Measured]| rounds.iter().map(|m| m.many_rate).collect::<Vec<_>>();
    report.add(Row {
        what: format!("local ask: {what}"),
        beside: "ractor, bare".into(),
        ours: told(rounds),
        yardstick: told(beside),
        ratio: Spread::of_ratios(&many(rounds), &many(beside)),
        reach: None,
    });
}

/// Asks alone for half of `measured`, then with `MANY` for the other half.
async fn measure<F>(measured: Duration, ask: impl Fn() -> F + Send + Sync + 'static) -> Result<Measured>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let ask = Arc::new(ask);
    let half = measured / 2;
    let began = Instant::now();
    let alone = asks_of(1, half, &ask).await?;
    let one_ns = began.elapsed().as_nanos() as f64 / alone as f64;
    let began = Instant::now();
    let asks = asks_of(MANY, half, &ask).await?;
    Ok(Measured { one_ns, many_rate: asks as f64 / began.elapsed().as_secs_f64() })
}

/// How many asks `askers` get answered in `time`, each one at a time.
pub(crate) async fn asks_of<F>(
    askers: usize,
    time: Duration,
    ask: &Arc<impl Fn() -> F + Send + Sync + 'static>,
) -> Result<usize>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let askers: Vec<_> = (0..askers).map(|_| tokio::spawn(ask_for(Arc::clone(ask), time))).collect();
    let mut asks = 0;
    for asker in askers {
        asks += asker.await??;
    }
    Ok(asks)
}

async fn ask_for<F>(ask: Arc<impl Fn() -> F>, time: Duration) -> Result<usize>
where
    F: Future<Output = Result<()>>,
{
    let began = Instant::now();
    let mut asks = 0;
    while began.elapsed() < time {
        ask().await?;
        asks += 1;
    }
    Ok(asks)
}

/// Counts, and answers with the count.
struct Bare;

#[derive(ractor_cluster::RactorMessage)]
enum BareMessage {
    Ask(RpcReplyPort<u64>),
}

impl Actor for Bare {
    type Msg = BareMessage;
    type State = u64;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<BareMessage>,
        (): (),
    ) -> std::result::Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<BareMessage>,
        message: BareMessage,
        count: &mut u64,
    ) -> std::result::Result<(), ActorProcessingErr> {
        let BareMessage::Ask(reply) = message;
        *count += 1;
        let _ = reply.send(*count);
        Ok(())
    }
}

async fn ask_ractor(actor: ActorRef<BareMessage>) -> Result<()> {
    ractor::call!(actor, BareMessage::Ask)?;
    Ok(())
}

/// The same in actix.
struct Counter(u64);

impl actix::Actor for Counter {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "u64")]
struct Ask;

impl Handler<Ask> for Counter {
    type Result = u64;

    fn handle(&mut self, _: Ask, _: &mut Context<Self>) -> u64 {
        self.0 += 1;
        self.0
    }
}

async fn ask_actix(actor: Addr<Counter>) -> Result<()> {
    actor.send(Ask).await?;
    Ok(())
}

/// An actix system has a thread of its own; it ends with the process.
fn start_actix() -> Result<Addr<Counter>> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let system = actix::System::new();
        system.block_on(async {
            let _ = tell.send(Counter(0).start());
        });
        let _ = system.run();
    });
    Ok(told.recv()?)
}
