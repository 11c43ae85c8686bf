//! Determines the client address of a request: the peer of its connection, or, if that is a trusted proxy,
//! the address that the proxy reports.
//!
//! Invariant: the field is read only if the peer is one of `trusted_proxies`, and it is read from its end.
//! The client could have written anything before the last address that is not a trusted proxy. A setting
//! selects the one field that is read: a client could write the other one, and the proxy would pass it on.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, request};
use ipnet::IpNet;
use serde::Deserialize;

/// Maximum number of addresses that are read from the field.
const HOPS_MAX: usize = 16;

/// The field in which proxies report the client address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedBy {
    /// `X-Forwarded-For`: addresses, with or without ports.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedBy {
    const fn name(self) -> HeaderName {
        match self {
            ForwardedBy::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedBy::Forwarded => http::header::FORWARDED,
        }
    }

    /// Returns the addresses in `line`, the last first. `None` stands for an address that is not disclosed or
    /// malformed.
    fn hops(self, line: &str) -> Vec<Option<IpAddr>> {
        match self {
            ForwardedBy::XForwardedFor => {
                line.rsplit(',').take(HOPS_MAX).map(|hop| node(hop.trim())).collect()
            }
            // Quotes are counted from the end, so that an unclosed quote of the client cannot swallow what a
            // proxy adds.
            ForwardedBy::Forwarded => line.rsplit(unquoted(',')).take(HOPS_MAX).map(forwarded_for).collect(),
        }
    }
}

/// Returns the `for` address of an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut given = element
        .split(unquoted(';'))
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = given.next().filter(|_| given.next().is_none())?;
    let value = value.trim();
    node(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

/// Parses an address with or without a port. An IPv6 address with a port is in brackets.
fn node(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
        return address.parse().ok().filter(|_| port).map(IpAddr::V6);
    }
    let (address, port) = text.split_once(':')?;
    address.parse().ok().filter(|_| is_port(port)).map(IpAddr::V4)
}

/// Returns whether `text` is a port number, or an obfuscated port (RFC 7239, section 6).
fn is_port(text: &str) -> bool {
    let named = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    text.parse::<u16>().is_ok() || text.strip_prefix('_').is_some_and(named)
}

/// Returns a predicate for consecutive characters that is true for each `separator` outside quotes.
fn unquoted(separator: char) -> impl FnMut(char) -> bool {
    let mut quoted = false;
    move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    }
}

/// The peer address of a connection, stored in the request's extensions.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The trusted proxies, and the field in which they report the client.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    forwarded_by: ForwardedBy,
}

impl TrustedProxies {
    /// Parses addresses, and networks such as `10.0.0.0/8`.
    ///
    /// # Errors
    /// Returns the first text that is neither.
    pub fn parse(texts: &[String], forwarded_by: ForwardedBy) -> Result<Self, String> {
        let network = |text: &String| {
            let text = text.trim();
            let alone = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| alone()).map_err(|_| text.to_owned())
        };
        let networks = texts.iter().map(network).collect::<Result<_, _>>()?;
        Ok(TrustedProxies { networks, forwarded_by })
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Returns the address of the client, or `None` if the peer of the connection is unknown.
    pub(super) fn client_of(&self, parts: &request::Parts) -> Option<IpAddr> {
        let peer = parts.extensions.get::<Peer>()?.0.ip().to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        // Several fields of the same name form one list (RFC 9110, section 5.3).
        let lines = parts.headers.get_all(self.forwarded_by.name()).iter().rev();
        let hops = lines.flat_map(|line| self.forwarded_by.hops(line.to_str().unwrap_or_default()));
        let mut client = peer;
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = hop else { break };
            client = address.to_canonical();
            if !self.trusts(client) {
                break;
            }
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_by(by: ForwardedBy, trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let texts: Vec<String> = trusted.iter().map(|&text| text.to_owned()).collect();
        let proxies = TrustedProxies::parse(&texts, by).expect("networks");
        let mut request = http::Request::builder();
        for line in forwarded {
            request = request.header(by.name(), *line);
        }
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        parts.extensions.insert(Peer(SocketAddr::new(peer.parse().expect("an address"), 1)));
        proxies.client_of(&parts).expect("known").to_string()
    }

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        client_by(ForwardedBy::XForwardedFor, trusted, peer, forwarded)
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_its_own_word() {
        assert_eq!(client(&[], "192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        let inside = |forwarded: &[&str]| client(&["10.0.0.0/8", "::1"], "10.1.2.3", forwarded);
        assert_eq!(inside(&[]), "10.1.2.3");
        assert_eq!(inside(&["203.0.113.9"]), "203.0.113.9");
        assert_eq!(inside(&["1.1.1.1, 203.0.113.9"]), "203.0.113.9", "the first was the client's own");
        assert_eq!(inside(&["1.1.1.1, 203.0.113.9, 10.9.9.9"]), "203.0.113.9", "two proxies");
        assert_eq!(inside(&["1.1.1.1", "203.0.113.9"]), "203.0.113.9", "two headers");
        assert_eq!(inside(&["203.0.113.9, unknown"]), "10.1.2.3", "what it did not say is not guessed");
        assert_eq!(inside(&["10.0.0.7"]), "10.0.0.7", "all inside");
        assert_eq!(client(&["127.0.0.1"], "::ffff:127.0.0.1", &["2001:db8::7"]), "2001:db8::7");
    }

    #[test]
    fn a_port_does_not_hide_the_address() {
        let inside = |forwarded: &str| client(&["10.0.0.0/8", "2001:db8:1::/48"], "10.1.2.3", &[forwarded]);
        for (forwarded, from) in [
            ("198.51.100.7:1234", "198.51.100.7"),
            ("[2001:db8::1]:9", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("1.1.1.1, 198.51.100.7:1234, 10.0.0.1:80", "198.51.100.7"),
            ("198.51.100.7:1234,[2001:db8:1::5]:80", "198.51.100.7"),
            ("[::ffff:198.51.100.7]:9", "198.51.100.7"),
            ("\"1.1.1.1, 198.51.100.7:1", "198.51.100.7"),
            ("198.51.100.7:", "10.1.2.3"),
            ("198.51.100.7:x", "10.1.2.3"),
            ("198.51.100.7:70000", "10.1.2.3"),
            ("[198.51.100.7]:1", "10.1.2.3"),
            ("[2001:db8::1", "10.1.2.3"),
            ("[2001:db8::1]9", "10.1.2.3"),
            ("", "10.1.2.3"),
        ] {
            assert_eq!(inside(forwarded), from, "{forwarded}");
        }
    }

    #[test]
    fn forwarded_is_read_where_a_setting_says_so() {
        let inside = |lines: &[&str]| client_by(ForwardedBy::Forwarded, &["10.0.0.0/8"], "10.1.2.3", lines);
        for (lines, from) in [
            (&["for=198.51.100.7"][..], "198.51.100.7"),
            (&["For=\"198.51.100.7:1234\""], "198.51.100.7"),
            (&["for=\"[2001:db8::1]:9\""], "2001:db8::1"),
            (&["proto=https;for=198.51.100.7;by=_x"], "198.51.100.7"),
            (&["for=1.1.1.1, for=198.51.100.7"], "198.51.100.7"),
            (&["for=1.1.1.1", "for=198.51.100.7, for=10.0.0.4"], "198.51.100.7"),
            (&["for=198.51.100.7;host=\"a,b;for=1.1.1.1\""], "198.51.100.7"),
            (&["for=\"198.51.100.7:_port\""], "198.51.100.7"),
            (&["for=\"evil, for=198.51.100.7"], "198.51.100.7"),
            (&["for=unknown"], "10.1.2.3"),
            (&["for=_hidden"], "10.1.2.3"),
            (&["for=1.1.1.1;for=2.2.2.2"], "10.1.2.3"),
            (&["198.51.100.7"], "10.1.2.3"),
            (&[], "10.1.2.3"),
        ] {
            assert_eq!(inside(lines), from, "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        let parse = |texts: &[String]| TrustedProxies::parse(texts, ForwardedBy::default());
        assert_eq!(parse(&["10.0.0.1".into(), "proxy".into()]).err(), Some("proxy".to_owned()));
        assert!(parse(&["2001:db8::/32".into(), " ::1 ".into()]).is_ok());
    }
}
