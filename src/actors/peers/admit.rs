//! The rules for admission. There is one session between two nodes, and one incarnation of each name.

use crate::proto::cluster::Outcome;

/// The existing session with a node of the same name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<'a> {
    pub(super) owner: &'a str,
    /// Whether both nodes see each other through it.
    pub(super) live: bool,
    /// Whether this node dialled it.
    pub(super) dialled: bool,
}

/// The node that requests a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) name: &'a str,
    pub(super) owner: &'a str,
    /// Whether this node dialled it.
    pub(super) dialled: bool,
}

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Accept. An existing session of the same name ends.
    Take,
    /// Refuse.
    Refuse(Outcome),
    /// Probe the existing session, because the decision depends on whether the other incarnation is alive.
    AskHeld,
    /// This node started after another node of the same name. It must stop, and the other node stays.
    WeAreSecond,
}

/// Decides for the node `me_name` in its incarnation `me_owner`.
pub(super) fn decide(me_name: &str, me_owner: &str, held: Option<Held<'_>>, asking: Asking<'_>) -> Decision {
    if asking.owner == me_owner {
        return Decision::Refuse(Outcome::Self_);
    }
    if asking.name == me_name {
        // A boot id begins with the time (RFC 9562, version 7), so the greater one started later.
        let we_are_first = me_owner < asking.owner;
        return if we_are_first { Decision::Refuse(Outcome::NameTaken) } else { Decision::WeAreSecond };
    }
    let Some(held) = held else { return Decision::Take };
    if held.owner != asking.owner {
        return Decision::AskHeld;
    }
    let we_are_lower = me_name < asking.name;
    let take = if asking.dialled {
        // Both nodes dialled at the same time: the connection dialled by the lower name stays.
        !held.live && !held.dialled && we_are_lower
    } else {
        // A node that dials has no session, so a live session here is half-open.
        held.live || !held.dialled || !we_are_lower
    };
    if take { Decision::Take } else { Decision::Refuse(Outcome::Connected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(name: &'static str, owner: &'static str, dialled: bool) -> Asking<'static> {
        Asking { name, owner, dialled }
    }

    #[test]
    fn a_name_belongs_to_who_had_it_first() {
        let me = |asked| decide("b", "b#5", None, asked);
        assert_eq!(me(asking("a", "a#1", false)), Decision::Take);
        assert_eq!(me(asking("b", "b#5", true)), Decision::Refuse(Outcome::Self_));
        assert_eq!(me(asking("b", "b#6", false)), Decision::Refuse(Outcome::NameTaken));
        assert_eq!(me(asking("b", "b#4", false)), Decision::WeAreSecond);
        let held = Held { owner: "a#1", live: true, dialled: false };
        assert_eq!(decide("b", "b#5", Some(held), asking("a", "a#2", false)), Decision::AskHeld);
    }

    /// Both nodes dial at the same time. They must agree, whichever connection each side sees first.
    #[test]
    fn of_two_connections_the_lower_ones_stays() {
        let refused = Decision::Refuse(Outcome::Connected);
        let half = |owner, dialled| Some(Held { owner, live: false, dialled });
        for (held, asked, by_a) in
            [(true, false, refused), (false, true, Decision::Take), (false, false, Decision::Take)]
        {
            assert_eq!(decide("a", "a#1", half("b#1", held), asking("b", "b#1", asked)), by_a);
        }
        for (held, asked, by_b) in
            [(true, false, Decision::Take), (false, true, refused), (true, true, refused)]
        {
            assert_eq!(decide("b", "b#1", half("a#1", held), asking("a", "a#1", asked)), by_b);
        }
        let live = |owner| Some(Held { owner, live: true, dialled: true });
        assert_eq!(decide("a", "a#1", live("b#1"), asking("b", "b#1", false)), Decision::Take, "half-open");
        assert_eq!(decide("a", "a#1", live("b#1"), asking("b", "b#1", true)), refused);
    }
}
