//! Whether the ways out of this host have changed: a pod that comes or goes, or our own device, changes links and routes, but no path.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::debug;

use crate::{
    kernel::{KernelOptions, WayOut, ways_out},
    traversal::endpoints::local_addresses,
};

/// Addresses, without those of our own device, and the ways that packets outside the tunnel take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    addresses: BTreeSet<(IpAddr, u8)>,
    ways_out: BTreeSet<WayOut>,
}

impl Links {
    pub async fn read(options: &KernelOptions) -> Self {
        let addresses = local_addresses(&options.device).unwrap_or_else(|error| {
            debug!(%error, "cannot list the addresses of this host");
            Vec::new()
        });
        Self {
            addresses: addresses
                .into_iter()
                .map(|local| (local.address, local.prefix))
                .collect(),
            ways_out: ways_out(options.mark.value).await,
        }
    }
}
