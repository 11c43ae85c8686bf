//! The demo data of a first start: a user to log in as and fifteen patients, registered by ordinary commands
//! so that their events are published. Only with the embedded defaults, and only in an empty database.

use std::sync::Arc;
use std::time::Duration;

use time::{Date, Month};
use uuid::Uuid;

use super::runtime_file::RuntimeFile;
use crate::actors::patients::PatientHandle;
use crate::auth;
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::{Caller, Role};
use crate::domain::conditions::Conditions;
use crate::domain::ids::{CommandId, PatientId};
use crate::domain::patient::{PatientDetails, PatientState};
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::health::{Health, Status};
use crate::store::{self, Store};

/// The demo user's name. It is public, so the user is only created where no other machine can reach the node.
const USER: &str = "testuser@test.com";
/// The demo user's password, which is public too.
const PASSWORD: &str = "password123";

/// The pause before another attempt to create the demo while no shard is served yet, and between two checks
/// of the parts.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// How long the banner waits for the last part. A part that cannot work yet, for example without a broker,
/// must not keep the addresses from being printed.
const QUIET_LIMIT: Duration = Duration::from_secs(10);

/// Name, e-mail address, address, year, month and day of birth, and the day registered.
type Row = (&'static str, &'static str, &'static str, (i32, u8, u8), (i32, u8, u8));

const PATIENTS: [Row; 15] = [
    ("John Doe", "john.doe@example.com", "1 Harbour Road, Kingsport", (1985, 6, 15), (2024, 1, 10)),
    ("Amara Okafor", "amara.okafor@example.com", "14 Quarry Lane, Eastmere", (1991, 2, 3), (2024, 2, 19)),
    ("Bela Kiss", "bela.kiss@example.com", "7 Mill Row, Kingsport", (1958, 11, 27), (2023, 10, 4)),
    ("Chiyo Tanaka", "chiyo.tanaka@example.com", "230 Lantern Street, Westbay", (1979, 4, 9), (2024, 5, 30)),
    ("Dafydd Prys", "dafydd.prys@example.com", "3 Chapel Hill, Eastmere", (1946, 8, 21), (2022, 3, 14)),
    ("Elif Yildiz", "elif.yildiz@example.com", "88 Orchard Way, Westbay", (2001, 12, 1), (2024, 6, 11)),
    (
        "Farid Haddad",
        "farid.haddad@example.com",
        "19 Station Square, Kingsport",
        (1968, 7, 16),
        (2023, 1, 25),
    ),
    (
        "Greta Lindqvist",
        "greta.lindqvist@example.com",
        "5 Beacon Terrace, Northfold",
        (2014, 3, 30),
        (2024, 4, 2),
    ),
    ("Hugo Almeida", "hugo.almeida@example.com", "41 Saltmarsh Drive, Westbay", (1988, 9, 12), (2023, 7, 7)),
    ("Ines Moreau", "ines.moreau@example.com", "62 Foundry Street, Northfold", (1973, 1, 5), (2022, 9, 18)),
    (
        "Jonas Petrauskas",
        "jonas.petrauskas@example.com",
        "11 Willow Court, Eastmere",
        (1996, 10, 23),
        (2024, 3, 8),
    ),
    (
        "Kavya Raman",
        "kavya.raman@example.com",
        "150 Observatory Road, Kingsport",
        (1983, 5, 28),
        (2023, 12, 12),
    ),
    ("Liam Byrne", "liam.byrne@example.com", "27 Fisher's Walk, Westbay", (2009, 6, 6), (2024, 1, 31)),
    ("Mei Ling Chow", "meiling.chow@example.com", "9 Granary Yard, Northfold", (1938, 2, 17), (2022, 11, 3)),
    ("Noor van Dijk", "noor.vandijk@example.com", "73 Canal View, Eastmere", (1999, 8, 8), (2024, 6, 24)),
];

/// The id of the first demo patient. The other ids count up from it.
const FIRST_ID: u128 = 0x123e_4567_e89b_12d3_a456_4266_1417_4000;

/// The components that creating the demo needs.
pub(super) struct Demo {
    pub(super) auth: auth::Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) patients: PatientHandle,
    pub(super) health: Health,
    pub(super) request_budget: Duration,
}

/// Whether the database needs the demo.
enum Standing {
    /// The demo user exists and may log in.
    Made,
    /// The database is empty, or an earlier start did not finish the demo.
    Wanted,
    /// The database is in use.
    Unwanted,
}

/// The name of the part in health. It keeps the node from being ready before the demo user can log in.
const PART: &str = "demo";

impl Demo {
    /// Reports the node as not ready until `make` has ended.
    pub(super) fn announce(&self) {
        self.health.report(PART, Status::NotReady("the demo is being made".into()));
    }

    /// Creates what is missing. Returns whether the demo user can log in. Retries after temporary failures,
    /// so the node is not ready until it is known whether there is a demo.
    pub(super) async fn make(&self) -> bool {
        loop {
            match self.complete().await {
                Ok(made) => {
                    // Without a demo, the part has nothing left to do either.
                    self.health.report(PART, Status::Ready);
                    return made;
                }
                Err(error) if error.code.http_status() >= 500 && error.code != ErrorCode::Internal => {
                    self.health.report(PART, Status::NotReady(format!("the demo is not made yet: {error}")));
                    tokio::time::sleep(TRY_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the demo was not made");
                    self.health.report(PART, Status::Explained("the demo was not made".into()));
                    return false;
                }
            }
        }
    }

    /// Creates what is missing. The ids and the command ids are fixed, so the next start completes one that
    /// was interrupted. The user is created last, so the data of a finished demo is never touched again.
    async fn complete(&self) -> Result<bool> {
        match self.standing().await.map_err(unread)? {
            Standing::Made => return Ok(true),
            Standing::Wanted => {}
            Standing::Unwanted => return Ok(false),
        }
        // One after the other, because lists show the patients in this order.
        for (number, row) in (0..).zip(PATIENTS) {
            let details =
                details(row).ok_or_else(|| Error::new(ErrorCode::Internal, "a date of the demo is none"))?;
            self.register(PatientId(Uuid::from_u128(FIRST_ID + number)), details).await?;
        }
        let users = auth::Users::new(&self.auth, Arc::clone(&self.store) as _, Arc::clone(&self.clock));
        let users = users.allowing_common_passwords();
        already(users.create(USER, PASSWORD, Role::Admin, auth::By::Operator).await.map(drop))?;
        Ok(true)
    }

    async fn standing(&self) -> store::Result<Standing> {
        if let Some(user) = self.store.find_user(USER).await? {
            return Ok(if user.disabled { Standing::Unwanted } else { Standing::Made });
        }
        let first = self.store.load_patient(PatientId(Uuid::from_u128(FIRST_ID)), None).await?;
        let begun = matches!(first.state, PatientState::Active(_));
        let nobody = self.store.list_users(None, 1).await?.is_empty();
        let empty = nobody && (begun || self.store.is_empty().await?);
        Ok(if empty { Standing::Wanted } else { Standing::Unwanted })
    }

    /// Registers one demo patient.
    async fn register(&self, id: PatientId, details: PatientDetails) -> Result<()> {
        let caller = Caller::system("demo");
        let mut ctx = RequestContext::new(caller, TraceContext::root(), &*self.clock, self.request_budget);
        ctx.command_id = CommandId(id.0);
        already(self.patients.register(&ctx, id, details, Conditions::default()).await.map(|_| ()))
    }
}

fn unread(error: store::Error) -> Error {
    let code = match error {
        store::Error::Broken(_) => ErrorCode::Internal,
        store::Error::Unavailable(_) | store::Error::Unknown(_) => ErrorCode::Unavailable,
    };
    Error::new(code, error.to_string())
}

/// Treats an existing item as success: an earlier start created it, or an attempt whose outcome was unknown.
fn already(made: Result<()>) -> Result<()> {
    match made {
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(()),
        other => other,
    }
}

fn details((name, email, address, born, registered): Row) -> Option<PatientDetails> {
    let date = |(year, month, day): (i32, u8, u8)| {
        Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()
    };
    Some(PatientDetails {
        name: name.into(),
        email: email.into(),
        address: address.into(),
        date_of_birth: date(born)?,
        registered_date: date(registered)?,
    })
}

/// Waits until each part works, so that log lines about the start come before the banner and not after it.
/// The part of the actors as a whole reports only after each of them has reported.
pub(super) async fn quiet(health: &Health) {
    let quiet = async {
        while !health.all_work() {
            tokio::time::sleep(TRY_EVERY).await;
        }
    };
    let _ = tokio::time::timeout(QUIET_LIMIT, quiet).await;
}

/// Prints the node's addresses on standard error, because standard output is the log. `node` is its name
/// within a cluster.
#[expect(clippy::print_stderr, reason = "this is what a person who starts a node by hand looks for")]
pub(super) fn tell(node: Option<&str>, addresses: &RuntimeFile, demo: bool) {
    // A node of a cluster prints one line, because the output of several nodes may be mixed.
    if let Some(name) = node {
        let told = [("HTTP", &addresses.http), ("gRPC", &addresses.grpc)];
        let told = told.iter().filter_map(|(what, address)| Some(format!("  {what} {}", address.as_ref()?)));
        eprintln!("{name} is up.{}", told.collect::<String>());
        return;
    }
    // A single write, so that no log line comes between the lines of the banner.
    eprint!("{}", banner(addresses, demo));
}

fn banner(addresses: &RuntimeFile, demo: bool) -> String {
    let http = addresses.http.as_deref().unwrap_or_default();
    let mut lines = vec![
        "\nHygeia is up.".to_owned(),
        format!("  HTTP   http://{http}      try http://{http}/"),
        format!("  gRPC   {}", addresses.grpc.as_deref().unwrap_or_default()),
        format!("  Kafka  {}", addresses.kafka.as_deref().unwrap_or_default()),
    ];
    if demo {
        lines.push(format!("  Login  {USER} / {PASSWORD} (ADMIN; a demo, made because nothing is set up)\n"));
        lines.push(format!("  curl -s http://{http}/auth/login -H 'content-type: application/json' \\"));
        lines.push(format!("    -d '{{\"email\":\"{USER}\",\"password\":\"{PASSWORD}\"}}'"));
    }
    lines.join("\n") + "\n\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::validate::{self, PatientInput, format_date};

    #[test]
    fn the_demo_keeps_the_rules() {
        let today = time::macros::date!(2026 - 01 - 01);
        for row in PATIENTS {
            let details = details(row).expect("real dates");
            let (born, registered) =
                (format_date(details.date_of_birth), format_date(details.registered_date));
            let input = PatientInput {
                name: Some(&details.name),
                email: Some(&details.email),
                address: Some(&details.address),
                date_of_birth: Some(&born),
                registered_date: Some(&registered),
            };
            assert_eq!(validate::registration(&input, today), Ok(details));
        }
    }
}
