//! TLS towards control servers and relays: the system's roots, or what a DERPMap pins.

use std::{fmt, sync::Arc};

use lowroad_wire::control::DerpNode;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use tracing::warn;

/// In front of the digest of a pinned certificate.
const PIN_PREFIX: &str = "sha256-raw:";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "the relay map's CertName `{0}` is neither a host name nor `sha256-raw:` and 64 hex digits"
    )]
    CertName(String),
    #[error("cannot set up TLS: {0}")]
    Setup(#[source] Error),
}

/// What a server has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// A certificate for its own name, by one of the roots.
    Roots,
    /// A certificate for another name, by one of the roots.
    Name(ServerName<'static>),
    /// The certificate with this SHA-256, and no other.
    Pin([u8; 32]),
    /// Anything: the relay map says `InsecureForTests`. What is relayed is encrypted between the nodes anyhow.
    Nothing,
}

impl Verification {
    /// What a relay has to show by what the DERPMap says.
    ///
    /// # Errors
    /// A CertName that can't be met, such as a pin of the wrong length.
    pub fn of_relay(node: &DerpNode) -> Result<Self, TlsError> {
        let malformed = || TlsError::CertName(node.cert_name.clone());
        if node.insecure_for_tests {
            Ok(Self::Nothing)
        } else if node.cert_name.is_empty() {
            Ok(Self::Roots)
        } else if let Some(digits) = node.cert_name.strip_prefix(PIN_PREFIX) {
            let mut pin = [0; 32];
            hex::decode_to_slice(digits, &mut pin).map_err(|_| malformed())?;
            Ok(Self::Pin(pin))
        } else {
            ServerName::try_from(node.cert_name.clone())
                .map(Self::Name)
                .map_err(|_| malformed())
        }
    }
}

/// Roots and primitives, read once and shared.
#[derive(Clone)]
pub struct TlsConfig {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    by_roots: Arc<ClientConfig>,
}

impl TlsConfig {
    /// The system's roots, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. Without any, only pins can be met; a warning
    /// says so.
    pub fn system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "some TLS root certificates cannot be read");
        }
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        if ignored > 0 {
            warn!(ignored, "some TLS root certificates are malformed");
        }
        if added == 0 {
            warn!("no TLS root certificates: install ca-certificates, or set SSL_CERT_FILE");
        }
        Self::with_roots(roots)
    }

    pub fn with_roots(roots: RootCertStore) -> Result<Self, TlsError> {
        // Named, because another crate of the process may bring another provider.
        let provider = Arc::new(crypto::ring::default_provider());
        let roots = Arc::new(roots);
        let by_roots = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        Ok(Self {
            roots,
            provider,
            by_roots: by_roots.into(),
        })
    }

    /// For `tokio_rustls::TlsConnector`; without ALPN.
    pub fn client(&self, verification: &Verification) -> Result<Arc<ClientConfig>, TlsError> {
        let rule = match verification {
            Verification::Roots => return Ok(self.by_roots.clone()),
            Verification::Name(name) => {
                let roots = WebPkiServerVerifier::builder_with_provider(
                    self.roots.clone(),
                    self.provider.clone(),
                );
                let roots = roots
                    .build()
                    .map_err(|error| TlsError::Setup(Error::General(error.to_string())))?;
                Rule::Name(name.clone(), roots)
            }
            Verification::Pin(pin) => Rule::Pin(*pin),
            Verification::Nothing => Rule::Nothing,
        };
        let verifier = Verifier {
            rule,
            provider: self.provider.clone(),
        };
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(config.into())
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("roots", &self.roots.len())
            .finish()
    }
}

#[derive(Debug)]
enum Rule {
    Name(ServerName<'static>, Arc<WebPkiServerVerifier>),
    Pin([u8; 32]),
    Nothing,
}

/// Judges the certificate by its rule; that the server holds the certificate's key is checked whatever the rule.
#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.rule {
            Rule::Name(name, roots) => {
                roots.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            Rule::Pin(pin) if Sha256::digest(end_entity)[..] != pin[..] => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Rule::Pin(_) | Rule::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(cert_name: &str) -> DerpNode {
        DerpNode {
            cert_name: cert_name.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn the_relay_map_says_what_a_relay_has_to_show() {
        assert_eq!(
            Verification::of_relay(&relay("")).unwrap(),
            Verification::Roots
        );
        let name = Verification::Name("cert.example".try_into().unwrap());
        assert_eq!(
            Verification::of_relay(&relay("cert.example")).unwrap(),
            name
        );
        let pin = format!("sha256-raw:{}", "ab".repeat(32));
        assert_eq!(
            Verification::of_relay(&relay(&pin)).unwrap(),
            Verification::Pin([0xab; 32])
        );
        let insecure = DerpNode {
            insecure_for_tests: true,
            ..Default::default()
        };
        assert_eq!(
            Verification::of_relay(&insecure).unwrap(),
            Verification::Nothing
        );
    }

    #[test]
    fn a_malformed_pin_is_an_error_and_never_taken_for_no_pin() {
        for cert_name in [
            "sha256-raw:",
            "sha256-raw:abcd",
            &format!("sha256-raw:{}", "zz".repeat(32)),
            "no name",
        ] {
            assert!(
                Verification::of_relay(&relay(cert_name)).is_err(),
                "{cert_name}"
            );
        }
    }
}
