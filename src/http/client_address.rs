//! Where a request comes from: the peer of its connection, or, where that is a proxy of our own, who the proxy says.
//!
//! Invariant: `X-Forwarded-For` is read only if the peer is one of `trusted_proxies`, and from its end: what stands
//! before the last address that is not one of them was written by the client, and could be anything.

use std::net::{IpAddr, SocketAddr};

use http::request;
use ipnet::IpNet;

/// The header in which proxies note whom they speak for.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Addresses read of it.
const HOPS_MAX: usize = 16;

/// The peer of a connection, among a request's extensions.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Addresses, and networks as `10.0.0.0/8`.
    ///
    /// # Errors
    /// The first that is neither.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let network = |text: &String| {
            let text = text.trim();
            let alone = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| alone()).map_err(|_| text.to_owned())
        };
        texts.iter().map(network).collect::<Result<_, _>>().map(TrustedProxies)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Who sent the request; `None` if not even its peer is known.
    pub(super) fn client_of(&self, parts: &request::Parts) -> Option<IpAddr> {
        let peer = parts.extensions.get::<Peer>()?.0.ip().to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        // Several headers are one list (RFC 9110, section 5.3).
        let lines = parts.headers.get_all(FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        let mut client = peer;
        for hop in hops.take(HOPS_MAX) {
            let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
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

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let texts: Vec<String> = trusted.iter().map(|&text| text.to_owned()).collect();
        let proxies = TrustedProxies::parse(&texts).expect("networks");
        let mut request = http::Request::builder();
        for line in forwarded {
            request = request.header(FORWARDED_FOR, *line);
        }
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        parts.extensions.insert(Peer(SocketAddr::new(peer.parse().expect("an address"), 1)));
        proxies.client_of(&parts).expect("known").to_string()
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
    fn what_is_no_network_is_named() {
        assert_eq!(
            TrustedProxies::parse(&["10.0.0.1".into(), "proxy".into()]).err(),
            Some("proxy".to_owned())
        );
        assert!(TrustedProxies::parse(&["2001:db8::/32".into(), " ::1 ".into()]).is_ok());
    }
}
