//! The coordinator's self-signed certificate, kept with its key in one file, so that they always
//! belong together.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use super::TlsError;

pub(super) const FILE: &str = "self-signed.json";

/// Pinned by its hash, so that nobody has to trust it for its age.
const LIFETIME: Duration = Duration::days(3650);

/// At a start within this time of its end it is made anew.
const RENEW_BEFORE: Duration = Duration::days(90);

/// Clocks of nodes may be behind by this much.
const CLOCK_SKEW: Duration = Duration::days(1);

/// A certificate and its key, ready for use.
pub(super) struct OwnCertificate {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    names: BTreeSet<String>,
    /// Seconds since the epoch.
    expires: i64,
    certificate_pem: String,
    key_pem: String,
}

impl OwnCertificate {
    /// `sha256-raw:` and the hash of the certificate's DER.
    pub(super) fn pin(&self) -> String {
        let hash = Sha256::digest(&self.certificate);
        format!("sha256-raw:{}", hex::encode(hash))
    }
}

impl Kept {
    fn fits(&self, names: &BTreeSet<String>, now: OffsetDateTime) -> bool {
        self.names == *names && (now + RENEW_BEFORE).unix_timestamp() < self.expires
    }

    fn open(&self) -> Result<OwnCertificate, pem::Error> {
        Ok(OwnCertificate {
            certificate: CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?,
            key: PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?,
        })
    }
}

/// The kept certificate if it still fits, otherwise a new one, stored before it is used.
pub(super) fn load_or_make(
    state_dir: &Path,
    names: &[String],
    now: OffsetDateTime,
) -> Result<OwnCertificate, TlsError> {
    let path = state_dir.join(FILE);
    let names: BTreeSet<String> = names.iter().cloned().collect();
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes).map(|kept| (kept.open(), kept)) {
            Ok((Ok(own), kept)) if kept.fits(&names, now) => return Ok(own),
            Ok((Ok(_), _)) => tracing::info!(
                "the self-signed certificate is for other names or about to expire; making a new one"
            ),
            _ => tracing::warn!(
                path = %path.display(),
                "the self-signed certificate is damaged; making a new one"
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(TlsError::Store { path, source }),
    }
    let kept = make(names, now)?;
    store(&path, &kept).map_err(|source| TlsError::Store {
        path: path.clone(),
        source,
    })?;
    kept.open().map_err(|source| TlsError::Pem {
        what: "the self-signed certificate",
        path,
        source,
    })
}

fn make(names: BTreeSet<String>, now: OffsetDateTime) -> Result<Kept, TlsError> {
    let make = || {
        let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + LIFETIME;
        // Stock clients take a common name that begins with `derpkey` for a message.
        params
            .distinguished_name
            .push(DnType::CommonName, "lowroad coordinator");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok((certificate, key, params.not_after))
    };
    let (certificate, key, expires) = make().map_err(|source| TlsError::Make {
        names: names.iter().cloned().collect::<Vec<_>>().join(", "),
        source,
    })?;
    Ok(Kept {
        expires: expires.unix_timestamp(),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        names,
    })
}

/// Written beside, synced and renamed: a crash leaves the old file or the new one.
fn store(path: &Path, kept: &Kept) -> io::Result<()> {
    let bytes = serde_json::to_vec(kept)?;
    let temporary = path.with_extension("new");
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
