//! Swagger UI, the page for reading the descriptions and trying them out. Its files are the library's own,
//! except `swagger-initializer.js`: the library's version does not handle tokens. All files are compressed at
//! build time (`build.rs`).

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION};
use http::{HeaderValue, StatusCode};

use crate::error::ErrorCode;

use super::super::compress::Document;
use super::super::pipeline::{OpenCall, tail};
use super::super::problem::Failure;
use super::super::{AppState, reply, security};

/// Name, media type, and content: uncompressed, brotli, and gzip.
type File = (&'static str, &'static str, &'static [u8], &'static [u8], &'static [u8]);

static FILES: [File; 8] = include!(concat!(env!("OUT_DIR"), "/swagger_ui.rs"));

/// Redirects to the Swagger UI page.
// The links of the page are relative to the path with the slash.
#[utoipa::path(get, path = "/swagger-ui", operation_id = "swaggerRedirect", tag = "documentation",
    responses((status = 308, description = "To the path with the slash.",
        headers(("Location", description = "`/swagger-ui/`")))))]
pub(in crate::http) async fn redirect(_: Arc<AppState>, _: OpenCall) -> Result<Response, Failure> {
    let mut response = reply::empty(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/swagger-ui/"));
    Ok(response)
}

/// Returns the Swagger UI page, for reading the descriptions and trying them out.
#[utoipa::path(get, path = "/swagger-ui/", operation_id = "swagger", tag = "documentation",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(in crate::http) async fn page(app: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    file(app, call).await
}

/// Returns a file of the Swagger UI page.
#[utoipa::path(get, path = "/swagger-ui/{file}", operation_id = "swaggerFile", tag = "documentation",
    params(("file" = String, Path, description = "Its name.", example = "swagger-ui.css")),
    responses((status = 200, description = "The file.", content(
        (String = "text/html"), (String = "text/css"), (String = "text/javascript"), (String = "application/json"),
        (String = "image/png"), (String = "application/octet-stream")))))]
pub(in crate::http) async fn file(_: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let document = named(tail(&call.parts, call.path))
        .ok_or_else(|| Failure::new(ErrorCode::NotFound, "There is no such file"))?;
    let mut response = document.answer(&call.parts.headers);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(security::PAGE));
    Ok(response)
}

/// Returns the file `name`, or the page if the name is empty.
fn named(name: &str) -> Option<Document> {
    let name = if name.is_empty() { "index.html" } else { name };
    let (_, media_type, plain, brotli, gzip) = FILES.iter().find(|(known, ..)| *known == name)?;
    // Files that do not shrink, such as pictures, are sent uncompressed.
    let smaller = |packed: &'static [u8]| (packed.len() < plain.len()).then(|| Bytes::from_static(packed));
    Some(Document {
        media_type,
        plain: Bytes::from_static(plain),
        brotli: smaller(brotli),
        gzip: smaller(gzip),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::routes::ROUTES;
    use super::*;

    const SETUP: &str = "swagger-initializer.js";

    fn text(name: &str) -> String {
        let document = named(name).expect("there is such a file");
        String::from_utf8(document.plain.to_vec()).expect("UTF-8")
    }

    /// The content security policy of the page allows no other scripts.
    #[test]
    fn the_page_runs_its_own_files_alone() {
        let page = text("index.html");
        let scripts: Vec<&str> = page.split("<script").skip(1).collect();
        for script in &scripts {
            let (attributes, rest) = script.split_once('>').expect("a tag");
            let source = attributes.split("src=\"./").nth(1).and_then(|rest| rest.split('"').next());
            let source = source.unwrap_or_else(|| panic!("no file of its own:{attributes}"));
            assert!(rest.trim_start().starts_with("</script>"), "{source} has a script within");
            assert!(named(source).is_some(), "{source}");
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
