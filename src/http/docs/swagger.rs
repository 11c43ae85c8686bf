//! The page to read the descriptions with, and to try them out: Swagger UI's own files, but for the one that sets it up.
//! That one is ours (`swagger-initializer.js`), since the library's knows nothing of tokens.

use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use utoipa_swagger_ui::Config;

use crate::error::ErrorCode;

use super::super::pipeline::{OpenCall, tail};
use super::super::problem::Failure;
use super::super::{AppState, reply, security};

/// What sets up the page.
const SETUP: &str = "swagger-initializer.js";
static SETUP_TEXT: &[u8] = include_bytes!("swagger-initializer.js");

/// Only the library's own set-up would have any of it.
static UNUSED: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::new(["/openapi.json"])));

/// Leads to the page that shows the interface.
// The page's own links are relative to the path with the slash.
#[utoipa::path(get, path = "/swagger-ui", operation_id = "swaggerRedirect", tag = "documentation",
    responses((status = 308, description = "To the path with the slash.",
        headers(("Location", description = "`/swagger-ui/`")))))]
pub(in crate::http) async fn redirect(_: Arc<AppState>, _: OpenCall) -> Result<Response, Failure> {
    let mut response = reply::empty(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/swagger-ui/"));
    Ok(response)
}

/// A page to read the descriptions with, and to try them out.
#[utoipa::path(get, path = "/swagger-ui/", operation_id = "swagger", tag = "documentation",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(in crate::http) async fn page(app: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    file(app, call).await
}

/// The files of the page.
#[utoipa::path(get, path = "/swagger-ui/{file}", operation_id = "swaggerFile", tag = "documentation",
    params(("file" = String, Path, description = "Its name.", example = "swagger-ui.css")),
    responses((status = 200, description = "The file.", content(
        (String = "text/html"), (String = "text/css"), (String = "text/javascript"), (String = "application/json"),
        (String = "image/png"), (String = "application/octet-stream")))))]
pub(in crate::http) async fn file(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let (bytes, media_type) = named(tail(&call.parts, call.path))?
        .ok_or_else(|| Failure::new(ErrorCode::NotFound, "There is no such file"))?;
    let media_type = HeaderValue::try_from(media_type).map_err(|_| broken())?;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(security::PAGE));
    Ok(response)
}

fn broken() -> Failure {
    Failure::new(ErrorCode::Internal, "The page could not be made")
}

/// A file and its type, if there is one of that name.
fn named(name: &str) -> Result<Option<(Bytes, String)>, Failure> {
    if name == SETUP {
        return Ok(Some((Bytes::from_static(SETUP_TEXT), "text/javascript".to_owned())));
    }
    let file = utoipa_swagger_ui::serve(name, Arc::clone(&UNUSED)).map_err(|_| broken())?;
    Ok(file.map(|file| (Bytes::from_owner(file.bytes), file.content_type)))
}

#[cfg(test)]
mod tests {
    use super::super::super::routes::ROUTES;
    use super::*;

    fn text(name: &str) -> String {
        let (bytes, _) = named(name).ok().flatten().expect("there is such a file");
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    /// The policy of the page lets nothing else run.
    #[test]
    fn the_page_runs_its_own_files_alone() {
        let page = text("index.html");
        let scripts: Vec<&str> = page.split("<script").skip(1).collect();
        for script in &scripts {
            let (attributes, rest) = script.split_once('>').expect("a tag");
            let source = attributes.split("src=\"./").nth(1).and_then(|rest| rest.split('"').next());
            let source = source.unwrap_or_else(|| panic!("no file of its own:{attributes}"));
            assert!(rest.trim_start().starts_with("</script>"), "{source} has a script within");
            assert!(named(source).ok().flatten().is_some(), "{source}");
        }
        assert!(page.contains(SETUP) && scripts.len() >= 3, "{page}");
        assert!(!page.contains("javascript:") && !page.contains(" onload=") && !page.contains("<base"));
        assert!(security::PAGE.contains("script-src 'self';"));
    }

    #[test]
    fn what_sets_it_up_names_routes_that_there_are() {
        let setup = text(SETUP);
        let routes = |path: &&str| ROUTES.iter().any(|endpoint| endpoint.path == *path);
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code: String = setup.lines().filter(is_code).collect();
        let paths: Vec<&str> = code.split('"').filter(|text| text.starts_with('/')).collect();
        assert!(paths.iter().all(routes), "{paths:?}");
        for needed in [
            "/auth/login",
            "/auth/refresh",
            "/auth/logout",
            "/openapi.json",
            "/api-docs/patients",
            "/api-docs/auth",
        ] {
            assert!(paths.contains(&needed), "{needed}: {paths:?}");
        }
        let scheme = format!("preauthorizeApiKey(\"{}\", token)", super::super::BEARER);
        assert!(setup.contains(&scheme), "the scheme has the name that the documents give it");
        assert!(setup.contains("validatorUrl: \"none\""), "nobody outside is asked");
        for kept in ["localStorage", "sessionStorage", "persistAuthorization", "cookie", "://"] {
            assert!(!setup.contains(kept), "{kept}");
        }
    }
}
