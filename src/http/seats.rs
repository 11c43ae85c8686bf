//! Who holds a connection, and who of them keeps us waiting: so that connections which send nothing, or very slowly,
//! do not keep others out when all places are taken.
//!
//! A connection *waits* from its start, and again from each answer on, until a whole request has come, its body
//! included; with the head its time begins anew. In between it is *answered*, and is never ended for somebody else.
//! The claim of the one who ends it and the arrival of its request exclude each other (`Seat::answering`), so that no
//! request which has come is cut off.
//!
//! Why the longest wait and not, say, the fewest bytes: a peer chooses its bytes, and how often it sends them; it
//! cannot choose to have been here for a shorter time. A connection in use waits for milliseconds between two requests.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body as AnyBody;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::task::{AbortHandle, Id};

/// An answer of at most so many bytes counts as delivered when it is made: the socket takes it whole. Of a longer one
/// it is known when its last piece was taken.
const TAKEN_WHOLE_BYTES: u64 = 64 * 1024;

/// One connection's state.
pub(super) struct Seat {
    /// What its times are counted from.
    epoch: Instant,
    /// Milliseconds after `epoch` since which it waits, or one of the two below.
    since: AtomicU64,
    /// Nobody read the body of its last request to the end.
    cut_short: AtomicBool,
}

/// Its request is being answered.
const ANSWERED: u64 = u64::MAX;
/// It is being ended; a request that comes now is not taken up.
const ENDED: u64 = u64::MAX - 1;

impl Seat {
    fn new(epoch: Instant) -> Arc<Self> {
        let seat = Seat { epoch, since: AtomicU64::new(ANSWERED), cut_short: AtomicBool::new(false) };
        seat.waiting();
        Arc::new(seat)
    }

    /// From now on it waits.
    fn waiting(&self) {
        // Whoever has ended it stays with that.
        _ = self
            .since
            .try_update(Ordering::AcqRel, Ordering::Acquire, |was| (was == ANSWERED).then(|| self.now_ms()));
    }

    /// The head of its request is there, and a body is to come.
    fn arriving(&self) {
        _ = self
            .since
            .try_update(Ordering::AcqRel, Ordering::Acquire, |was| (was < ENDED).then(|| self.now_ms()));
    }

    /// Its request is there. False if it has been ended in the meantime.
    fn answering(&self) -> bool {
        let arrived = |was| (was != ENDED).then_some(ANSWERED);
        self.since.try_update(Ordering::AcqRel, Ordering::Acquire, arrived).is_ok()
    }

    /// Whether a body was given up before its end: the connection has to end with the answer.
    pub(super) fn cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Acquire)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).min(ENDED - 1)
    }
}

/// Counts a connection as waiting again when it is dropped, with the answer that it belongs to.
struct UntilDelivered(Arc<Seat>);

impl Drop for UntilDelivered {
    fn drop(&mut self) {
        self.0.waiting();
    }
}

/// `answer`, after which the connection waits again.
pub(super) fn answered(seat: &Arc<Seat>, answer: Response) -> Response {
    let until = UntilDelivered(Arc::clone(seat));
    if answer.body().size_hint().upper().is_some_and(|bytes| bytes <= TAKEN_WHOLE_BYTES) {
        return answer;
    }
    answer.map(|body| {
        AnyBody::new(body.map_frame(move |frame| {
            let _until = &until;
            frame
        }))
    })
}

/// A request's body; its connection waits until it has come whole.
pub(super) struct Arriving {
    body: Incoming,
    seat: Arc<Seat>,
    arrived: bool,
}

impl Arriving {
    /// None if the connection has been ended in the meantime.
    pub(super) fn new(body: Incoming, seat: &Arc<Seat>) -> Option<Self> {
        let arrived = body.is_end_stream();
        if !arrived {
            seat.arriving();
        } else if !seat.answering() {
            return None;
        }
        Some(Arriving { body, seat: Arc::clone(seat), arrived })
    }
}

/// Nobody wants the rest of it.
impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.arrived {
            self.seat.cut_short.store(true, Ordering::Release);
            self.seat.answering();
        }
    }
}

impl Body for Arriving {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if !self.arrived
            && polled.is_ready()
            && (self.body.is_end_stream() || matches!(polled, Poll::Ready(None)))
        {
            self.arrived = true;
            if !self.seat.answering() {
                return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())));
            }
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(std::io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// All connections.
pub(super) struct Seats {
    epoch: Instant,
    grace: Duration,
    taken: HashMap<Id, (Arc<Seat>, AbortHandle)>,
}

/// What can be done for one who has no seat.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// One was freed, or soon will be: its task has been told to end.
    Made,
    /// After so long, unless another ends before.
    In(Duration),
}

impl Seats {
    pub(super) fn new(grace: Duration) -> Self {
        Seats { epoch: Instant::now(), grace, taken: HashMap::new() }
    }

    pub(super) fn seat(&self) -> Arc<Seat> {
        Seat::new(self.epoch)
    }

    pub(super) fn take(&mut self, seat: Arc<Seat>, task: AbortHandle) {
        self.taken.insert(task.id(), (seat, task));
    }

    pub(super) fn leave(&mut self, task: Id) {
        self.taken.remove(&task);
    }

    /// Ends the connection that has waited the longest, if it has waited for the grace.
    pub(super) fn make_room(&self) -> Room {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let grace_ms = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let waiting = |(seat, task): &(Arc<Seat>, AbortHandle)| {
            let since = seat.since.load(Ordering::Acquire);
            (since < ENDED).then(|| (since, Arc::clone(seat), task.clone()))
        };
        let Some((since, seat, task)) = self.taken.values().filter_map(waiting).min_by_key(|one| one.0)
        else {
            return Room::In(self.grace);
        };
        let waited_ms = now_ms.saturating_sub(since);
        if waited_ms < grace_ms {
            return Room::In(Duration::from_millis(grace_ms - waited_ms));
        }
        // A request that has come just now is answered; the next look finds another.
        if seat.since.compare_exchange(since, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            task.abort();
        }
        Room::Made
    }
}
