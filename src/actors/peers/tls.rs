//! Mutual TLS between nodes. Both sides present a certificate of the cluster's authority, and a node's name
//! must match its certificate. Only TLS 1.3 (RFC 8446) is used, without resumption, so that each connection
//! checks the certificates anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{
    Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Error, expiry, settings};
use crate::domain::time::Timestamp;

/// Both ends of TLS, and the names that they accept.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) connector: TlsConnector,
    /// When the node's own certificate and the first of its authorities expire.
    pub(super) ends: Vec<(&'static str, Timestamp)>,
    names: Names,
}

/// The names that certificates may have.
struct Names {
    listed: BTreeSet<Arc<str>>,
    suffix: Option<String>,
}

impl Tls {
    /// Reads the files. `listed` are the node names in the configuration. Returns `None` if not all three
    /// files are configured.
    ///
    /// # Errors
    /// Names the file that cannot be read or used.
    pub(super) fn load(settings: &settings::Tls, listed: BTreeSet<Arc<str>>) -> Result<Option<Self>, Error> {
        let (Some(ca_file), Some(cert_file), Some(key_file)) =
            (&settings.ca_file, &settings.cert_file, &settings.key_file)
        else {
            return Ok(None);
        };
        let mut roots = RootCertStore::empty();
        let authorities = certificates("cluster.tls.ca_file", ca_file)?;
        let authority_ends = authorities.iter().filter_map(|der| expiry::not_after(der)).min();
        for certificate in authorities {
            roots.add(certificate).map_err(|e| unusable("cluster.tls.ca_file", ca_file, e))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("cluster.tls.cert_file", cert_file)?;
        let node_ends = chain.first().and_then(|der| expiry::not_after(der));
        let ends = [("node", node_ends), ("authority", authority_ends)];
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|e| unusable("cluster.tls.key_file", key_file, e))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let bad_pair = |e| unusable("cluster.tls.key_file", key_file, e);

        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| unusable("cluster.tls.ca_file", ca_file, e))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(bad_pair)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(bad_pair)?;
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(bad_pair)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OfOurAuthority { roots, provider }))
            .with_client_auth_cert(chain, key)
            .map_err(bad_pair)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Some(Tls {
            acceptor: Arc::new(server).into(),
            connector: Arc::new(client).into(),
            ends: ends.into_iter().filter_map(|(what, end)| Some((what, end?))).collect(),
            names: Names { listed, suffix: settings.allowed_suffix.clone() },
        }))
    }

    /// Returns whether a peer with `certificate` may use the node name `name`.
    pub(super) fn name_fits(&self, certificate: Option<&CertificateDer<'_>>, name: &str) -> bool {
        let Some(certificate) = certificate.and_then(|der| ParsedCertificate::try_from(der).ok()) else {
            return false;
        };
        let dns = self.names.of(name).and_then(|dns| ServerName::try_from(dns).ok());
        dns.is_some_and(|dns| verify_server_name(&certificate, &dns).is_ok())
    }
}

impl Names {
    /// Returns the DNS name that the certificate of the node `name` must have. The suffix applies only to
    /// nodes that are not listed: their certificate may cover any name under the suffix, and must not let
    /// them pose as a listed node.
    fn of(&self, name: &str) -> Option<String> {
        match self.listed.contains(name) {
            true => Some(name.to_owned()),
            false => self.suffix.as_ref().map(|suffix| format!("{name}{suffix}")),
        }
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| unusable(key, path, e))?;
    if found.is_empty() { Err(unusable(key, path, "it holds no certificate")) } else { Ok(found) }
}

fn unusable(key: &str, path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Settings(format!("{key} {} cannot be used: {error}", path.display()))
}

/// Accepts any server certificate that the cluster's authority signed. The name is checked after the
/// handshake, because a dialling node may not know its peer's name yet.
#[derive(Debug)]
struct OfOurAuthority {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfOurAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use time::{Duration, OffsetDateTime};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::HandshakeKind;

    use super::*;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, "an authority");
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Authority { issuer: Issuer::new(params, key), pem }
        }

        /// Returns the TLS of a node that trusts `self` and presents a certificate of `signer` for `dns`.
        fn node(&self, signer: &Authority, dns: &str, ends_in: Duration) -> Tls {
            let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
            params.not_before = OffsetDateTime::now_utc() - Duration::days(10);
            params.not_after = OffsetDateTime::now_utc() + ends_in;
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &signer.issuer).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let file = |name: &str, text: &str| {
                fs::write(dir.path().join(name), text).unwrap();
                Some(dir.path().join(name))
            };
            let settings = settings::Tls {
                ca_file: file("ca", &self.pem),
                cert_file: file("cert", &certificate.pem()),
                key_file: file("key", &key.serialize_pem()),
                allowed_suffix: Some(".nodes.example.org".to_owned()),
            };
            Tls::load(&settings, ["a".into(), "b".into()].into()).unwrap().unwrap()
        }
    }

    /// Connects both sides. Returns for each whether it accepts the other as the node `name`, or `None` if no
    /// byte arrived.
    async fn meet(dialler: &Tls, acceptor: &Tls, name: &str) -> [Option<bool>; 2] {
        let (left, right) = tokio::io::duplex(65_536);
        let dial = async {
            let nobody = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
            let mut stream = dialler.connector.connect(nobody, left).await.ok()?;
            stream.write_u8(1).await.ok()?;
            stream.read_u8().await.ok()?;
            let certificate = stream.get_ref().1.peer_certificates()?.first()?;
            Some(dialler.name_fits(Some(certificate), name))
        };
        let accept = async {
            let mut stream = acceptor.acceptor.accept(right).await.ok()?;
            stream.write_u8(1).await.ok()?;
            stream.read_u8().await.ok()?;
            let certificate = stream.get_ref().1.peer_certificates()?.first()?;
            Some(acceptor.name_fits(Some(certificate), name))
        };
        let (dialler, acceptor) = tokio::join!(dial, accept);
        [dialler, acceptor]
    }

    #[tokio::test]
    async fn certificates_of_the_authority_are_taken_for_their_own_names() {
        let (authority, day) = (Authority::new(), Duration::days(1));
        let a = authority.node(&authority, "a", day);
        assert_eq!(meet(&a, &a, "a").await, [Some(true); 2]);
        assert_eq!(meet(&a, &a, "b").await, [Some(false); 2], "not its name");
        let stranger = authority.node(&authority, "c", day);
        assert_eq!(meet(&stranger, &stranger, "c").await, [Some(false); 2], "not listed");
        let joiner = authority.node(&authority, "c.nodes.example.org", day);
        assert_eq!(meet(&joiner, &joiner, "c").await, [Some(true); 2], "under the suffix");
        assert_eq!(meet(&joiner, &joiner, "nodes").await, [Some(false); 2]);
        let any = authority.node(&authority, "*.nodes.example.org", day);
        assert_eq!(meet(&any, &any, "c").await, [Some(true); 2], "any name under the suffix");
        assert_eq!(meet(&any, &any, "a.b").await, [Some(false); 2], "one label alone");
        assert_eq!(meet(&any, &a, "a").await, [Some(true), Some(false)], "and none of those listed");
        assert!(!a.name_fits(None, "a"));
    }

    #[tokio::test]
    async fn strangers_and_expired_certificates_get_nothing() {
        let (authority, other, day) = (Authority::new(), Authority::new(), Duration::days(1));
        let good = authority.node(&authority, "a", day);
        let of_another_authority = authority.node(&other, "b", day);
        let expired = authority.node(&authority, "b", -day);
        let trusts_another = other.node(&authority, "b", day);
        for bad in [&of_another_authority, &expired, &trusts_another] {
            assert_eq!(meet(bad, &good, "a").await, [None; 2]);
            assert_eq!(meet(&good, bad, "a").await, [None; 2]);
        }
    }

    /// Returns the kinds of two consecutive handshakes, as the dialler sees them.
    async fn handshakes(connector: &TlsConnector, acceptor: &TlsAcceptor) -> [Option<HandshakeKind>; 2] {
        let mut kinds = [None; 2];
        for kind in &mut kinds {
            let (left, right) = tokio::io::duplex(65_536);
            let dial = async {
                let nobody = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
                let mut stream = connector.connect(nobody, left).await.unwrap();
                // Read the first byte, which arrives after any session tickets.
                assert_eq!(stream.read_u8().await.unwrap(), 1);
                stream.write_u8(1).await.unwrap();
                stream.flush().await.unwrap();
                stream.get_ref().1.handshake_kind()
            };
            let accept = async {
                let mut stream = acceptor.accept(right).await.unwrap();
                stream.write_u8(1).await.unwrap();
                stream.flush().await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), 1);
            };
            (*kind, ()) = tokio::join!(dial, accept);
        }
        kinds
    }

    /// A resumed session would present no certificate again. Each side prevents resumption, whatever the
    /// other side allows.
    #[tokio::test]
    async fn no_session_is_resumed_though_the_other_side_would() {
        let authority = Authority::new();
        let a = authority.node(&authority, "a", Duration::days(1));
        let mut resuming = rustls::ClientConfig::clone(a.connector.config());
        resuming.resumption = Resumption::in_memory_sessions(8);
        let resuming = TlsConnector::from(Arc::new(resuming));
        let mut ticketing = rustls::ServerConfig::clone(a.acceptor.config());
        ticketing.send_tls13_tickets = 2;
        let ticketing = TlsAcceptor::from(Arc::new(ticketing));
        let full = [Some(HandshakeKind::Full); 2];
        assert_eq!(handshakes(&a.connector, &ticketing).await, full, "as who dials");
        assert_eq!(handshakes(&resuming, &a.acceptor).await, full, "as who accepts");
        let resumed = handshakes(&resuming, &ticketing).await;
        assert_eq!(resumed[1], Some(HandshakeKind::Resumed), "where both allow it there is one");
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let settings = settings::Tls {
            ca_file: Some("/nowhere/ca.pem".into()),
            cert_file: Some("c".into()),
            key_file: Some("k".into()),
            allowed_suffix: None,
        };
        let told = Tls::load(&settings, BTreeSet::new()).err().unwrap().to_string();
        assert!(told.contains("cluster.tls.ca_file /nowhere/ca.pem cannot be used"), "{told}");
        assert!(Tls::load(&settings::Tls::default(), BTreeSet::new()).unwrap().is_none());
    }
}
