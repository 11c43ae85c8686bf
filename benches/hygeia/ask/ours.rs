//! Our own local ask: the handle of patients, over directory, region and shard, for a patient in memory.

use std::sync::Arc;
use std::time::Duration;

use hygeia::actors::patients::{PatientHandle, Patients};
use hygeia::actors::settings::Settings;
use hygeia::actors::system::{Chain, Parts, Tree};
use hygeia::clock::SystemClock;
use hygeia::context::{RequestContext, TraceContext};
use hygeia::domain::access::Caller;
use hygeia::domain::ids::PatientId;
use hygeia::domain::patient::PatientDetails;
use hygeia::health::Health;
use hygeia::store::{self, Use};
use tempfile::TempDir;
use time::macros::date;
use uuid::Uuid;

use crate::Result;

/// Long enough for a busy machine: nothing here is to fail for want of time.
const BUDGET: Duration = Duration::from_secs(30);

/// The chain of actors with one patient in memory.
pub(super) struct Ours {
    tree: Tree,
    directory: TempDir,
    asked: Asked,
}

/// Who asks what.
#[derive(Clone)]
pub(super) struct Asked {
    handle: PatientHandle,
    patient: PatientId,
    caller: Caller,
}

impl Ours {
    /// Starts the chain over a database in a temporary directory.
    pub(super) async fn start() -> Result<Ours> {
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite:{}", directory.path().join("ask.db").display());
        let database =
            store::open(&store::Settings { url, ..store::Settings::default() }, Use::Serve).await?;
        let settings = Settings::default();
        let parts = Parts {
            shards: database.shard_count(settings.shards).await?,
            store: Arc::clone(&database),
            store_writers: 1,
            clock: Arc::new(SystemClock),
            health: Health::default(),
            owner: "bench#1".into(),
            settings,
        };
        let chain = Chain::<Patients>::default();
        let tree = Tree::start(&parts, chain.children(&parts, database, Vec::new())).await?;
        let asked = Asked {
            handle: chain.handle(&parts),
            patient: PatientId(Uuid::now_v7()),
            caller: Caller::system("bench"),
        };
        let details = PatientDetails {
            name: "Bench Patient".into(),
            email: "bench@example.com".into(),
            address: "1 Bench Street, Benchtown".into(),
            date_of_birth: date!(1980 - 05 - 17),
            registered_date: date!(2026 - 01 - 02),
        };
        asked.handle.register(&asked.context(), asked.patient, details).await?;
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
    fn context(&self) -> RequestContext {
        RequestContext::new(self.caller.clone(), TraceContext::root(), &SystemClock, BUDGET)
    }

    /// One question and its answer.
    pub(super) async fn ask(self) -> Result<()> {
        self.handle.get(&self.context(), self.patient).await?;
        Ok(())
    }
}
