//! Whether a region can be reached at all.
//!
//! Requests come by way of a front. A region that sees none is cut off, or the fronts are gone; the
//! former cannot be told from the latter. If it went on renewing its leases through a database that it
//! still reaches, its shards would be served by nobody: the fronts do not reach it, and others that they do
//! reach cannot take them. So it gives them up after a grace, which must be longer than a session takes to
//! come back, and takes what belongs here again as soon as a front is in sight.
//!
//! At the start a region of patients takes nothing until it has seen a front for the first time. Otherwise
//! every node that is up before the first front would take its shards and give them up again.
//!
//! Billing is asked by its own nodes too: over gRPC, and by the relay. So it waits for no front at the start,
//! and is cut off only when it has seen other nodes and sees none of them any more.

use std::time::Duration;

use crate::actors::members::View;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::Kind;
use crate::domain::time::MonoTime;

/// Whether a front is in sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// One is; perhaps the node itself.
    Front,
    /// None has been yet, and none is needed.
    Unseen,
    /// None is since this moment, and it may be back in a moment.
    Lost(MonoTime),
    /// None is.
    Alone,
}

impl Sight {
    pub(super) fn at_start(view: &View, kind: Kind) -> Self {
        match kind {
            _ if sees_asker(view, kind) => Sight::Front,
            Kind::Billing => Sight::Unseen,
            Kind::Patient | Kind::Outbox => Sight::Alone,
        }
    }

    /// As it is at `now`, with `view` in sight.
    pub(super) fn at(self, view: &View, kind: Kind, now: MonoTime, grace: Duration) -> Self {
        match self {
            _ if sees_asker(view, kind) => Sight::Front,
            Sight::Front if grace.is_zero() => Sight::Alone,
            Sight::Front => Sight::Lost(now),
            Sight::Lost(since) if now >= since.plus(grace) => Sight::Alone,
            other => other,
        }
    }
}

fn sees_asker(view: &View, kind: Kind) -> bool {
    let front = view.with_role(NodeRole::Front).next().is_some();
    front || (kind == Kind::Billing && view.members().len() > 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::actors::members::Member;

    const GRACE: Duration = Duration::from_secs(3);
    const SECOND: u64 = 1_000_000_000;

    fn view(role: NodeRole) -> Arc<View> {
        Arc::new(View::alone("me".into(), "me#1".into(), [role].into()))
    }

    #[test]
    fn a_front_that_is_gone_for_a_moment_changes_nothing() {
        let (with, without) = (view(NodeRole::Front), view(NodeRole::Patient));
        let at = |sight: Sight, view: &View, seconds: u64| {
            sight.at(view, Kind::Patient, MonoTime(seconds * SECOND), GRACE)
        };
        let start = Sight::at_start(&with, Kind::Patient);
        assert_eq!(start, Sight::Front);
        let lost = at(start, &without, 10);
        assert_eq!(lost, Sight::Lost(MonoTime(10 * SECOND)));
        assert_eq!(at(lost, &without, 12), lost);
        assert_eq!(at(lost, &with, 12), Sight::Front);
        assert_eq!(at(lost, &without, 13), Sight::Alone);
        assert_eq!(at(Sight::Alone, &without, 99), Sight::Alone);
        assert_eq!(at(Sight::Alone, &with, 99), Sight::Front);
    }

    #[test]
    fn at_the_start_there_is_no_grace() {
        assert_eq!(Sight::at_start(&view(NodeRole::Patient), Kind::Patient), Sight::Alone);
    }

    #[test]
    fn billing_does_without_a_front_until_it_has_had_one() {
        let (with, without) = (view(NodeRole::Front), view(NodeRole::Billing));
        let at = |sight: Sight, view: &View, seconds: u64| {
            sight.at(view, Kind::Billing, MonoTime(seconds * SECOND), GRACE)
        };
        let start = Sight::at_start(&without, Kind::Billing);
        assert_eq!((start, at(start, &without, 99)), (Sight::Unseen, Sight::Unseen));
        let seen = at(start, &with, 99);
        let lost = at(seen, &without, 100);
        assert_eq!((seen, at(lost, &without, 103)), (Sight::Front, Sight::Alone));
        let member = |name: &str| Member {
            name: name.into(),
            owner: format!("{name}#1").into(),
            roles: [NodeRole::Billing].into(),
            draining: false,
            wire: None,
        };
        let company = View::new("billing-1".into(), vec![member("billing-1"), member("billing-2")]);
        assert_eq!(at(lost, &company, 103), Sight::Front, "the other one asks, and is asked over gRPC");
    }
}
