//! The progress of a request, and what is known about it so far.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::domain::access::Caller;
use crate::domain::ids::PatientId;
use crate::error::ErrorCode;

use super::accesses::Accessed;
use super::pipeline::Effect;
use super::problem::Failure;

/// The patient that the request is about to register, if any.
#[derive(Default)]
pub(super) struct Registers(Mutex<Option<PatientId>>);

impl Registers {
    pub(super) fn set(&self, id: PatientId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    pub(super) fn get(&self) -> Option<PatientId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Progress of a request. It determines which failure a missed deadline becomes.
pub(super) struct Stage {
    reached: AtomicU8,
    /// See `Call::registers`.
    pub(super) registers: Arc<Registers>,
    /// The caller, once authenticated.
    pub(super) caller: OnceLock<Caller>,
    /// See `Call::accessed`.
    pub(super) accessed: Arc<Accessed>,
}

impl Stage {
    const CHECKING: u8 = 0;
    pub(super) const RECEIVING: u8 = 1;
    pub(super) const HANDED_OVER: u8 = 2;

    pub(super) fn new() -> Self {
        Stage {
            reached: AtomicU8::new(Self::CHECKING),
            registers: Arc::default(),
            caller: OnceLock::new(),
            accessed: Arc::default(),
        }
    }

    pub(super) fn enter(&self, stage: u8) {
        self.reached.store(stage, Ordering::Relaxed);
    }

    pub(super) fn late(&self, effect: Effect) -> Failure {
        match (self.reached.load(Ordering::Relaxed), effect) {
            (Self::RECEIVING, _) => Failure::new(ErrorCode::RequestTimeout, "The body did not come in time"),
            (Self::HANDED_OVER, Effect::Writes) => Failure::new(
                ErrorCode::OutcomeUnknown,
                "There was no answer in time: the change may have been made, or may still be",
            ),
            _ => Failure::new(ErrorCode::DeadlineExceeded, "There was no answer in time"),
        }
    }
}
