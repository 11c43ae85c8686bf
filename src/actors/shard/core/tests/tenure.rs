//! The ownership of the shard in the simulation: renewals, another owner, new incarnations.

use uuid::Uuid;

use super::*;

impl Sim {
    /// Renews the lease, as the region does.
    pub(super) fn renew(&mut self) {
        let had = |flight: &InFlight| matches!(flight, InFlight::Refence { done: Some(_) });
        // There is nothing to renew while the shard does not know its new epoch.
        if !self.lost && !self.in_flight.iter().any(had) {
            self.db.lease_until = self.world.mono.get() + LEASE;
            self.world.lease_until.set(self.db.lease_until);
        }
    }

    fn awaits_epoch(&self) -> bool {
        self.in_flight.iter().any(|flight| matches!(flight, InFlight::Refence { done: None }))
    }

    /// Lets another owner take the shard after the lease has expired, and change something.
    pub(super) fn other_owner_takes(&mut self) {
        if self.world.mono.get() < self.db.lease_until {
            if !self.awaits_epoch() {
                return;
            }
            // The node cannot reach the database, so the lease expires.
            self.world.mono.set(self.db.lease_until);
        }
        self.lost = true;
        self.db.epoch += 1;
        for n in 0..self.patients {
            let id = Uuid::from_u128(n);
            let command = match self.db.state(id) {
                PatientState::Absent => PatientCommand::Register(details(self.rng.u32(..))),
                _ => PatientCommand::Delete,
            };
            if let Ok(Decided::Event(event)) = patient::decide(
                PatientId(id),
                &self.db.state(id),
                &command,
                &Caller::system("other"),
                &Conditions::default(),
                Timestamp(0),
            ) {
                let recorded = RecordedEvent {
                    event_id: self.world.event_id(),
                    command_id: CommandId(Uuid::from_u128(self.rng.u128(..))),
                    event,
                    at: Timestamp(0),
                    subject: "other".into(),
                    traceparent: "t".into(),
                    fingerprint: None,
                };
                let append = PatientAppend {
                    shard: 0,
                    epoch: Epoch(self.db.epoch),
                    caller: Caller::system("other"),
                    action: crate::domain::access::Action::PatientUpdate,
                    recorded,
                    released_email_key: None,
                };
                self.db.commit(self.step, &append, false);
            }
        }
    }

    /// Ends the shard in order, and starts a new incarnation under a new epoch.
    pub(super) fn stop_and_start_again(&mut self) {
        self.core.stop_serving();
        self.collect();
        while !self.core.is_idle() {
            self.step += 1;
            self.progress();
            self.collect();
        }
        // Results that are still in flight for the old incarnation are not delivered any more.
        for flight in &mut self.in_flight {
            if let InFlight::Append { told, .. } = flight {
                *told = true;
            }
        }
        self.in_flight.retain(|flight| matches!(flight, InFlight::Append { done: None, .. }));
        self.db.epoch += 1;
        self.lost = false;
        self.core = Core::new(0, Epoch(self.db.epoch), LIMITS);
        self.db.lease_until = self.world.mono.get() + LEASE;
        self.world.lease_until.set(self.db.lease_until);
    }
}
