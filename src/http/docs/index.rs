//! `/`: links to the entry points, as a page for browsers and as JSON for programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use http::header::{ACCEPT, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::pipeline::OpenCall;
use super::super::problem::Failure;
use super::super::{AppState, reply};

/// The entry points: name, path, and description.
const LINKS: [(&str, &str, &str); 5] = [
    ("swagger", "/swagger-ui/", "The interface, to read and to try out (Swagger UI)"),
    ("openapi", "/openapi.json", "Its description for programs (OpenAPI 3.1)"),
    ("ready", "/health/ready", "Whether the node serves, and how each part of it is"),
    ("live", "/health/live", "Whether the node answers"),
    ("metrics", "/metrics", "What it counts and measures (Prometheus)"),
];

/// Links to the entry points of the node.
#[derive(Serialize, ToSchema)]
#[schema(as = Index, example = json!({
    "name": "Hygeia", "version": "0.1.0", "links": {"openapi": "/openapi.json", "swagger": "/swagger-ui/"}
}))]
pub(in crate::http) struct IndexBody {
    #[schema(value_type = String)]
    name: &'static str,
    #[schema(value_type = String)]
    version: &'static str,
    /// Paths by name.
    #[schema(value_type = BTreeMap<String, String>)]
    links: BTreeMap<&'static str, &'static str>,
}

/// Returns links to the entry points: an HTML page for browsers, JSON for other clients.
#[utoipa::path(get, path = "/", operation_id = "index", tag = "documentation",
    responses((status = 200, description = "The paths.", content(
        (IndexBody = "application/json"), (String = "text/html")))))]
pub(in crate::http) async fn index(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let mut response = if is_browser(&call.parts.headers) {
        reply::bytes_of(StatusCode::OK, "text/html; charset=utf-8", page())
    } else {
        let links = LINKS.iter().map(|(name, path, _)| (*name, *path)).collect();
        let body = IndexBody { name: "Hygeia", version: env!("CARGO_PKG_VERSION"), links };
        reply::json(StatusCode::OK, &body)?
    };
    response.headers_mut().append(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Browsers name the type in `Accept`; other programs send `*/*` or nothing.
fn is_browser(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|item| {
        item.split(';').next().is_some_and(|named| named.trim().eq_ignore_ascii_case("text/html"))
    })
}

fn page() -> String {
    let item =
        |(_, path, what): &(&str, &str, &str)| format!("<li><a href=\"{path}\">{path}</a>: {what}</li>");
    let items: String = LINKS.iter().map(item).collect();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Hygeia</title></head>\
         <body><h1>Hygeia {version}</h1><p>Patient management.</p><ul>{items}</ul></body></html>"
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::routes::ROUTES;
    use super::*;

    #[test]
    fn every_link_leads_to_a_route() {
        for (_, path, _) in LINKS {
            assert!(ROUTES.iter().any(|endpoint| endpoint.path == path), "{path}");
            assert!(page().contains(&format!("href=\"{path}\"")));
        }
    }

    #[test]
    fn a_browser_is_told_from_a_program() {
        let accepting = |said: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(said))]);
        assert!(is_browser(&accepting("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")));
        assert!(!is_browser(&accepting("*/*")) && !is_browser(&accepting("application/json")));
        assert!(!is_browser(&HeaderMap::new()));
    }
}
