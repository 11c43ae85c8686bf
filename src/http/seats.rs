//! Connection limit: tracks which connections are waiting for a request, so that connections that send
//! nothing, or send very slowly, do not keep others out when all slots are in use.
//!
//! A connection *waits* from its start, and again after each response, until a complete request has arrived,
//! including its body. The wait is counted anew when the head arrives. In between, the connection is
//! *answered*, and is never closed in favour of another. Closing a connection and the arrival of its request
//! exclude each other (`Seat::answering`), so no request that has arrived is cut off.
//!
//! The longest wait decides rather than the fewest bytes, because a peer controls its bytes and their timing,
//! but cannot pretend to have arrived later. A connection in use waits only milliseconds between two
//! requests.

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

/// A response of at most this size counts as delivered when it is created, because the socket buffer takes it
/// whole. A longer response is delivered when its last chunk has been taken.
const TAKEN_WHOLE_BYTES: u64 = 64 * 1024;

/// State of one connection.
pub(super) struct Seat {
    /// Start of the time scale of `since`.
    epoch: Instant,
    /// Milliseconds after `epoch` since which the connection waits, or `ANSWERED`, or `ENDED`.
    since: AtomicU64,
    /// Whether the body of the last request was not read to its end.
    cut_short: AtomicBool,
}

/// The request of the connection is being answered.
const ANSWERED: u64 = u64::MAX;
/// The connection is being closed; a request that arrives now is not processed.
const ENDED: u64 = u64::MAX - 1;

impl Seat {
    fn new(epoch: Instant) -> Arc<Self> {
        let seat = Seat { epoch, since: AtomicU64::new(ANSWERED), cut_short: AtomicBool::new(false) };
        seat.waiting();
        Arc::new(seat)
    }

    /// Marks the connection as waiting from now on.
    fn waiting(&self) {
        // A connection that is being closed stays `ENDED`.
        _ = self
            .since
            .try_update(Ordering::AcqRel, Ordering::Acquire, |was| (was == ANSWERED).then(|| self.now_ms()));
    }

    /// Restarts the wait: the head of a request has arrived, and its body is still to come.
    fn arriving(&self) {
        _ = self
            .since
            .try_update(Ordering::AcqRel, Ordering::Acquire, |was| (was < ENDED).then(|| self.now_ms()));
    }

    /// Marks the request as complete. Returns false if the connection is being closed.
    fn answering(&self) -> bool {
        let arrived = |was| (was != ENDED).then_some(ANSWERED);
        self.since.try_update(Ordering::AcqRel, Ordering::Acquire, arrived).is_ok()
    }

    /// Returns whether a body was abandoned before its end. The connection must then close after the
    /// response.
    pub(super) fn cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Acquire)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).min(ENDED - 1)
    }
}

/// Marks the connection as waiting again when dropped together with the response body.
struct UntilDelivered(Arc<Seat>);

impl Drop for UntilDelivered {
    fn drop(&mut self) {
        self.0.waiting();
    }
}

/// Returns `answer`, after whose delivery the connection waits again.
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

/// A request body. The connection waits until the body has arrived whole.
pub(super) struct Arriving {
    body: Incoming,
    seat: Arc<Seat>,
    arrived: bool,
}

impl Arriving {
    /// Returns `None` if the connection is being closed.
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

/// Dropping an unfinished body means that the rest is not wanted.
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

/// All connections of the listener.
pub(super) struct Seats {
    epoch: Instant,
    grace: Duration,
    taken: HashMap<Id, (Arc<Seat>, AbortHandle)>,
}

/// What can be done for a connection without a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A slot was freed, or will be soon: the task of a connection was told to end.
    Made,
    /// A slot can be freed after this time, unless a connection ends before.
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

    /// Closes the connection that has waited longest, if it has waited for the grace period.
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
        // A request that has just arrived is answered; the next call finds another connection.
        if seat.since.compare_exchange(since, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            task.abort();
        }
        Room::Made
    }
}
