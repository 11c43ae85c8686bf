//! Creates the first administrator when a front finds a database without users.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{FirstAdmin, Settings, Users, make_first_admin};
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::health::{Health, Status};
use crate::store::Store;

/// The pause before another attempt while the database does not answer.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// Creates the administrator, if the settings name one and the database has no users. Retries for as long as
/// the database does not answer.
///
/// # Errors
/// A failure that a retry cannot fix.
pub(super) async fn make(
    settings: &Settings,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    health: &Health,
) -> Result<()> {
    let users = Users::new(settings, Arc::clone(store) as _, Arc::clone(clock));
    loop {
        match make_first_admin(settings, &users).await {
            Ok(FirstAdmin::Made) => {
                tracing::info!("there were no users: the first administrator was made");
                return Ok(());
            }
            Ok(FirstAdmin::NotNeeded | FirstAdmin::NotWanted) => return Ok(()),
            Err(error) if is_passing(&error) => {
                health.report("store", Status::NotReady(error.detail.to_string()));
                tokio::time::sleep(TRY_EVERY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::OutcomeUnknown | ErrorCode::Overloaded)
}
