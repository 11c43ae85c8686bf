//! Who asks, and who may do what: callers, roles, and the one table of roles and actions.
//!
//! Every route and every remote procedure that needs a caller names its `Action`; the edges ask
//! `Action::permits` and nothing else. The match in `Action::row` is exhaustive: an action without a row
//! does not compile, and neither does a route without an action.

use std::sync::Arc;

/// What a user is. One role each; what it may do, `Action` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs the system: users, the cluster, and the records but for those marked restricted.
    Admin,
    /// Treats patients: reads and writes records.
    Clinician,
    /// Receives patients: registers, reads and corrects records.
    FrontDesk,
    /// Charges patients: accounts, and of the records the names.
    Billing,
    /// Counts patients: analytics alone.
    Analyst,
    /// Looks at who did what: the access audit alone.
    Auditor,
}

impl Role {
    /// All roles, for messages that say what is allowed.
    pub const ALL: &'static [Role] =
        &[Role::Admin, Role::Clinician, Role::FrontDesk, Role::Billing, Role::Analyst, Role::Auditor];

    /// The name in tokens, in the database, between nodes and on the command line.
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

    /// The role of that name, if there is one. A name that is not known here is no role at all: a node of
    /// an older version refuses what a newer role asks.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.as_str() == name)
    }

    /// Whether this role may see a restricted record by saying why.
    pub const fn breaks_glass(self) -> bool {
        matches!(self, Role::Clinician)
    }

    /// How much of a record this role is shown.
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
    /// All of it.
    Whole,
    /// The id and the name.
    NameOnly,
}

/// What a caller may want to do. Routes and remote procedures map to these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// See many records.
    PatientList,
    /// See one record.
    PatientRead,
    /// Make a record.
    PatientRegister,
    /// Change a record.
    PatientUpdate,
    /// End a record.
    PatientDelete,
    /// Mark a record restricted, or no longer so.
    PatientRestrict,
    /// See a patient's account.
    AccountRead,
    /// Open a patient's account.
    AccountOpen,
    /// See the counts.
    AnalyticsRead,
    /// See how the cluster is.
    ClusterRead,
    /// See who may log in.
    UserList,
    /// Let somebody log in.
    UserCreate,
    /// Change a user's role, or disable a user.
    UserChange,
    /// Change one's own password.
    OwnPassword,
    /// Ask whether one's own token holds.
    OwnToken,
    /// See who accessed what.
    AuditRead,
    /// End one's own sessions.
    OwnSessions,
    /// See how a record came to be what it is.
    PatientHistory,
    /// Move old rows of the audit into a file. A command of the program, and not a request: no role may.
    AuditArchive,
}

/// What is said of an action.
struct Row {
    /// The name in the audit.
    name: &'static str,
    /// The number in the audit. Never changes, and is never used again.
    code: u8,
    /// Who may.
    roles: &'static [Role],
    /// Whether it touches what is known of a patient, or who may see it: then each time is audited, and not
    /// the denials alone.
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

    /// The table.
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

    /// The name in the audit and in the interface.
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The number in the audit. Never changes.
    pub const fn code(self) -> u8 {
        self.row().code
    }

    /// The action of that number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.code() == code)
    }

    /// The action of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }

    /// Whether a caller of `role` may.
    pub fn permits(self, role: Role) -> bool {
        self.row().roles.contains(&role)
    }

    /// Whether each time is audited; a denial is in any case.
    pub const fn is_audited(self) -> bool {
        self.row().audited
    }
}

/// The named caller behind a request: recorded with every event it causes.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's e-mail address, or the name of a part of the system acting by itself (`system:billing-relay`).
    pub subject: Arc<str>,
    /// What the caller may do.
    pub role: Role,
    /// From which address the request came, as the edge saw it. None for a part of the system.
    pub from: Option<std::net::IpAddr>,
    /// Why the caller needs to see a restricted record, in the caller's words, up to 500 characters. It opens nothing
    /// for a role that does not break the glass: see `sees_restricted`.
    pub break_glass: Option<Arc<str>>,
}

/// Never prints the subject, nor where it is, nor why.
impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Caller {
    /// A part of the system that acts by itself, such as a relay.
    pub fn system(part: &str) -> Self {
        Caller { subject: format!("system:{part}").into(), role: Role::Admin, from: None, break_glass: None }
    }

    /// Whether this caller sees and changes restricted records: the role may break the glass, and a reason is given.
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

    /// Every cell, written down a second time: a change of the table is a change of this text.
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
