//! `/openapi.json`, `/api-docs` and `/swagger-ui`: the OpenAPI 3.1 description of the interface. The
//! successful responses of an endpoint are declared at its handler. Its failures and permissions come from
//! the route table, the headers of every response from `docs/headers.rs`. `docs/openapi.json` is the output
//! of `hygeia openapi`; a test keeps the two equal.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::response::Response;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, PartialSchema, ToSchema as _};

use crate::error::ErrorCode;

use super::compress::Document;
use super::pipeline::{Admission, Effect, Endpoint, Handler, OpenCall, Takes, Verb};
use super::problem::{Failure, PROBLEM_JSON, Problem};
use super::routes::ROUTES;
use super::{AppState, analytics, audit, billing, cluster, history, login, ops, patients, search, users};

mod headers;
pub(super) mod index;
pub(super) mod names;
pub(super) mod swagger;

const BEARER: &str = "bearer";

#[derive(utoipa::OpenApi)]
#[openapi(paths(
    patients::register,
    search::list,
    patients::get,
    patients::update,
    patients::patch,
    history::history,
    patients::restrict,
    patients::unrestrict,
    patients::delete,
    analytics::summary,
    billing::account,
    ops::live,
    ops::ready,
    ops::metrics,
    cluster::status,
    users::list,
    users::create,
    users::change,
    users::password,
    audit::list,
    index::index,
    whole,
    patients,
    auth,
    swagger::redirect,
    swagger::page,
    swagger::file,
))]
struct PatientsApi;

#[derive(utoipa::OpenApi)]
#[openapi(paths(
    login::login,
    login::refresh,
    login::logout,
    login::logout_all,
    login::validate,
    login::keys,
))]
struct AuthApi;

/// A description in every coding, built at the first request.
type Described = LazyLock<Document>;

static PATIENTS: Described = LazyLock::new(|| {
    let about =
        "Patients, analytics, billing accounts, users, the access audit, and what operators ask a node.";
    compact(&described(PatientsApi::openapi(), "Hygeia: patients", about))
});

static AUTH: Described = LazyLock::new(|| {
    compact(&described(
        AuthApi::openapi(),
        "Hygeia: authentication",
        "Passwords for tokens, and the sessions that follow.",
    ))
});

static WHOLE: Described = LazyLock::new(|| compact(&everything()));

/// Returns the whole interface as one OpenAPI 3.1 document, as indented JSON.
pub fn openapi() -> String {
    everything().to_pretty_json().unwrap_or_default()
}

fn everything() -> OpenApi {
    let mut whole = PatientsApi::openapi();
    whole.merge(AuthApi::openapi());
    described(whole, "Hygeia", "Patient management: the whole HTTP interface.")
}

/// Returns the description of the whole interface.
///
/// To try it out in `/swagger-ui/`, send `POST /auth/login`. The page then sends the token from the response
/// with each further request.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "documentation",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object)))]
pub(super) async fn whole(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    shown(&WHOLE, &call).await
}

/// Returns the description of the interface without authentication.
#[utoipa::path(get, path = "/api-docs/patients", operation_id = "openapiPatients", tag = "documentation",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object)))]
pub(super) async fn patients(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    shown(&PATIENTS, &call).await
}

/// Returns the description of the authentication interface.
#[utoipa::path(get, path = "/api-docs/auth", operation_id = "openapiAuth", tag = "documentation",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object)))]
pub(super) async fn auth(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    shown(&AUTH, &call).await
}

/// Building the document takes tens of milliseconds, so it runs on a blocking thread.
async fn shown(described: &'static Described, call: &OpenCall) -> Result<Response, Failure> {
    let made = tokio::task::spawn_blocking(|| &**described).await;
    let document =
        made.map_err(|_| Failure::new(ErrorCode::Internal, "The description could not be made"))?;
    Ok(document.answer(&call.parts.headers))
}

fn compact(api: &OpenApi) -> Document {
    Document::of("application/json", api.to_json().unwrap_or_default())
}

/// Statements that hold for every route, so that they are not repeated for each.
const MANNERS: &str = "Every GET answers HEAD too, and every route answers OPTIONS with 204 and its methods in `Allow`. \
    An unknown route is answered 404, an unknown method 405 with `Allow`. All failures are problems (RFC 9457). Answers \
    of some length are compressed (`gzip`, `br`) for who accepts it. What is no HTTP at all, or a head over its limit, \
    is answered with a bare 400, 414 or 431, and the connection ends.";

/// Returns `path` of the route table in OpenAPI syntax, which has no placeholder for several segments.
fn template(path: &str) -> String {
    path.replace("{*", "{")
}

/// Adds to `api` everything that its operations share.
fn described(mut api: OpenApi, title: &str, about: &str) -> OpenApi {
    api.info = InfoBuilder::new()
        .title(title)
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(format!("{about}\n\n{MANNERS}")))
        .build();
    let components = api.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), Problem::schema());
    // Schemas that only a parameter or a problem refers to are not collected automatically.
    components.schemas.insert(names::CodeName::name().into(), names::CodeName::schema());
    components.schemas.insert(names::SortName::name().into(), names::SortName::schema());
    headers::define(components);
    components.add_security_scheme(
        BEARER,
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build()),
    );
    for endpoint in &ROUTES {
        let item = api.paths.paths.get_mut(&template(endpoint.path));
        if let Some(operation) = item.and_then(|item| operation_of(item, endpoint.verb)) {
            complete(operation, endpoint);
        }
    }
    api
}

fn operation_of(item: &mut PathItem, verb: Verb) -> Option<&mut Operation> {
    let operation = match verb {
        Verb::Get => &mut item.get,
        Verb::Post => &mut item.post,
        Verb::Put => &mut item.put,
        Verb::Patch => &mut item.patch,
        Verb::Delete => &mut item.delete,
    };
    operation.as_mut()
}

/// Adds to `operation` its security requirement and its failures.
fn complete(operation: &mut Operation, endpoint: &Endpoint<AppState>) {
    if matches!(endpoint.handler, Handler::Named(..)) {
        let token = SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, []);
        operation.security = Some(vec![token]);
    }
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in failures(endpoint) {
        by_status.entry(code.http_status()).or_default().push(code);
    }
    let registers = endpoint.verb == Verb::Post && endpoint.path == "/api/patients";
    for (status, codes) in by_status {
        let response = problem_response(&codes, registers);
        operation.responses.responses.entry(status.to_string()).or_insert(RefOr::T(response));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            headers::add(response, matches!(endpoint.handler, Handler::Named(..)));
        }
    }
}

/// Returns every code with which a request of `endpoint` can fail.
fn failures(endpoint: &Endpoint<AppState>) -> Vec<ErrorCode> {
    let mut codes = endpoint.refuses.to_vec();
    codes.extend([ErrorCode::Invalid, ErrorCode::NotImplemented]);
    if matches!(endpoint.handler, Handler::Named(..)) {
        codes.extend([ErrorCode::Unauthenticated, ErrorCode::Forbidden, ErrorCode::RateLimited]);
    }
    if endpoint.takes != Takes::Nothing {
        codes.extend([
            ErrorCode::PayloadTooLarge,
            ErrorCode::UnsupportedMediaType,
            ErrorCode::RequestTimeout,
        ]);
    }
    if endpoint.admission == Admission::Counted {
        codes.extend([ErrorCode::Overloaded, ErrorCode::Unavailable, ErrorCode::DeadlineExceeded]);
    }
    if endpoint.effect == Effect::Writes {
        codes.push(ErrorCode::OutcomeUnknown);
    }
    codes.push(ErrorCode::Internal);
    codes
}

fn problem_response(codes: &[ErrorCode], registers: bool) -> utoipa::openapi::Response {
    let titles: Vec<&str> = codes.iter().map(|code| code.title()).collect();
    let examples = codes.iter().map(|code| (code.as_str(), example(*code, registers)));
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let mut response =
        ResponseBuilder::new().description(titles.join(". Or: ")).content(PROBLEM_JSON, content);
    if codes.iter().any(|code| code.retry_after().is_some()) {
        response = response.header_ref("Retry-After", headers::reference("Retry-After"));
    }
    if codes.contains(&ErrorCode::Unauthenticated) {
        response = response.header_ref("WWW-Authenticate", headers::reference("WWW-Authenticate"));
    }
    response.build()
}

fn example(code: ErrorCode, registers: bool) -> utoipa::openapi::example::Example {
    let mut problem = serde_json::json!({
        "type": format!("urn:hygeia:problem:{}", code.as_str()),
        "title": code.title(),
        "status": code.http_status(),
        "detail": code.title(),
        "code": code.as_str(),
        "traceId": "0af7651916cd43dd8448eb211c80319c",
    });
    if code == ErrorCode::Invalid {
        problem["errors"] = serde_json::json!({"name": "Name is required"});
    }
    if code == ErrorCode::OutcomeUnknown && registers {
        problem["patientId"] = serde_json::json!("123e4567-e89b-12d3-a456-426614174000");
    }
    utoipa::openapi::example::ExampleBuilder::new().value(Some(problem)).build()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn document(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    /// Collects the references to missing schemas.
    fn dangling(document: &Value, at: &Value, missing: &mut Vec<String>) {
        match at {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let path = target.trim_start_matches('#');
                    if document.pointer(path).is_none() {
                        missing.push(target.clone());
                    }
                }
                map.values().for_each(|inner| dangling(document, inner, missing));
            }
            Value::Array(list) => list.iter().for_each(|inner| dangling(document, inner, missing)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_in_its_document_and_in_the_whole() {
        let (patients, auth) = (document(&PATIENTS.plain), document(&AUTH.plain));
        let whole: Value = serde_json::from_str(&openapi()).expect("JSON");
        for endpoint in &ROUTES {
            let of_auth = ["/auth", "/.well-known"].iter().any(|start| endpoint.path.starts_with(start));
            let part = if of_auth { &auth } else { &patients };
            for described in [part, &whole] {
                let operation =
                    &described["paths"][template(endpoint.path)][endpoint.verb.as_str().to_lowercase()];
                let said = format!("{} {}", endpoint.verb.as_str(), endpoint.path);
                assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{said}");
                for code in failures(endpoint) {
                    let response = &operation["responses"][code.http_status().to_string()];
                    assert!(response.is_object(), "{said}: {code:?}");
                }
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let asked: Vec<&str> = parameters
                    .filter(|parameter| parameter["in"] == "query")
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                assert_eq!(asked, endpoint.query, "{said}");
                let guarded = matches!(endpoint.handler, Handler::Named(..));
                assert_eq!(operation["security"].is_array(), guarded, "{said}");
                assert_eq!(operation["requestBody"].is_object(), endpoint.takes != Takes::Nothing, "{said}");
            }
        }
        let paths = |document: &Value| document["paths"].as_object().expect("paths").len();
        assert_eq!(paths(&whole), paths(&patients) + paths(&auth));
    }

    /// The page sends the example of a parameter with each request, unless the user deletes it. An example
    /// that finds something else, or sets a condition, would make a plain request fail.
    #[test]
    fn examples_of_optional_parameters_change_no_answer() {
        let whole: Value = serde_json::from_str(&openapi()).expect("JSON");
        let mut seen = 0;
        for (path, item) in whole["paths"].as_object().expect("paths") {
            for (verb, operation) in item.as_object().expect("operations") {
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let name = parameter["name"].as_str().expect("a name");
                    let schema = &parameter["schema"];
                    let given = [
                        &parameter["example"],
                        &parameter["examples"],
                        &schema["example"],
                        &schema["default"],
                    ];
                    let filled_in = given.iter().any(|value| !value.is_null());
                    let harmless = parameter["required"] == true || ["limit", "after"].contains(&name);
                    assert!(harmless || !filled_in, "{verb} {path}: {name}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 20, "{seen}");
    }

    /// Shows interface changes in the diff: update the file with `cargo run -- openapi > docs/openapi.json`.
    #[test]
    fn the_file_says_what_the_code_does() {
        let file = std::fs::read_to_string("docs/openapi.json").expect("the file");
        let same = file == openapi() + "\n";
        assert!(
            same,
            "docs/openapi.json is not what the code says: cargo run -- openapi > docs/openapi.json"
        );
    }

    #[test]
    fn documents_are_openapi_3_1_with_schemas_and_examples() {
        let whole: Value = serde_json::from_str(&openapi()).expect("JSON");
        for document in [document(&PATIENTS.plain), document(&AUTH.plain), whole] {
            assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
            let mut missing = Vec::new();
            dangling(&document, &document, &mut missing);
            assert_eq!(missing, Vec::<String>::new());
            assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
            let problem = &document["components"]["schemas"]["Problem"]["properties"];
            for field in ["type", "title", "status", "detail", "code", "traceId", "patientId", "errors"] {
                assert!(problem[field].is_object(), "{field}");
            }
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let named = document["components"]["headers"].as_object().expect("headers");
            for (name, header) in named {
                assert!(header["description"].is_string() && header["schema"].is_object(), "{name}");
            }
            // Schemas within others need no example; the example of the cluster is given with its response.
            let within =
                |name: &str| matches!(name, "Day" | "Part" | "PatientShown") || name.ends_with("Status");
            let whole = |(name, schema): &(&String, &Value)| !within(name) && schema["enum"].is_null();
            for (name, schema) in schemas.iter().filter(whole) {
                assert!(schema["example"].is_object(), "{name} has no example");
            }
            for (_, item) in document["paths"].as_object().expect("paths") {
                for (_, operation) in item.as_object().expect("operations") {
                    for (status, response) in operation["responses"].as_object().expect("responses") {
                        assert!(response["description"].is_string());
                        for header in ["traceparent", "X-Request-Id", "Cache-Control"] {
                            assert!(response["headers"][header].is_object(), "{header} of {status}");
                        }
                        let problem = &response["content"]["application/problem+json"];
                        let own = operation["operationId"] == "ready" && status == "503";
                        let failed = status.as_str() >= "400" && !own;
                        assert_eq!(failed, problem["examples"].is_object(), "{status}");
                    }
                }
            }
        }
    }
}
