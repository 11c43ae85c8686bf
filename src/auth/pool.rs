//! The threads that hash passwords. They are separate from the runtime and run at a lower priority, so that a
//! flood of logins uses only the processor time that other work leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Work = Box<dyn FnOnce() + Send>;

/// A fixed number of threads, which end when the pool is dropped.
pub(super) struct Pool {
    queue: SyncSender<Work>,
}

impl Pool {
    /// Starts `threads` threads with the niceness of the process plus `niceness`. At most `queue_max` jobs
    /// wait in the queue.
    pub(super) fn new(threads: usize, queue_max: usize, niceness: u8) -> Self {
        let (queue, waiting) = sync_channel::<Work>(queue_max);
        let waiting = Arc::new(Mutex::new(waiting));
        for n in 0..threads {
            let waiting = Arc::clone(&waiting);
            // If the system refuses a thread, the threads that did start do the work.
            let started =
                thread::Builder::new().name(format!("hashing-{n}")).spawn(move || run(&waiting, niceness));
            if let Err(error) = started {
                tracing::error!(%error, "a thread that hashes could not be started");
            }
        }
        Pool { queue }
    }

    /// Queues `work`. Returns false if the queue is full.
    pub(super) fn submit(&self, work: Work) -> bool {
        self.queue.try_send(work).is_ok()
    }
}

fn run(waiting: &Mutex<Receiver<Work>>, niceness: u8) {
    // On Linux the niceness belongs to the thread, not to the process.
    if let Err(error) = rustix::process::nice(i32::from(niceness)) {
        tracing::debug!(%error, "the priority of hashing cannot be lowered");
    }
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        // The panic hook has logged it. The caller gets an error, because the result channel is closed.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_that_panics_takes_no_thread_with_it() {
        let pool = Pool::new(1, 2, 5);
        assert!(pool.submit(Box::new(|| panic!("on purpose"))));
        let (done, told) = mpsc::channel();
        assert!(
            pool.submit(Box::new(move || done
                .send(rustix::process::getpriority_process(None))
                .expect("told")))
        );
        let priority = told.recv_timeout(Duration::from_secs(20)).expect("done").expect("a priority");
        let mine = rustix::process::getpriority_process(None).expect("a priority");
        assert!(priority > mine || priority == 19, "{priority} and {mine}");
    }

    #[test]
    fn what_finds_no_room_is_not_taken() {
        let pool = Pool::new(1, 1, 0);
        let (go, gate) = mpsc::channel::<()>();
        let (started, told) = mpsc::channel();
        let holding = move || {
            started.send(()).expect("told");
            gate.recv_timeout(Duration::from_secs(20)).ok();
        };
        assert!(pool.submit(Box::new(holding)));
        told.recv_timeout(Duration::from_secs(20)).expect("it runs");
        assert!(pool.submit(Box::new(|| ())));
        assert!(!pool.submit(Box::new(|| ())));
        go.send(()).expect("it waits");
    }
}
