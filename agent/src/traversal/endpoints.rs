//! Addresses of this host's interfaces.

use std::{collections::BTreeSet, io, net::IpAddr};

use lowroad_core::netcheck::LocalAddress;

use super::sys;

/// Addresses of all interfaces that are up, but `own` (the tunnel device). `lowroad_core::netcheck` decides
/// which of them are endpoints.
///
/// # Errors
/// The system cannot list its interfaces.
pub fn local_addresses(own: &str) -> io::Result<Vec<LocalAddress>> {
    let mut seen = BTreeSet::new();
    let found = sys::interface_addresses()?.into_iter();
    let found = found.filter(|(name, address)| {
        let up = address.flags & (libc::IFF_UP as u32) != 0;
        up && name != own && seen.insert(address.address)
    });
    Ok(found
        .map(|(_, address)| LocalAddress {
            address: match address.address {
                IpAddr::V6(ip) => IpAddr::V6(ip).to_canonical(),
                v4 @ IpAddr::V4(_) => v4,
            },
            prefix: address.prefix,
        })
        .collect())
}
