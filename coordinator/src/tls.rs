//! TLS and plain HTTP on one port: stock clients reach a relay by TLS only, while control may be plain.
//!
//! Without a certificate the coordinator makes one of its own and pins it in the DERPMap.

mod own;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

pub use stream::FrontStream;

/// How long a client may take for its first byte and its TLS handshake together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of every TLS connection: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A given file cannot be read or holds nothing of use.
    #[error("reading {what} from {}: {source}; is it a PEM file?", path.display())]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: rustls_pki_types::pem::Error,
    },
    /// rustls doesn't take the given files.
    #[error("using certificate and key from {files}: {source}; do they belong together?")]
    Unusable {
        /// Both.
        files: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// Nor the self-signed certificate as it was kept.
    #[error("using the self-signed certificate kept in {}: {source}; restore the file from a backup, or move it away: then a new one is made, whose pin nodes are told", path.display())]
    UnusableOwn {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The self-signed certificate cannot be kept.
    #[error("keeping the self-signed certificate in {}: {source}; is the state directory writable?", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A certificate for these names cannot be made.
    #[error("making a self-signed certificate for {names}: {source}; check the host name in --url")]
    Make {
        /// The names, separated by commas.
        names: String,
        /// What the library says.
        source: rcgen::Error,
    },
}

/// Accepts TLS and plain connections on one port; the first byte tells them apart.
#[derive(Clone)]
pub struct Front {
    acceptor: TlsAcceptor,
    pin: Option<String>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Front")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Front {
    /// Serves with a given certificate chain and its key, both in PEM.
    ///
    /// # Errors
    /// The files cannot be read, or don't fit together.
    pub fn with_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let pem = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .and_then(|chain| match chain.is_empty() {
                true => Err(rustls_pki_types::pem::Error::NoItemsFound),
                false => Ok(chain),
            })
            .map_err(pem("the certificate", certificate))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(pem("the private key", key))?;
        Self::new(chain, private, None).map_err(|source| TlsError::Unusable {
            files: format!("{} and {}", certificate.display(), key.display()),
            source,
        })
    }

    /// Serves with a self-signed certificate for `names` (host names and addresses), made at the
    /// first start and kept in the state directory. It is made anew when the names change or it is
    /// about to expire; its pin changes with it.
    ///
    /// # Errors
    /// It can neither be read nor made and stored, or TLS refuses the kept one.
    pub fn self_signed(state_dir: &Path, names: &[String]) -> Result<Self, TlsError> {
        let own = own::load_or_make(state_dir, names, time::OffsetDateTime::now_utc())?;
        let pin = own.pin();
        let refused = |source| TlsError::UnusableOwn {
            path: state_dir.join(own::FILE),
            source,
        };
        Self::new(vec![own.certificate], own.key, Some(pin)).map_err(refused)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        pin: Option<String>,
    ) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        // Both ts2021 and DERP upgrade from HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pin,
        })
    }

    /// What the DERPMap's CertName has to say for a self-signed certificate: `sha256-raw:<hex>`.
    pub fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// Finds out what the client speaks, and shakes hands if it is TLS.
    ///
    /// # Errors
    /// The client closes the connection, takes longer than 10 s, or fails the handshake.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<FrontStream> {
        let accept = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first[0] == TLS_HANDSHAKE {
                let stream = self.acceptor.accept(stream).await?;
                Ok(FrontStream::Tls(Box::new(stream)))
            } else {
                Ok(FrontStream::Plain(stream))
            }
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, accept)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests;
