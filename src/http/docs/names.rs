//! Enum schemas for the interface's fixed value sets, so that generated clients know the values. Each is
//! built from the list that the program itself uses for parsing and printing.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::access::{Action, Role};
use crate::domain::account::AccountStatus;
use crate::domain::audit::Outcome;
use crate::domain::event::EventType;
use crate::error::ErrorCode;

use super::super::search::SORTS;

/// Defines the schema type `$name`: one of the texts of `$values`.
macro_rules! named {
    ($name:ident, $says:literal, $values:expr) => {
        #[doc = $says]
        pub(in crate::http) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let texts = ObjectBuilder::new().schema_type(Type::String).description(Some($says));
                texts.enum_values(Some($values)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

named!(RoleName, "What a user is.", Role::ALL.iter().map(|role| role.as_str()));
named!(ActionName, "What a caller wanted.", Action::ALL.iter().map(|action| action.as_str()));
named!(
    OutcomeName,
    "What came of an access: `REFUSED` if it was not there or taken, `UNKNOWN` if nobody can tell.",
    Outcome::SHOWN.iter().map(|outcome| outcome.as_str())
);
named!(CodeName, "The kind of problem, for programs.", ErrorCode::ALL.iter().map(|code| code.as_str()));
named!(
    SortName,
    "The order of a list; with `-` before it the other way round.",
    SORTS.iter().map(|(name, ..)| *name)
);
named!(EventName, "What happened to a record.", EventType::ALL.iter().map(|event| event.as_str()));
named!(
    AccountState,
    "`ACTIVE`: the account may be charged.",
    AccountStatus::ALL.iter().map(|status| status.as_str())
);
