//! Header fields (in gRPC: metadata) that both edges read.

use http::HeaderMap;

use super::TraceContext;

/// The field that carries a trace (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// The header fields that the edges read and that have a single value (RFC 9110, section 5.3). A repeated
/// field is ambiguous: a proxy in front of the service may use another value than the service does.
const SINGLE: [&str; 9] = [
    "authorization",
    "access-control-request-method",
    "content-type",
    "grpc-timeout",
    "host",
    "idempotency-key",
    "origin",
    "x-break-glass",
    "x-request-id",
];

/// Returns the first single-valued field that occurs more than once in `headers`.
pub fn repeated(headers: &HeaderMap) -> Option<&'static str> {
    // Fast path: nearly always no field is repeated.
    if headers.len() == headers.keys_len() {
        return None;
    }
    SINGLE.into_iter().find(|name| headers.get_all(*name).iter().nth(1).is_some())
}

/// Returns the hop that a request with these headers starts, in the caller's trace or in a new one. If the
/// headers name two traces, neither is used.
pub fn trace_of(headers: &HeaderMap) -> TraceContext {
    let mut given = headers.get_all(TRACEPARENT).iter();
    match (given.next(), given.next()) {
        (Some(parent), None) => parent.to_str().ok().and_then(TraceContext::parse),
        _ => None,
    }
    .map_or_else(TraceContext::root, |parent| parent.child())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn fields_of_one_value_are_given_once() {
        assert_eq!(repeated(&HeaderMap::new()), None);
        for name in SINGLE {
            assert_eq!(repeated(&headers(&[(name, "a"), ("accept", "x"), ("accept", "y")])), None);
            assert_eq!(repeated(&headers(&[(name, "a"), (name, "a")])), Some(name), "alike or not");
        }
        let lists = [("accept", "a"), ("accept", "b"), ("if-match", "\"1\""), ("if-match", "\"2\"")];
        assert_eq!(repeated(&headers(&lists)), None);
    }

    #[test]
    fn of_two_traces_none_goes_on() {
        const ONE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |values: &[&'static str]| {
            trace_of(&headers(&values.iter().map(|value| (TRACEPARENT, *value)).collect::<Vec<_>>()))
        };
        let child = of(&[ONE]);
        assert_eq!(
            (child.trace_id, child.parent_id),
            (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331)
        );
        for none in [&[][..], &["x"], &[ONE, OTHER], &[ONE, ONE], &["x", ONE]] {
            assert_eq!(of(none).parent_id, 0, "{none:?}");
        }
    }
}
