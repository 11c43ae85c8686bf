//! Whether the region can be reached by those that send it requests.
//!
//! Requests come from fronts. A region that cannot reach a front is cut off, or all fronts have failed; the
//! region cannot tell these cases apart. If it kept renewing its leases through a database that it still
//! reaches, nobody would serve its shards: the fronts cannot reach this node, and the nodes that they can
//! reach cannot take the leases. So the region gives its shards up after a grace period, which must be longer
//! than a session takes to reconnect. It takes its shards again as soon as a front is reachable.
//!
//! At the start a region of patients takes nothing until it has reached a front for the first time. Otherwise
//! every node that starts before the first front would take its shards and give them up again.
//!
//! Billing nodes send requests to billing too: over gRPC, and from the relay. So a billing region does not
//! wait for a front at the start. It counts as cut off only after it has reached other nodes and can reach
//! none of them any more.

use std::time::Duration;

use crate::actors::members::View;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::Kind;
use crate::domain::time::MonoTime;

/// Whether a front is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// A front is reachable; it may be this node.
    Front,
    /// No front has been reachable yet, and none is needed.
    Unseen,
    /// No front has been reachable since this time; the grace period runs.
    Lost(MonoTime),
    /// No front is reachable, and the region serves nothing.
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

    /// Returns the state at `now`, given the reachable nodes of `view`.
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
