use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;

fn names() -> Vec<String> {
    vec!["127.0.0.1".to_owned(), "relay.example".to_owned()]
}

/// A new certificate with its key, as they are kept.
fn made() -> serde_json::Value {
    let directory = tempfile::tempdir().unwrap();
    Front::self_signed(directory.path(), &names()).unwrap();
    let kept = std::fs::read(directory.path().join("self-signed.json")).unwrap();
    serde_json::from_slice(&kept).unwrap()
}

/// Echoes one message per connection, in capitals when it came by TLS.
async fn start(front: Front) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let front = front.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = front.accept(stream).await else {
                    return;
                };
                let mut message = [0; 5];
                stream.read_exact(&mut message).await.unwrap();
                if stream.is_tls() {
                    message.make_ascii_uppercase();
                }
                stream.write_all(&message).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    address
}

async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) -> Vec<u8> {
    stream.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

/// Accepts the one certificate that the pin names.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = format!("sha256-raw:{}", hex::encode(Sha256::digest(certificate)));
        assert_eq!(found, self.0);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn client() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
}

async fn exchange_by_tls(config: ClientConfig, address: SocketAddr) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    exchange(stream.expect("the handshake succeeds")).await
}

#[tokio::test]
async fn tls_and_plain_clients_are_served_on_the_same_port() {
    let directory = tempfile::tempdir().unwrap();
    let front = Front::self_signed(directory.path(), &names()).unwrap();
    let pin = front.pin().unwrap().to_owned();
    let address = start(front).await;
    let plain = TcpStream::connect(address).await.unwrap();
    assert_eq!(exchange(plain).await, b"hello");
    let pinned = client()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin)))
        .with_no_client_auth();
    assert_eq!(exchange_by_tls(pinned, address).await, b"HELLO");
}

#[tokio::test]
async fn the_self_signed_certificate_holds_for_its_names_as_a_root() {
    let directory = tempfile::tempdir().unwrap();
    let address = start(Front::self_signed(directory.path(), &names()).unwrap()).await;
    let own = own::load_or_make(directory.path(), &names(), time::OffsetDateTime::now_utc());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.unwrap().certificate).unwrap();
    let config = client().with_root_certificates(roots).with_no_client_auth();
    assert_eq!(exchange_by_tls(config, address).await, b"HELLO");
}

#[tokio::test]
async fn garbage_and_closed_connections_end_without_harm() {
    let directory = tempfile::tempdir().unwrap();
    let address = start(Front::self_signed(directory.path(), &names()).unwrap()).await;
    drop(TcpStream::connect(address).await.unwrap());
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[0x16; 100]).await.unwrap();
    let mut rest = Vec::new();
    // An alert and the end, or a reset: what matters is that it ends.
    let _ = garbage.read_to_end(&mut rest).await;
    assert_eq!(
        exchange(TcpStream::connect(address).await.unwrap()).await,
        b"hello"
    );
}

#[test]
fn the_certificate_persists_with_its_key_readable_by_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let pin = |names: &[String]| {
        let front = Front::self_signed(directory.path(), names).unwrap();
        front.pin().unwrap().to_owned()
    };
    let first = pin(&names());
    assert_eq!(first.len(), "sha256-raw:".len() + 64);
    assert_eq!(pin(&names()), first, "a restart keeps it");
    let file = directory.path().join("self-signed.json");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = pin(&["other.example".to_owned()]);
    assert_ne!(other, first, "other names need another certificate");
    std::fs::write(&file, "{").unwrap();
    assert_ne!(
        pin(&["other.example".to_owned()]),
        other,
        "a damaged one is replaced"
    );
}

#[test]
fn a_certificate_near_its_end_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let now = time::OffsetDateTime::now_utc();
    let pin_at = |now| {
        own::load_or_make(directory.path(), &names(), now)
            .unwrap()
            .pin()
    };
    let first = pin_at(now);
    assert_eq!(pin_at(now + time::Duration::days(3000)), first);
    assert_ne!(pin_at(now + time::Duration::days(3600)), first);
}

#[test]
fn given_files_that_are_no_certificate_are_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cert.pem");
    let error = Front::with_files(&file, &file).unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");
    std::fs::write(&file, "no certificate").unwrap();
    let error = Front::with_files(&file, &file).unwrap_err().to_string();
    assert!(error.starts_with("reading the certificate from"), "{error}");
}

#[test]
fn given_files_that_do_not_belong_together_are_both_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    let write = |path: &Path, pem: &serde_json::Value| {
        std::fs::write(path, pem.as_str().unwrap()).unwrap();
    };
    let pair = made();
    write(&certificate, &pair["certificate_pem"]);
    write(&key, &pair["key_pem"]);
    Front::with_files(&certificate, &key).unwrap();
    write(&key, &made()["key_pem"]);
    let error = Front::with_files(&certificate, &key).unwrap_err();
    let error = error.to_string();
    for path in [&certificate, &key] {
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_kept_certificate_that_tls_refuses_is_named_in_the_error_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("self-signed.json");
    let start = || Front::self_signed(directory.path(), &names());
    let right = made();
    let empty = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    for (member, wrong) in [
        ("key_pem", made()["key_pem"].clone()),
        ("certificate_pem", empty.into()),
    ] {
        let mut kept = right.clone();
        kept[member] = wrong;
        let kept = kept.to_string();
        std::fs::write(&file, &kept).unwrap();
        let error = start().unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
        assert!(error.contains("move it away"), "{error}");
        let left = std::fs::read_to_string(&file).unwrap();
        assert_eq!(left, kept, "it may be mended by hand");
    }
    std::fs::remove_file(&file).unwrap();
    start().unwrap();
}
