//! Our own local ask: the handle of patients, over directory, region and shard, for a patient in memory.

use std::sync::Arc;
use std::time::Duration;

use hygeia::actors::link::Links;
use hygeia::actors::members::{self, Members};
use hygeia::actors::patients::{PatientHandle, Patients};
use hygeia::actors::settings::Settings;
use hygeia::actors::system::{Chain, Parts, Runs, Tree};
use hygeia::clock::SystemClock;
use hygeia::context::{RequestContext, TraceContext};
use hygeia::domain::access::Caller;
use hygeia::domain::cluster::NodeRole;
use hygeia::domain::conditions::Conditions;
use hygeia::domain::ids::PatientId;
use hygeia::domain::patient::PatientDetails;
use hygeia::health::Health;
use hygeia::store::{self, Store, Use};
use tempfile::TempDir;
use time::macros::date;
use uuid::Uuid;

use crate::Result;

/// Long enough for a busy machine: nothing here is to fail for want of time.
const BUDGET: Duration = Duration::from_secs(30);

/// What is known of the patient that is asked for.
pub(crate) fn details() -> PatientDetails {
    PatientDetails {
        name: "Bench Patient".into(),
        email: "bench@example.com".into(),
        address: "1 Bench Street, Benchtown".into(),
        date_of_birth: date!(1980 - 05 - 17),
        registered_date: date!(2026 - 01 - 02),
    }
}

/// Opens a database in `directory`.
pub(crate) async fn open(directory: &TempDir) -> Result<Arc<dyn Store>> {
    let url = format!("sqlite:{}", directory.path().join("ask.db").display());
    Ok(store::open(&store::Settings { url, ..store::Settings::default() }, Use::Serve).await?)
}

/// What the actors of a node share.
pub(crate) async fn parts(
    database: &Arc<dyn Store>,
    owner: Arc<str>,
    members: Members,
    links: Option<Links>,
) -> Result<Parts> {
    let settings = Settings::default();
    Ok(Parts {
        audit: None,
        shards: database.shard_count(settings.shards).await?,
        store: Arc::clone(database),
        store_writers: 1,
        clock: Arc::new(SystemClock),
        health: Health::default(),
        owner,
        members,
        released: Arc::new(|_, _, _| {}),
        able: Arc::new(|_, _| {}),
        links,
        settings,
    })
}

/// The chain of actors with one patient in memory.
pub(super) struct Ours {
    tree: Tree,
    directory: TempDir,
    asked: Asked,
}

/// Who asks what.
#[derive(Clone)]
pub(crate) struct Asked {
    handle: PatientHandle,
    patient: PatientId,
    caller: Caller,
}

impl Ours {
    /// Starts the chain over a database in a temporary directory.
    pub(super) async fn start() -> Result<Ours> {
        let directory = tempfile::tempdir()?;
        let database = open(&directory).await?;
        let roles = [NodeRole::Front, NodeRole::Patient].into();
        let owner: Arc<str> = "bench#1".into();
        let members = members::alone("bench".into(), Arc::clone(&owner), roles);
        let parts = parts(&database, owner, members, None).await?;
        let chain = Chain::<Patients>::default();
        let runs = Runs { serving: true, asking: true };
        let tree = Tree::start(&parts, chain.children(&parts, runs, database, Vec::new())).await?;
        let asked = Asked::registered(chain.handle(&parts)).await?;
        Ok(Ours { tree, directory, asked })
    }

    /// What to ask.
    pub(super) fn asked(&self) -> Asked {
        self.asked.clone()
    }

    /// Stops the chain and forgets the database.
    pub(super) async fn stop(self) -> Result<()> {
        self.tree.stopping();
        self.tree.stop().await;
        Ok(self.directory.close()?)
    }
}

impl Asked {
    /// Registers the patient by `handle`, and asks for it from now on.
    pub(crate) async fn registered(handle: PatientHandle) -> Result<Asked> {
        let asked = Asked { handle, patient: PatientId(Uuid::now_v7()), caller: Caller::system("bench") };
        asked.handle.register(&asked.context(), asked.patient, details(), Conditions::default()).await?;
        Ok(asked)
    }

    fn context(&self) -> RequestContext {
        RequestContext::new(self.caller.clone(), TraceContext::root(), &SystemClock, BUDGET)
    }

    /// One question and its answer.
    pub(crate) async fn ask(self) -> Result<()> {
        self.handle.get(&self.context(), self.patient).await?;
        Ok(())
    }
}
