//! What the programs of the matrix find on their hosts: names, and a CA that vouches for the server.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::{tailnet::COORDINATOR, topology::Namespace};

/// The coordinator's host, and a second relay's.
pub const SERVER: &str = "hs.lab";
pub const RELAY: &str = "relay2.lab";
pub const RELAY_HOST: u8 = 11;

/// Certificate and key of both, and their CA's certificate, as PEM files of this folder.
pub fn certify(folder: &Path) -> Result<()> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(DnType::CommonName, "lowroad interop lab");
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), ca.pem())?;
    for name in [SERVER, RELAY] {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![name.to_owned()])?;
        let certificate = params.signed_by(&key, &ca)?;
        fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// An account of a stock node's host that is not root.
pub const ORDINARY: &str = "guest";

/// The same host, with an `/etc` of its own: the stock client writes to it.
pub fn with_etc(namespace: &Namespace, folder: &Path) -> Result<Namespace> {
    let etc = folder.join(format!("etc-{}", namespace.name()));
    fs::create_dir_all(etc.join("ssl/certs"))?;
    fs::copy(
        folder.join("ca.pem"),
        etc.join("ssl/certs/ca-certificates.crt"),
    )?;
    let hosts = format!(
        "127.0.0.1 localhost\n\
         203.0.113.{COORDINATOR} {SERVER}\n\
         2001:db8::{COORDINATOR} {SERVER}\n\
         203.0.113.{RELAY_HOST} {RELAY}\n\
         2001:db8::{RELAY_HOST} {RELAY}\n"
    );
    fs::write(etc.join("hosts"), hosts)?;
    // Without it a name of two families has one address.
    fs::write(etc.join("host.conf"), "multi on\n")?;
    // Nobody answers there: names that nobody knows fail at once.
    fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
    // Two accounts for logins over SSH.
    let accounts = format!("root:x:0:0:root:/root:/bin/sh\n{ORDINARY}:x:1000:1000::/:/bin/sh\n");
    fs::write(etc.join("passwd"), accounts)?;
    fs::write(
        etc.join("group"),
        format!("root:x:0:\n{ORDINARY}:x:1000:\n"),
    )?;
    fs::write(
        etc.join("os-release"),
        "ID=debian\nNAME=Debian\nVERSION_ID=12\n",
    )?;
    namespace.with_etc(&etc)
}
