//! An address of an actor that stays valid across restarts.
//!
//! A supervised actor gets a new reference at every start. An `Address` names the actor, not the incarnation:
//! the supervisor stores the newest reference in it, and senders read it without a lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ractor::{ActorRef, Message};

/// The address of one actor. Cloning is cheap; all clones name the same actor.
pub struct Address<M: Message> {
    current: Arc<ArcSwapOption<ActorRef<M>>>,
}

impl<M: Message> Clone for Address<M> {
    fn clone(&self) -> Self {
        Address { current: Arc::clone(&self.current) }
    }
}

impl<M: Message> Default for Address<M> {
    fn default() -> Self {
        Address { current: Arc::new(ArcSwapOption::empty()) }
    }
}

impl<M: Message> Address<M> {
    /// Directs all further messages to `actor`.
    pub fn set(&self, actor: ActorRef<M>) {
        self.current.store(Some(Arc::new(actor)));
    }

    /// Sends `message`. Returns false if no actor is running. The message is then dropped with any reply port
    /// in it, so that the caller that waits for the reply is notified.
    pub fn cast(&self, message: M) -> bool {
        self.current.load().as_ref().is_some_and(|actor| actor.send_message(message).is_ok())
    }

    /// Returns the newest incarnation, if one was started.
    pub fn actor(&self) -> Option<ActorRef<M>> {
        self.current.load().as_ref().map(|actor| ActorRef::clone(actor))
    }
}
