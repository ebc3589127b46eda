//! The kernel's WireGuard, through wireguard-control.
//!
//! Its calls block and take the network namespace of their thread, so they run on the blocking pool. Its types print private
//! keys in `Debug`: none of them leaves this file. `apply` on a link that doesn't exist silently creates one, so every write
//! first looks whether the link is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use lowroad_core::desired::{Peer, PeerStats};
use lowroad_core::plan::AllowedIps;
use lowroad_wire::key::{NodePrivate, NodePublic};
use wireguard_control::{
    AllowedIp, Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder,
};

use super::KernelError;

/// Prefixes of one peer in one message: about 280 fit into it, 300 fail.
const CHUNK: usize = 200;

/// The device as read back.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub public_key: Option<NodePublic>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: BTreeMap<NodePublic, Peer>,
    pub stats: Vec<PeerStats>,
}

#[derive(Clone, Debug)]
pub(super) struct WireGuard {
    device: String,
}

impl WireGuard {
    pub fn new(device: &str) -> Self {
        Self {
            device: device.into(),
        }
    }

    pub async fn read(&self) -> Result<Snapshot, KernelError> {
        let device = self.device.clone();
        blocking("reading the WireGuard device", move || {
            let name = name(&device)?;
            Device::get(&name, Backend::Kernel).map(snapshot)
        })
        .await
    }

    pub async fn set_private_key(&self, key: &NodePrivate) -> Result<(), KernelError> {
        let key = Key(key.to_bytes());
        self.update(
            "setting the private key",
            vec![DeviceUpdate::new().set_private_key(key)],
        )
        .await
    }

    pub async fn set_listen_port(&self, port: u16) -> Result<(), KernelError> {
        let update = DeviceUpdate::new().set_listen_port(port);
        match self
            .update("setting the WireGuard port", vec![update])
            .await
        {
            Err(KernelError::WireGuard { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse =>
            {
                Err(KernelError::PortTaken { port })
            }
            other => other,
        }
    }

    pub async fn set_fwmark(&self, mark: u32) -> Result<(), KernelError> {
        self.update(
            "setting the device's mark",
            vec![DeviceUpdate::new().set_fwmark(mark)],
        )
        .await
    }

    pub async fn add_peer(&self, key: &NodePublic, peer: &Peer) -> Result<(), KernelError> {
        let mut builder = builder(key);
        if let Some(endpoint) = peer.endpoint {
            builder = builder.set_endpoint(endpoint);
        }
        let updates = with_prefixes(key, builder, true, &peer.allowed_ips);
        self.update("adding a peer", updates).await
    }

    pub async fn update_peer(
        &self,
        key: &NodePublic,
        endpoint: Option<std::net::SocketAddr>,
        allowed_ips: &AllowedIps,
    ) -> Result<(), KernelError> {
        let mut builder = builder(key);
        if let Some(endpoint) = endpoint {
            builder = builder.set_endpoint(endpoint);
        }
        let none = BTreeSet::new();
        let (replace, prefixes) = match allowed_ips {
            AllowedIps::Keep => (false, &none),
            AllowedIps::Append(prefixes) => (false, prefixes),
            AllowedIps::Replace(prefixes) => (true, prefixes),
        };
        let updates = with_prefixes(key, builder, replace, prefixes);
        self.update("updating a peer", updates).await
    }

    pub async fn remove_peer(&self, key: &NodePublic) -> Result<(), KernelError> {
        let update = DeviceUpdate::new().remove_peer_by_key(&Key(*key.as_bytes()));
        self.update("removing a peer", vec![update]).await
    }

    async fn update(
        &self,
        what: &'static str,
        updates: Vec<DeviceUpdate>,
    ) -> Result<(), KernelError> {
        let device = self.device.clone();
        blocking(what, move || {
            let name = name(&device)?;
            for update in updates {
                require_link(&device)?;
                update.apply(&name, Backend::Kernel)?;
            }
            Ok(())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, KernelError> {
    let result = tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten();
    result.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => KernelError::NotPermitted { what: what.into() },
        _ => KernelError::WireGuard {
            what: what.into(),
            source,
        },
    })
}

fn name(device: &str) -> io::Result<InterfaceName> {
    device.parse().map_err(io::Error::from)
}

fn require_link(device: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(device).map_err(io::Error::other)?;
    // SAFETY: `name` is a string that ends in zero and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        _ => Ok(()),
    }
}

fn builder(key: &NodePublic) -> PeerConfigBuilder {
    PeerConfigBuilder::new(&Key(*key.as_bytes()))
}

/// The first update carries what `first` has; further ones append the prefixes that don't fit.
fn with_prefixes(
    key: &NodePublic,
    first: PeerConfigBuilder,
    replace: bool,
    prefixes: &BTreeSet<IpNet>,
) -> Vec<DeviceUpdate> {
    let prefixes: Vec<AllowedIp> = prefixes
        .iter()
        .map(|prefix| AllowedIp {
            address: prefix.network(),
            cidr: prefix.prefix_len(),
        })
        .collect();
    let mut chunks = prefixes.chunks(CHUNK);
    let mut first = first.add_allowed_ips(chunks.next().unwrap_or_default());
    if replace {
        first = first.replace_allowed_ips();
    }
    std::iter::once(first)
        .chain(chunks.map(|chunk| builder(key).add_allowed_ips(chunk)))
        .map(|peer| DeviceUpdate::new().add_peer(peer))
        .collect()
}

/// A peer with many prefixes comes as several entries, of which the first has the counters.
fn snapshot(device: Device) -> Snapshot {
    let mut peers: BTreeMap<NodePublic, Peer> = BTreeMap::new();
    let mut stats: BTreeMap<NodePublic, PeerStats> = BTreeMap::new();
    for info in device.peers {
        let key = NodePublic::from_bytes(info.config.public_key.0);
        let peer = peers.entry(key).or_default();
        peer.endpoint = peer.endpoint.or(info.config.endpoint);
        peer.allowed_ips.extend(
            info.config
                .allowed_ips
                .iter()
                .filter_map(|prefix| IpNet::new(prefix.address, prefix.cidr).ok()),
        );
        let entry = stats.entry(key).or_insert(PeerStats {
            key,
            endpoint: None,
            rx_bytes: 0,
            tx_bytes: 0,
            last_handshake: None,
        });
        entry.endpoint = peer.endpoint;
        entry.rx_bytes = entry.rx_bytes.max(info.stats.rx_bytes);
        entry.tx_bytes = entry.tx_bytes.max(info.stats.tx_bytes);
        entry.last_handshake = entry.last_handshake.or(info
            .stats
            .last_handshake_time
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok()));
    }
    Snapshot {
        public_key: device
            .public_key
            .map(|key| NodePublic::from_bytes(key.0))
            .filter(|key| !key.is_zero()),
        listen_port: device.listen_port.unwrap_or_default(),
        fwmark: device.fwmark.unwrap_or_default(),
        peers,
        stats: stats.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_prefixes_go_out_in_chunks_that_fit() {
        let key = NodePublic::from_bytes([1; 32]);
        let prefixes = (0..450u32)
            .map(|n| IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 32).unwrap())
            .collect();
        assert_eq!(with_prefixes(&key, builder(&key), true, &prefixes).len(), 3);
    }

    #[test]
    fn a_peer_without_prefixes_is_still_one_update() {
        let key = NodePublic::from_bytes([1; 32]);
        assert_eq!(
            with_prefixes(&key, builder(&key), true, &BTreeSet::new()).len(),
            1
        );
    }

    #[test]
    fn a_device_that_does_not_exist_is_not_created_by_a_write() {
        let error = require_link("lr-no-such-dev").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
