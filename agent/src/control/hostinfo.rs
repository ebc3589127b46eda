//! What we tell the control server about this host.

use std::fs;

use lowroad_wire::control::{HostDetails, Hostinfo};
use sha2::{Digest, Sha256};

use crate::{prefs::Prefs, status::version};

/// Facts that stay the same while the agent runs; the preferences' share is laid over them.
pub fn hostinfo(prefs: &Prefs, state_id: &str) -> Hostinfo {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let details = HostDetails {
        // Stock servers expect 64 hex digits; nothing is ever logged there.
        backend_log_id: hex::encode(Sha256::digest(format!("lowroad log id {state_id}"))),
        os_version: kernel("osrelease"),
        distro: release_field(&release, "ID"),
        distro_version: release_field(&release, "VERSION_ID"),
        distro_code_name: release_field(&release, "VERSION_CODENAME"),
        machine: std::env::consts::ARCH.to_owned(),
        no_logs_no_support: true,
        ..HostDetails::default()
    };
    Hostinfo {
        ipn_version: format!("{}-lowroad", version()),
        os: "linux".to_owned(),
        hostname: hostname(prefs),
        shields_up: prefs.shields_up,
        request_tags: prefs.advertise_tags.clone(),
        details: Some(Box::new(details)),
        ..Hostinfo::default()
    }
}

/// The preferred name, or the host's up to its first dot.
fn hostname(prefs: &Prefs) -> String {
    if !prefs.hostname.is_empty() {
        return prefs.hostname.clone();
    }
    let name = kernel("hostname");
    let first = name.split('.').next().unwrap_or_default();
    if first.is_empty() || first == "(none)" {
        "lowroad".to_owned()
    } else {
        first.to_owned()
    }
}

fn kernel(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/kernel/{name}"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn release_field(release: &str, name: &str) -> String {
    let line = release
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_os_release_are_taken_without_quotes_and_by_whole_name() {
        let release = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(release_field(release, "ID"), "debian");
        assert_eq!(release_field(release, "VERSION_ID"), "12");
        assert_eq!(release_field(release, "VERSION"), "");
    }

    #[test]
    fn the_log_id_is_sixty_four_hex_digits() {
        let details = hostinfo(&Prefs::default(), "x").details.unwrap();
        assert_eq!(details.backend_log_id.len(), 64);
    }
}
