//! TLS.
use std::sync::Arc;
/// Verification against the system's roots, or those in `SSL_CERT_FILE`.
pub fn client_config() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(Arc::new(
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}
