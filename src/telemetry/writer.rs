//! A thread that writes log lines, and the bounded queue in front of it.
//!
//! A logging thread copies its line into the queue under a short lock and never waits for the output. A line
//! that does not fit is dropped and counted. While the writer thread writes, further lines collect in the
//! queue and are then written with one system call.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After a write the thread checks the queue again after this time, so that the next logging thread need not
/// wake it. A wake-up is a system call, which costs more than the line.
const LINGER: Duration = Duration::from_millis(1);

/// The memory that a buffer keeps after a burst, in bytes.
const KEPT_BYTES: usize = 1024 * 1024;

/// The queue of lines to write.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signals lines to the writer thread.
    filled: Condvar,
    /// Signals the end of a write to `close`.
    emptied: Condvar,
    max_bytes: usize,
    dropped: AtomicU64,
    unwritten: AtomicU64,
}

/// Lines that were lost.
#[derive(Debug)]
pub(super) struct Missing {
    /// The number of lost lines.
    pub(super) lines: u64,
    /// Why the lines could not be written; `None` if they did not fit into the queue.
    pub(super) error: Option<io::Error>,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the thread sleeps until it is woken.
    asleep: bool,
    /// Whether the thread has lines that are not written yet.
    writing: bool,
    closed: bool,
}

impl Queue {
    /// Creates a queue for at most `max_bytes` of lines.
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Queue {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            max_bytes,
            dropped: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        })
    }

    /// Queues a line that ends with a line break, or counts it as dropped.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.closed || state.waiting.len() + line.len() > self.max_bytes {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Returns the number of lines lost so far: dropped or not written.
    pub(super) fn dropped_lines(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed) + self.unwritten.load(Ordering::Relaxed)
    }

    /// Closes the queue and waits until the queued lines are written, at most `for_at_most`.
    pub(super) fn close(&self, for_at_most: Duration) {
        let until = Instant::now() + for_at_most;
        let mut state = self.lock();
        state.closed = true;
        self.filled.notify_one();
        while state.writing || !state.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and moves them into `batch`. Returns false when the queue is closed and empty.
    fn next_batch(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state.asleep = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        state.writing = true;
        std::mem::swap(&mut state.waiting, batch);
        true
    }

    /// Marks the batch as written, and waits briefly for lines to collect.
    fn batch_done(&self) {
        let mut state = self.lock();
        state.writing = false;
        self.emptied.notify_all();
        if !state.closed {
            drop(self.filled.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Formats the notice of missing lines.
pub(super) type Notice = Box<dyn Fn(&Missing) -> Vec<u8> + Send>;

/// Starts the writer thread.
pub(super) fn spawn(queue: Arc<Queue>, out: Box<dyn Write + Send>, notice: Notice) -> io::Result<()> {
    let run = move || write_lines(&queue, out, &*notice);
    std::thread::Builder::new().name("log-writer".to_owned()).spawn(run).map(drop)
}

fn write_lines(queue: &Queue, mut out: Box<dyn Write + Send>, notice: &dyn Fn(&Missing) -> Vec<u8>) {
    let mut batch = Vec::new();
    let mut told_dropped = 0;
    let mut unwritten: Option<Missing> = None;
    while queue.next_batch(&mut batch) {
        if let Err(error) = write_all(&mut *out, &batch) {
            let lines = batch.iter().filter(|b| **b == b'\n').count() as u64;
            queue.unwritten.fetch_add(lines, Ordering::Relaxed);
            let before = unwritten.take().map_or(0, |missing| missing.lines);
            unwritten = Some(Missing { lines: before + lines, error: Some(error) });
        }
        batch.clear();
        batch.shrink_to(KEPT_BYTES);
        if unwritten.as_ref().is_some_and(|missing| write_all(&mut *out, &notice(missing)).is_ok()) {
            unwritten = None;
        }
        let dropped = queue.dropped.load(Ordering::Relaxed);
        let missing = Missing { lines: dropped - told_dropped, error: None };
        if missing.lines > 0 && write_all(&mut *out, &notice(&missing)).is_ok() {
            told_dropped = dropped;
        }
        queue.batch_done();
    }
}

/// Like `Write::write_all`, but retries on a pipe or terminal that another process has made non-blocking.
fn write_all(out: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LINGER),
            Err(e) => return Err(e),
        }
    }
    out.flush()
}
