//! Callers, roles, and the one table of which role may perform which action.
//!
//! Every route and every remote procedure that needs a caller names its `Action`. The edges check permissions
//! with `Action::permits` alone. The match in `Action::row` is exhaustive: an action without a row does not
//! compile, and neither does a route without an action.

use std::sync::Arc;

/// The role of a user. Each user has one; `Action` defines what it permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Administers users and the cluster; reads and writes records that are not restricted.
    Admin,
    /// Treats patients: reads and writes records.
    Clinician,
    /// Receives patients: registers, reads and corrects records.
    FrontDesk,
    /// Charges patients: reads and opens accounts, and sees only the names in records.
    Billing,
    /// Reads analytics only.
    Analyst,
    /// Reads the access log only.
    Auditor,
}

impl Role {
    /// All roles, for messages that list the allowed ones.
    pub const ALL: &'static [Role] =
        &[Role::Admin, Role::Clinician, Role::FrontDesk, Role::Billing, Role::Analyst, Role::Auditor];

    /// Returns the name used in tokens, in the database, between nodes and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "ADMIN",
            Role::Clinician => "CLINICIAN",
            Role::FrontDesk => "FRONT_DESK",
            Role::Billing => "BILLING",
            Role::Analyst => "ANALYST",
            Role::Auditor => "AUDITOR",
        }
    }

    /// Returns the role of that name, or `None` if the name is unknown. So a node of an older version refuses
    /// requests of a newer role.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.as_str() == name)
    }

    /// Returns whether this role may see a restricted record if the caller gives a reason.
    pub const fn breaks_glass(self) -> bool {
        matches!(self, Role::Clinician)
    }

    /// Returns how much of a record this role is shown.
    pub const fn sees(self) -> View {
        match self {
            Role::Billing => View::NameOnly,
            _ => View::Whole,
        }
    }
}

/// How much of a patient's record is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The whole record.
    Whole,
    /// Only the id and the name.
    NameOnly,
}

/// An action that a caller may request. Routes and remote procedures map to these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// List or search records.
    PatientList,
    /// Read one record.
    PatientRead,
    /// Register a patient.
    PatientRegister,
    /// Change a record.
    PatientUpdate,
    /// Delete a record.
    PatientDelete,
    /// Mark a record as restricted, or remove the mark.
    PatientRestrict,
    /// Read a patient's account.
    AccountRead,
    /// Open a patient's account.
    AccountOpen,
    /// Read the counts.
    AnalyticsRead,
    /// Read the status of the cluster.
    ClusterRead,
    /// List the users.
    UserList,
    /// Create a user.
    UserCreate,
    /// Change a user's role, or disable a user.
    UserChange,
    /// Change one's own password.
    OwnPassword,
    /// Check one's own token.
    OwnToken,
    /// Read the access log.
    AuditRead,
    /// End one's own sessions.
    OwnSessions,
    /// Read the earlier versions of a record.
    PatientHistory,
    /// Move old rows of the access log into a file. This is a command of the program and not a request, so no
    /// role may.
    AuditArchive,
}

/// A row of the table of actions.
struct Row {
    /// The name in the access log.
    name: &'static str,
    /// The number in the access log. Never changes, and is never reused.
    code: u8,
    /// The roles that may perform the action.
    roles: &'static [Role],
    /// Whether each use is audited, because the action concerns patient data or access to it. Denials are
    /// audited in any case.
    audited: bool,
}

impl Action {
    /// Every action.
    pub const ALL: [Action; 19] = [
        Action::PatientList,
        Action::PatientRead,
        Action::PatientRegister,
        Action::PatientUpdate,
        Action::PatientDelete,
        Action::PatientRestrict,
        Action::AccountRead,
        Action::AccountOpen,
        Action::AnalyticsRead,
        Action::ClusterRead,
        Action::UserList,
        Action::UserCreate,
        Action::UserChange,
        Action::OwnPassword,
        Action::OwnToken,
        Action::AuditRead,
        Action::OwnSessions,
        Action::PatientHistory,
        Action::AuditArchive,
    ];

    /// Returns the action's row of the table.
    const fn row(self) -> Row {
        use Role::{Admin, Analyst, Auditor, Billing, Clinician, FrontDesk};
        const fn row(name: &'static str, code: u8, roles: &'static [Role], audited: bool) -> Row {
            Row { name, code, roles, audited }
        }
        match self {
            Action::PatientList => row("PATIENT_LIST", 1, &[Admin, Clinician, FrontDesk, Billing], true),
            Action::PatientRead => row("PATIENT_READ", 2, &[Admin, Clinician, FrontDesk, Billing], true),
            Action::PatientRegister => row("PATIENT_REGISTER", 3, &[Admin, Clinician, FrontDesk], true),
            Action::PatientUpdate => row("PATIENT_UPDATE", 4, &[Admin, Clinician, FrontDesk], true),
            Action::PatientDelete => row("PATIENT_DELETE", 5, &[Admin, Clinician], true),
            Action::PatientRestrict => row("PATIENT_RESTRICT", 6, &[Admin, Clinician], true),
            Action::AccountRead => row("ACCOUNT_READ", 7, &[Admin, Billing], true),
            Action::AccountOpen => row("ACCOUNT_OPEN", 8, &[Admin, Billing], true),
            Action::AnalyticsRead => row("ANALYTICS_READ", 9, &[Admin, Analyst], false),
            Action::ClusterRead => row("CLUSTER_READ", 10, &[Admin], false),
            Action::UserList => row("USER_LIST", 11, &[Admin], true),
            Action::UserCreate => row("USER_CREATE", 12, &[Admin], true),
            Action::UserChange => row("USER_CHANGE", 13, &[Admin], true),
            Action::OwnPassword => row("OWN_PASSWORD", 14, Role::ALL, true),
            Action::OwnToken => row("OWN_TOKEN", 15, Role::ALL, false),
            Action::AuditRead => row("AUDIT_READ", 16, &[Auditor], true),
            Action::OwnSessions => row("OWN_SESSIONS", 17, Role::ALL, false),
            Action::PatientHistory => row("PATIENT_HISTORY", 18, &[Admin, Clinician, FrontDesk], true),
            Action::AuditArchive => row("AUDIT_ARCHIVE", 19, &[], true),
        }
    }

    /// Returns the name in the access log and in the API.
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// Returns the number in the access log. It never changes.
    pub const fn code(self) -> u8 {
        self.row().code
    }

    /// Returns the action of that number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.code() == code)
    }

    /// Returns the action of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }

    /// Returns whether a caller of `role` may perform the action.
    pub fn permits(self, role: Role) -> bool {
        self.row().roles.contains(&role)
    }

    /// Returns whether each use is audited. Denials are audited in any case.
    pub const fn is_audited(self) -> bool {
        self.row().audited
    }
}

/// The named caller of a request, recorded with every event that the request causes.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's e-mail address, or the name of a part of the system that acts by itself
    /// (`system:billing-relay`).
    pub subject: Arc<str>,
    /// The role, which defines what the caller may do.
    pub role: Role,
    /// The client address, as the edge saw it. `None` for a part of the system.
    pub from: Option<std::net::IpAddr>,
    /// The reason for access to restricted records, in the caller's words, up to 500 characters. It has no
    /// effect unless the role may break the glass: see `sees_restricted`.
    pub break_glass: Option<Arc<str>>,
}

/// Never prints the subject, the address or the reason.
impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Caller {
    /// Returns the caller for a part of the system that acts by itself, such as a relay.
    pub fn system(part: &str) -> Self {
        Caller { subject: format!("system:{part}").into(), role: Role::Admin, from: None, break_glass: None }
    }

    /// Returns whether this caller may see and change restricted records: the role may break the glass, and a
    /// reason is given.
    pub const fn sees_restricted(&self) -> bool {
        self.role.breaks_glass() && self.break_glass.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn debug_does_not_tell_who_it_is() {
        let caller = Caller {
            subject: "canary@example.com".into(),
            role: Role::Admin,
            from: Some(std::net::IpAddr::from([203, 0, 113, 7])),
            break_glass: Some("a canary is ill".into()),
        };
        let shown = format!("{caller:?}");
        assert!(shown.contains("Admin") && !shown.contains("canary") && !shown.contains("203"), "{shown}");
    }

    #[test]
    fn a_clinician_with_a_reason_sees_restricted_records_and_nobody_else() {
        for role in Role::ALL {
            let with = |break_glass| Caller { role: *role, break_glass, ..Caller::system("test") };
            assert!(!with(None).sees_restricted(), "{role:?} without a reason");
            let sees = with(Some("unconscious".into())).sees_restricted();
            assert_eq!(sees, *role == Role::Clinician, "{role:?} with a reason");
        }
    }

    #[test]
    fn names_and_numbers_are_unique_and_read_back() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(*role));
        }
        for unknown in ["", "admin", "NURSE", "ADMIN "] {
            assert_eq!(Role::parse(unknown), None, "a role that is not known is none: {unknown:?}");
        }
        for action in Action::ALL {
            assert_eq!(Action::from_code(action.code()), Some(action));
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
        let codes: HashSet<u8> = Action::ALL.iter().map(|action| action.code()).collect();
        assert_eq!(codes.len(), Action::ALL.len());
    }

    /// Every cell of the table, repeated here, so that a change of the table must change this text too.
    #[test]
    fn the_table_is_what_was_agreed() {
        let agreed = "
            action           ADMIN CLINICIAN FRONT_DESK BILLING ANALYST AUDITOR
            PATIENT_LIST     yes   yes       yes        yes     no      no
            PATIENT_READ     yes   yes       yes        yes     no      no
            PATIENT_REGISTER yes   yes       yes        no      no      no
            PATIENT_UPDATE   yes   yes       yes        no      no      no
            PATIENT_DELETE   yes   yes       no         no      no      no
            PATIENT_RESTRICT yes   yes       no         no      no      no
            ACCOUNT_READ     yes   no        no         yes     no      no
            ACCOUNT_OPEN     yes   no        no         yes     no      no
            ANALYTICS_READ   yes   no        no         no      yes     no
            CLUSTER_READ     yes   no        no         no      no      no
            USER_LIST        yes   no        no         no      no      no
            USER_CREATE      yes   no        no         no      no      no
            USER_CHANGE      yes   no        no         no      no      no
            OWN_PASSWORD     yes   yes       yes        yes     yes     yes
            OWN_TOKEN        yes   yes       yes        yes     yes     yes
            AUDIT_READ       no    no        no         no      no      yes
            OWN_SESSIONS     yes   yes       yes        yes     yes     yes
            PATIENT_HISTORY  yes   yes       yes        no      no      no
            AUDIT_ARCHIVE    no    no        no         no      no      no";
        let mut lines = agreed.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let roles: Vec<Role> = lines.next().expect("a head")[1..]
            .iter()
            .map(|name| Role::parse(name).expect("a role"))
            .collect();
        assert_eq!(roles, Role::ALL);
        let mut seen = Vec::new();
        for line in lines {
            let action = Action::parse(line[0]).expect("an action");
            for (role, cell) in roles.iter().zip(&line[1..]) {
                assert_eq!(action.permits(*role), *cell == "yes", "{} {}", line[0], role.as_str());
            }
            assert_eq!(line.len(), roles.len() + 1);
            seen.push(action);
        }
        assert_eq!(seen, Action::ALL);
    }

    #[test]
    fn billing_is_shown_names_alone() {
        for role in Role::ALL {
            assert_eq!(role.sees() == View::NameOnly, *role == Role::Billing, "{role:?}");
        }
    }
}
