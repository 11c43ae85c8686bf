//! One thread that writes log lines, and the bounded queue before it.
//!
//! Whoever logs copies a line into the queue under a short lock, and never waits for the output: a
//! line that finds no room is dropped and counted. While the thread writes, lines gather, and go out
//! with one system call.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After a write the thread comes back by itself after this long, so that whoever logs next need not
/// wake it: a wake is a system call, dearer than the line.
const LINGER: Duration = Duration::from_millis(1);

/// What a buffer keeps of its memory after a burst.
const KEPT_BYTES: usize = 1024 * 1024;

/// Lines that wait to be written.
pub(super) struct Queue {
    state: Mutex<State>,
    /// The thread waits here for lines.
    filled: Condvar,
    /// `close` waits here for the thread.
    emptied: Condvar,
    max_bytes: usize,
    dropped: AtomicU64,
    unwritten: AtomicU64,
}

/// Lines that nobody will read.
#[derive(Debug)]
pub(super) struct Missing {
    /// How many.
    pub(super) lines: u64,
    /// Why they could not be written; without, they found no room in the queue.
    pub(super) error: Option<io::Error>,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread sleeps until it is woken.
    asleep: bool,
    /// The thread has lines that are not written yet.
    writing: bool,
    closed: bool,
}

impl Queue {
    /// A queue for at most `max_bytes` of lines.
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

    /// Takes a line with its line break, or counts it as dropped.
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

    /// How many lines are missing so far: they found no room, or could not be written.
    pub(super) fn dropped_lines(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed) + self.unwritten.load(Ordering::Relaxed)
    }

    /// Takes no more lines, and waits until those there are written, at most `for_at_most`.
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

    /// Fills `batch` with what waits, as soon as there is something; false at the end.
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

    /// The batch is written. Waits a little for lines to gather.
    fn batch_done(&self) {
        let mut state = self.lock();
        state.writing = false;
        self.emptied.notify_all();
        if !state.closed {
            drop(self.filled.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Makes the line that says which lines are missing.
pub(super) type Notice = Box<dyn Fn(&Missing) -> Vec<u8> + Send>;

/// Starts the thread.
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

/// As `Write::write_all`, but patient with a pipe or terminal that someone has made non-blocking.
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
