//! Who asks: callers and their roles.

use std::sync::Arc;

/// What a user may do. One role each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, users included.
    Admin,
}

impl Role {
    /// The name in tokens, in the database and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "ADMIN",
        }
    }

    /// The role of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ADMIN" => Some(Role::Admin),
            _ => None,
        }
    }

    /// All roles, for messages that say what is allowed.
    pub const ALL: &'static [Role] = &[Role::Admin];
}

/// The named caller behind a request: recorded with every event it causes.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's e-mail address, or the name of a part of the system acting by itself (`system:billing-relay`).
    pub subject: Arc<str>,
    /// What the caller may do.
    pub role: Role,
}

/// Never prints the subject.
impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Caller {
    /// A part of the system that acts by itself, such as a relay.
    pub fn system(part: &str) -> Self {
        Caller { subject: format!("system:{part}").into(), role: Role::Admin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_tell_who_it_is() {
        let caller = Caller { subject: "canary@example.com".into(), role: Role::Admin };
        let shown = format!("{caller:?}");
        assert!(shown.contains("Admin") && !shown.contains("canary"), "{shown}");
    }
}
