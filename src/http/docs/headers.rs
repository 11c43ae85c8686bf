//! The response headers, described once and referenced from every response that has them.

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{Components, ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Response};

/// Name, description, and example.
type Described = (&'static str, &'static str, &'static str);

/// Headers of every response.
const OF_ALL: [Described; 7] = [
    (
        "traceparent",
        "The trace of the request (W3C Trace Context).",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    (
        "X-Request-Id",
        "The caller's own name of the request, if it sent one of at most 64 letters, digits and `-_.:=+/`; else the \
         id of the trace.",
        "0af7651916cd43dd8448eb211c80319c",
    ),
    ("Cache-Control", "Answers about patients are kept by no cache.", "no-store"),
    ("Content-Security-Policy", "Nothing in the answer is to be run or framed.", "default-src 'none'"),
    ("X-Content-Type-Options", "The answer is of the type it says.", "nosniff"),
    ("Referrer-Policy", "Where the answer leads to is not told of it.", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "For pages of the same origin.", "same-origin"),
];

/// Headers of responses to an authenticated caller, if a rate limit is set.
const OF_NAMED: [Described; 2] = [
    (
        "RateLimit-Policy",
        "The caller's limit (draft-ietf-httpapi-ratelimit-headers-09): `q` requests at once, which are there again \
         after `w` seconds.",
        "\"subject\";q=2000;w=2",
    ),
    (
        "RateLimit",
        "What is left of it: `r` requests at once; after `t` seconds it is whole again.",
        "\"subject\";r=1999;t=1",
    ),
];

/// Headers of some responses, which reference them individually.
const OF_SOME: [Described; 2] = [
    ("Retry-After", "When to try again, in seconds.", "1"),
    (
        "WWW-Authenticate",
        "`Bearer`, with what is wrong with the token (RFC 6750).",
        "Bearer error=\"invalid_token\"",
    ),
];

fn described((_, description, example): Described) -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let mut header = HeaderBuilder::new().schema(Some(text)).description(Some(description)).build();
    header.example = Some(example.into());
    header
}

/// Adds the descriptions of all headers to `components`.
pub(super) fn define(components: &mut Components) {
    for header in OF_ALL.into_iter().chain(OF_NAMED).chain(OF_SOME) {
        components.headers.insert(header.0.to_owned(), RefOr::T(described(header)));
    }
}

/// Returns a reference to the description of `name`.
pub(super) fn reference(name: &str) -> Ref {
    Ref::new(format!("#/components/headers/{name}"))
}

/// Adds to `response` the headers of every response; `named` also adds those for an authenticated caller.
pub(super) fn add(response: &mut Response, named: bool) {
    let of_named = OF_NAMED.into_iter().filter(|_| named);
    for (name, ..) in OF_ALL.into_iter().chain(of_named) {
        response.headers.insert(name.to_owned(), RefOr::Ref(reference(name)));
    }
}
