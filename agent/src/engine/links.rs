//! Whether the ways out of this host have changed: a pod that comes or goes, or our own device, changes links and routes, but no path.

use std::{collections::BTreeSet, fs, net::IpAddr};

use tracing::debug;

use crate::traversal::endpoints::local_addresses;

/// Addresses and default routes, without those of our own device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    addresses: BTreeSet<(IpAddr, u8)>,
    /// Interface, gateway and metric, as the kernel writes them.
    defaults: BTreeSet<(String, String, String)>,
}

impl Links {
    pub fn read(own_device: &str) -> Self {
        let addresses = local_addresses(own_device).unwrap_or_else(|error| {
            debug!(%error, "cannot list the addresses of this host");
            Vec::new()
        });
        let table =
            |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
        let mut defaults = defaults_v4(&table("route"));
        defaults.extend(defaults_v6(&table("ipv6_route")));
        defaults.retain(|(interface, ..)| interface != own_device);
        Self {
            addresses: addresses
                .into_iter()
                .map(|local| (local.address, local.prefix))
                .collect(),
            defaults,
        }
    }
}

/// `/proc/net/route`: interface, destination, gateway, flags, references, use, metric, mask, …
fn defaults_v4(text: &str) -> BTreeSet<(String, String, String)> {
    let rows = text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&"00000000") && row.get(7) == Some(&"00000000"))
        .map(|row| (row[0].to_owned(), row[2].to_owned(), row[6].to_owned()))
        .collect()
}

/// `/proc/net/ipv6_route`: destination, its length, source, its length, gateway, metric, references, use, flags, interface.
fn defaults_v6(text: &str) -> BTreeSet<(String, String, String)> {
    let rows = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The kernel's own unreachable default stands on `lo`.
    rows.filter(|row| {
        row.get(1) == Some(&"00") && row.get(9).is_some_and(|interface| *interface != "lo")
    })
    .map(|row| (row[9].to_owned(), row[4].to_owned(), row[5].to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_found_in_the_kernels_tables() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(
            defaults_v4(v4),
            BTreeSet::from([("eth0".into(), "0100A8C0".into(), "100".into())])
        );
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        );
        assert_eq!(
            defaults_v6(&v6),
            BTreeSet::from([(
                "eth0".into(),
                "fe800000000000000000000000000001".into(),
                "00000400".into()
            )])
        );
        assert!(defaults_v4("").is_empty() && defaults_v6("broken\n\n").is_empty());
    }
}
