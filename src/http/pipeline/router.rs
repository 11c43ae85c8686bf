//! Builds the router from the table of endpoints, with the responses for unknown routes and methods.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Method};

use super::{Edge, Endpoint, Methods, Refusal, Verb};
use crate::error::ErrorCode;
use crate::http::observe::Meter;

/// Returns the router of `endpoints`, with 404 and 405 for everything else.
pub(in crate::http) fn router<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    endpoints: &'static [Endpoint<S>],
) -> Router {
    router_of_part(edge, endpoints, "There is no such route")
}

/// Like `router`; `unmatched` is the detail of the 404 for an unknown route.
pub(in crate::http) fn router_of_part<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    endpoints: &'static [Endpoint<S>],
    unmatched: &'static str,
) -> Router {
    let mut router = Router::new();
    let mut paths: Vec<&'static str> = endpoints.iter().map(|endpoint| endpoint.path).collect();
    paths.dedup();
    for path in paths {
        let of_path = || endpoints.iter().filter(|endpoint| endpoint.path == path);
        let mut methods = MethodRouter::new();
        for endpoint in of_path() {
            let meter = Arc::new(Meter::new(endpoint.verb.as_str(), path));
            let edge = Arc::clone(edge);
            let served = on(endpoint.verb.filter(), move |request: Request| {
                let (edge, meter) = (Arc::clone(&edge), Arc::clone(&meter));
                async move { edge.serve(endpoint, &meter, request).await }
            });
            methods = methods.merge(served);
        }
        let allow = allow(of_path().map(|endpoint| endpoint.verb));
        let patch = of_path().find(|endpoint| endpoint.verb == Verb::Patch);
        let patches = patch.and_then(|endpoint| endpoint.takes.media_type());
        methods = methods.merge(options(edge, path, Methods { allow: allow.clone(), patches }));
        let refused = refusal(
            edge,
            Refusal {
                code: ErrorCode::MethodNotAllowed,
                detail: "The Allow header names the methods there are",
                allow: Some(allow),
                meter: Meter::new("OTHER", path),
            },
        );
        router = router.route(path, methods.fallback(refused));
    }
    let of_server = allow(endpoints.iter().map(|endpoint| endpoint.verb));
    router.fallback(of_no_route(edge, of_server, unmatched)).with_state(())
}

/// Returns the handler for requests without a route. `OPTIONS *` asks about the server as a whole.
fn of_no_route<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    of_server: HeaderValue,
    unmatched: &'static str,
) -> impl Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static {
    let meter = Meter::new("OTHER", "unmatched");
    let refused = refusal(edge, Refusal { code: ErrorCode::NotFound, detail: unmatched, allow: None, meter });
    let (edge, meter) = (Arc::clone(edge), Arc::new(Meter::new("OPTIONS", "*")));
    let of_server = Methods { allow: of_server, patches: None };
    move |request| {
        if request.method() != Method::OPTIONS || request.uri().path() != "*" {
            return refused(request);
        }
        let (edge, meter, of_server) = (Arc::clone(&edge), Arc::clone(&meter), of_server.clone());
        async move { edge.options(&of_server, &meter, request).await }.boxed()
    }
}

/// Returns the `Allow` value of a route with these verbs.
fn allow(verbs: impl Iterator<Item = Verb>) -> HeaderValue {
    let mut methods: Vec<&'static str> = verbs.map(Verb::as_str).chain([Method::OPTIONS.as_str()]).collect();
    methods.sort_unstable();
    methods.dedup();
    HeaderValue::try_from(methods.join(", ").replace("GET", "GET, HEAD"))
        .unwrap_or(HeaderValue::from_static("OPTIONS"))
}

fn options<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    route: &'static str,
    methods: Methods,
) -> MethodRouter {
    let (edge, meter) = (Arc::clone(edge), Arc::new(Meter::new("OPTIONS", route)));
    on(MethodFilter::OPTIONS, move |request: Request| {
        let (edge, meter, methods) = (Arc::clone(&edge), Arc::clone(&meter), methods.clone());
        async move { edge.options(&methods, &meter, request).await }
    })
}

fn refusal<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    refusal: Refusal,
) -> impl Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static {
    let (edge, refusal) = (Arc::clone(edge), Arc::new(refusal));
    move |request| {
        let (edge, refusal) = (Arc::clone(&edge), Arc::clone(&refusal));
        async move { edge.refuse(&refusal, request).await }.boxed()
    }
}
