//! `GET /api/patients`: pages of living patients. Filters and orders can be combined only where one index
//! returns the rows in order. Other combinations are refused, and the error says what is possible.

use std::borrow::Cow;
use std::sync::Arc;

use axum::response::Response;
use form_urlencoded::Serializer;
use http::header::LINK;
use http::{HeaderValue, StatusCode};
use time::Date;

use crate::domain::access::View;
use crate::domain::email::{EMAIL_MAX_CHARS, EmailAddress, EmailKey};
use crate::domain::search::{Filter, PatientSearch, Place, Sort};
use crate::domain::text::{search_key, trimmed};
use crate::domain::validate::{BadDate, FieldErrors, parse_date};
use crate::error::{Error, ErrorCode};

use super::docs::names::SortName;
use super::pipeline::Call;
use super::problem::Failure;
use super::query::{Query, searched};
use super::shown::Shown;
use super::{AppState, cursor, reply};

/// Default number of records on a page.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// Query parameters of the list.
pub(super) const PARAMETERS: [&str; 8] =
    ["q", "email", "bornAfter", "bornBefore", "registeredAfter", "sort", "limit", "cursor"];

/// Each order with its name, and whether it is descending.
pub(super) const SORTS: [(&str, Sort, bool); 8] = [
    ("created", Sort::Created, false),
    ("-created", Sort::Created, true),
    ("name", Sort::Name, false),
    ("-name", Sort::Name, true),
    ("born", Sort::Born, false),
    ("-born", Sort::Born, true),
    ("registered", Sort::Registered, false),
    ("-registered", Sort::Registered, true),
];

/// Lists living patients.
///
/// Returns one page; the `Link` header leads to the next one, if there is more. A page may be shorter than
/// its limit. A patient who is registered throughout is neither omitted nor repeated, even if others are
/// added or removed meanwhile. Restricted records are never listed.
///
/// At most one filter can be given: `q`, `email`, `bornAfter` with `bornBefore`, or `registeredAfter`.
/// Results of `q` are sorted by the matching text. `bornAfter` and `bornBefore` allow the orders `born` and
/// `-born`, `registeredAfter` allows `registered` and `-registered`.
///
/// The role BILLING is shown only `id` and `name`. For that role, `q` searches names only, and the list can
/// be sorted by `created` and `name`. Parameters about other fields are refused (403).
#[utoipa::path(get, path = "/api/patients", operation_id = "listPatients", tag = "patients",
    params(
        ("q" = Option<String>, Query, description = "How the name or the e-mail address begins, in any case, such \
            as `ada l`.", min_length = 1, max_length = 254),
        ("email" = Option<String>, Query, description = "The whole e-mail address, in any case.", max_length = 254),
        ("bornAfter" = Option<Date>, Query, description = "Born after this day."),
        ("bornBefore" = Option<Date>, Query, description = "Born before this day."),
        ("registeredAfter" = Option<Date>, Query, description = "With a registered date after this day."),
        ("sort" = Option<SortName>, Query, description = "`created`, `name`, `born` or `registered`; with `-` before it \
            the other way round, such as `-born`. The oldest record comes first if nothing else is said."),
        ("limit" = Option<u32>, Query, description = "Records on the page.", minimum = 1, maximum = 1000, example = 100),
        ("cursor" = Option<String>, Query, description = "Where the page begins: only as a `Link` gave it out, with \
            the parameters that stand beside it there."),
    ),
    responses((status = 200, description = "A page of records.", body = Vec<Shown>,
        headers(("Link", description = "`<path>; rel=\"next\"` (RFC 8288), if there is more.")))))]
pub(super) async fn list(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    // Set before parsing, so that the audit of a refused search also says what was searched for.
    call.accessed.is_about(searched(call.parts.uri.query()));
    let query = Query::read(call.parts.uri.query(), &PARAMETERS)?;
    let view = call.ctx.caller.role.sees();
    let take_back = |list: &str, text: &str| cursor::take_back(&app.auth, &seen_in(view, list), text);
    let Page { search, list } = Page::of(&query, view, take_back)?;
    // Read one row more than the page, to know whether there is more.
    let limit = search.limit_rows;
    let wanted = PatientSearch { limit_rows: limit + 1, ..search };
    let page = app.patients.search(&call.ctx, &wanted).await?;
    let mut patients: Vec<_> = page.patients.into_iter().map(|seen| call.open(seen)).collect();
    let more = patients.len() > limit as usize;
    patients.truncate(limit as usize);
    call.accessed.shows(patients.iter().map(|patient| patient.id).collect());
    let shown: Vec<Shown<'_>> = patients.iter().map(|patient| Shown::to(&call, patient)).collect();
    let mut response = reply::json(StatusCode::OK, &shown)?;
    let last = patients.last().filter(|_| more).map(|last| wanted.place_of(last));
    if let Some(place) = last.or(page.resume) {
        let link = link_to(
            &list,
            limit,
            &cursor::give_out(&app.auth, &seen_in(view, &list), &place).unwrap_or_default(),
        );
        response.headers_mut().extend(HeaderValue::try_from(link).ok().map(|link| (LINK, link)));
    }
    Ok(response)
}

/// Returns the name of the list to which cursors are bound. The views have different names: a cursor of a
/// list of whole records is not valid in a list of names.
fn seen_in(view: View, list: &str) -> Cow<'_, str> {
    match view {
        View::Whole => list.into(),
        View::NameOnly => format!("names {list}").into(),
    }
}

/// Returns the refusal of a `query` that would reveal other fields to a caller who is shown only names.
fn beyond_names(query: &Query) -> Option<Failure> {
    const FIELDS: [&str; 4] = ["email", "bornAfter", "bornBefore", "registeredAfter"];
    const SORTS: [&str; 4] = ["born", "-born", "registered", "-registered"];
    let by_field = FIELDS.into_iter().find(|name| query.get(name).is_some());
    let by_sort = query.get("sort").filter(|sort| SORTS.contains(sort)).map(|_| "sort");
    by_field.or(by_sort).map(|name| {
        let detail = format!("The role is shown id and name alone: {name} would tell of another field");
        Failure::from(Error::new(ErrorCode::Forbidden, detail))
    })
}

fn link_to(list: &str, limit: u32, cursor: &str) -> String {
    let and = if list.is_empty() { "" } else { "&" };
    format!("</api/patients?{list}{and}limit={limit}&cursor={cursor}>; rel=\"next\"")
}

/// The requested page of a list.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    search: PatientSearch,
    /// Identifies the list: its parameters without limit and cursor, in one order and one form.
    list: String,
}

impl Page {
    fn of(
        query: &Query,
        view: View,
        take_back: impl Fn(&str, &str) -> Option<Place>,
    ) -> Result<Self, Failure> {
        if let Some(failure) = beyond_names(query).filter(|_| view == View::NameOnly) {
            return Err(failure);
        }
        let mut given = Given { query, view, errors: FieldErrors::new() };
        let (filter, mut list) = given.filter();
        let (sort, descending) = given.sort(&filter);
        let limit = given.one("limit").map_or(Some(LIMIT_DEFAULT), |text| {
            text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
        });
        if limit.is_none() {
            given.wrong("limit", "Limit should be a number from 1 to 1000");
        }
        let (name, ..) = SORTS.iter().find(|(_, s, d)| (*s, *d) == (sort, descending)).unwrap_or(&SORTS[0]);
        if (sort, descending) != (filter.sorts()[0], false) {
            list.append_pair("sort", name);
        }
        let list = list.finish();
        let after = given.one("cursor").map(|text| take_back(&list, text));
        if after == Some(None) {
            given.wrong("cursor", "Cursor should be as it was given out, with the same parameters");
        }
        match limit {
            Some(limit_rows) if given.errors.is_empty() => {
                let search = PatientSearch { filter, sort, descending, after: after.flatten(), limit_rows };
                Ok(Page { search, list })
            }
            _ => Err(Error::invalid_fields(given.errors).into()),
        }
    }
}

/// The parameters, and their errors.
struct Given<'a> {
    query: &'a Query,
    view: View,
    errors: FieldErrors,
}

impl<'a> Given<'a> {
    fn wrong(&mut self, name: &'static str, message: &'static str) {
        self.errors.entry(name).or_insert(message);
    }

    fn one(&self, name: &str) -> Option<&'a str> {
        self.query.get(name)
    }

    fn day(&mut self, name: &'static str) -> Option<Date> {
        let text = self.one(name)?;
        parse_date(text)
            .map_err(|bad| match bad {
                BadDate::Form => self.wrong(name, "Should be a date of the form YYYY-MM-DD"),
                BadDate::NoSuchDay => self.wrong(name, "Is not a calendar date: there is no such day"),
            })
            .ok()
    }

    /// Returns the beginning of a name or an address in the form of their indexes. A complete address is
    /// converted to its unique form instead.
    fn beginning(&mut self) -> Option<Box<str>> {
        let text = trimmed(self.one("q")?);
        if text.is_empty() || text.chars().count() > EMAIL_MAX_CHARS || text.contains(char::is_control) {
            self.wrong("q", "Should be 1 to 254 characters, none of them a control character");
        }
        Some(match EmailAddress::parse(text) {
            Ok(address) => (**address.key()).into(),
            Err(_) => search_key(text).into(),
        })
    }

    fn email(&mut self) -> Option<Box<str>> {
        match EmailKey::sought(self.one("email")?) {
            Ok(key) => Some((*key).into()),
            Err(message) => {
                self.wrong("email", message);
                None
            }
        }
    }

    /// Returns the filter, and the parameters that express it.
    fn filter(&mut self) -> (Filter, Serializer<'static, String>) {
        let begins = self.beginning();
        let email = self.email();
        let (after, before) = (self.day("bornAfter"), self.day("bornBefore"));
        let registered = self.day("registeredAfter");
        let asked = ["q", "email", "bornAfter", "bornBefore", "registeredAfter"]
            .map(|name| self.query.get(name).is_some());
        let kinds = [asked[0], asked[1], asked[2] || asked[3], asked[4]];
        if kinds.iter().filter(|asked| **asked).count() > 1 {
            let message = "Only one of q, email, bornAfter with bornBefore, and registeredAfter can be given";
            let names = ["q", "email", "bornAfter", "bornBefore", "registeredAfter"];
            names
                .into_iter()
                .zip(asked)
                .filter(|(_, asked)| *asked)
                .for_each(|(name, _)| self.wrong(name, message));
        }
        let mut list = Serializer::new(String::new());
        let filter = match (begins, email, registered) {
            (Some(prefix), ..) => {
                list.append_pair("q", &prefix);
                match self.view {
                    View::Whole => Filter::Begins(prefix),
                    View::NameOnly => Filter::NameBegins(prefix),
                }
            }
            (_, Some(key), _) => {
                list.append_pair("email", &key);
                Filter::Email(key)
            }
            (_, _, Some(day)) => {
                list.append_pair("registeredAfter", &crate::domain::validate::format_date(day));
                Filter::RegisteredAfter(day)
            }
            _ if after.is_some() || before.is_some() => {
                for (name, day) in [("bornAfter", after), ("bornBefore", before)] {
                    list.extend_pairs(day.map(|day| (name, crate::domain::validate::format_date(day))));
                }
                Filter::Born { after, before }
            }
            _ => Filter::All,
        };
        (filter, list)
    }

    fn sort(&mut self, filter: &Filter) -> (Sort, bool) {
        let usual = (filter.sorts()[0], false);
        let Some(text) = self.one("sort") else { return usual };
        let Some((_, sort, descending)) = SORTS.iter().find(|(name, ..)| *name == text) else {
            self.wrong("sort", "Should be created, name, born or registered, or one of them after a -");
            return usual;
        };
        let begins = matches!(filter, Filter::Begins(_) | Filter::NameBegins(_));
        let backwards_match = *descending && begins;
        if !filter.sorts().contains(sort) || backwards_match {
            let message = match filter {
                Filter::Begins(_) | Filter::NameBegins(_) => "With q it can only be name",
                Filter::Born { .. } => "With bornAfter or bornBefore it can be born or -born",
                _ => "With registeredAfter it can be registered or -registered",
            };
            self.wrong("sort", message);
        }
        (*sort, *descending)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::date;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::PatientId;
    use crate::domain::search::Key;
    use crate::domain::time::Timestamp;

    fn place() -> Place {
        Place { key: Key::Time(Timestamp(1)), id: PatientId(Uuid::nil()) }
    }

    /// `good` is a valid cursor of every list.
    fn page(query: &str) -> Result<Page, Failure> {
        let query = Query::read(Some(query), &PARAMETERS)?;
        Page::of(&query, View::Whole, |_, text| (text == "good").then(place))
    }

    #[test]
    fn a_page_has_1_to_1000_records_and_begins_where_it_may() {
        assert_eq!(page("").expect("a page").search, PatientSearch::all(None, 100));
        let given = page("limit=1000&cursor=good").expect("a page");
        assert_eq!(given.search, PatientSearch::all(Some(place()), 1000));
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
            ("limit=ten", "limit"),
            ("limit=99999999999", "limit"),
            ("limit=1&limit=2", "limit"),
            ("cursor=bad", "cursor"),
            ("cursor=", "cursor"),
            ("cursor=good&cursor=good", "cursor"),
            ("q=", "q"),
            ("q=%00", "q"),
            ("q=a&q=b", "q"),
            ("email=+", "email"),
            ("bornAfter=yesterday", "bornAfter"),
            ("bornBefore=2026-02-30", "bornBefore"),
            ("q=%E2%80%8B", "q"),
            ("email=a%00%40example.org", "email"),
            ("registeredAfter=1", "registeredAfter"),
            ("sort=age", "sort"),
            ("sort=Name", "sort"),
            ("q=a&sort=born", "sort"),
            ("q=a&sort=-name", "sort"),
            ("bornAfter=2000-01-01&sort=name", "sort"),
            ("registeredAfter=2000-01-01&sort=created", "sort"),
        ] {
            let errors = page(query).expect_err(query).error.fields;
            assert_eq!(errors.keys().collect::<Vec<_>>(), [&field], "{query}");
        }
        let failure = page("bornafter=2000-01-01").expect_err("a parameter that there is not");
        assert_eq!(failure.other_fields["bornafter"], "Unknown parameter");
    }

    #[test]
    fn a_filter_is_one_kind_and_its_list_has_one_name() {
        for (query, filter, list) in [
            ("q=+Ada%20L&sort=name", Filter::Begins("ada l".into()), "q=ada+l"),
            ("q=%CE%A3%CE%8A%CE%A3", Filter::Begins("\u{3c3}\u{3af}\u{3c3}".into()), "q=%CF%83%CE%AF%CF%83"),
            ("q=stra%C3%9F", Filter::Begins("strass".into()), "q=strass"),
            (
                "q=Ada@b%C3%BCcher.example",
                Filter::Begins("ada@xn--bcher-kva.example".into()),
                "q=ada%40xn--bcher-kva.example",
            ),
            (
                "email=Ada@b%C3%BCcher.example",
                Filter::Email("ada@xn--bcher-kva.example".into()),
                "email=ada%40xn--bcher-kva.example",
            ),
            ("email=ADA%2B1@x.de", Filter::Email("ada+1@x.de".into()), "email=ada%2B1%40x.de"),
            (
                "bornBefore=2001-01-01&bornAfter=2000-01-01&sort=-born",
                Filter::Born { after: Some(date!(2000 - 01 - 01)), before: Some(date!(2001 - 01 - 01)) },
                "bornAfter=2000-01-01&bornBefore=2001-01-01&sort=-born",
            ),
            (
                "registeredAfter=2020-01-01",
                Filter::RegisteredAfter(date!(2020 - 01 - 01)),
                "registeredAfter=2020-01-01",
            ),
            ("sort=created", Filter::All, ""),
            ("sort=-registered", Filter::All, "sort=-registered"),
        ] {
            let page = page(query).expect(query);
            assert_eq!((page.search.filter, &*page.list), (filter, list), "{query}");
        }
        let errors = page("q=a&bornBefore=2000-01-01&email=a@b.c").expect_err("three kinds").error.fields;
        assert_eq!(errors.into_keys().collect::<Vec<_>>(), ["bornBefore", "email", "q"]);
    }

    #[test]
    fn who_is_shown_names_alone_asks_by_names_alone() {
        let asked = |query: &str| {
            let query = Query::read(Some(query), &PARAMETERS)?;
            Page::of(&query, View::NameOnly, |_, _| None)
        };
        for query in [
            "email=a%40b.c",
            "bornAfter=2000-01-01",
            "bornBefore=2000-01-01",
            "registeredAfter=2000-01-01",
            "sort=born",
            "sort=-born",
            "sort=registered",
            "sort=-registered",
            "q=ada&sort=born",
            "bornAfter=nonsense",
        ] {
            assert_eq!(asked(query).expect_err(query).error.code, ErrorCode::Forbidden, "{query}");
        }
        assert_eq!(asked("q=Ada").expect("a page").search.filter, Filter::NameBegins("ada".into()));
        for query in ["", "sort=name", "sort=-name", "sort=-created", "limit=7"] {
            assert_eq!(asked(query).expect(query).search, page(query).expect(query).search);
        }
        assert_eq!(asked("q=a&sort=-name").expect_err("one way").error.code, ErrorCode::Invalid);
        assert_ne!(seen_in(View::NameOnly, "q=ada"), seen_in(View::Whole, "q=ada"));
    }

    #[test]
    fn a_link_leads_on_in_the_same_list() {
        assert_eq!(link_to("", 3, "x"), "</api/patients?limit=3&cursor=x>; rel=\"next\"");
        assert_eq!(link_to("sort=name", 3, "x"), "</api/patients?sort=name&limit=3&cursor=x>; rel=\"next\"");
    }
}
