//! The kernel's WireGuard, through wireguard-control.
//!
//! Its calls block and take the network namespace of their thread, so they run on the blocking pool. Its types print private
//! keys in `Debug`: none of them leaves this file. `apply` on a link that doesn't exist silently creates one, so every write
//! first looks whether the link is there. Its updates of a peer make the peer if it is gone: those are [`update`]'s.

mod update;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use lowroad_core::desired::{Peer, PeerStats};
use lowroad_core::plan::Step;
use lowroad_wire::key::NodePublic;
use wireguard_control::{
    AllowedIp, Backend, Device, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder,
};

use super::KernelError;
use super::monitor::OwnIndex;

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
    /// Index that the device must have for a write.
    own: OwnIndex,
}

impl WireGuard {
    pub fn new(device: &str, own: OwnIndex) -> Self {
        Self {
            device: device.into(),
            own,
        }
    }

    pub async fn read(&self) -> Result<Snapshot, KernelError> {
        let device = self.device.clone();
        blocking("reading the WireGuard device".into(), move || {
            let name = name(&device)?;
            Device::get(&name, Backend::Kernel).map(snapshot)
        })
        .await
    }

    /// Does the steps that are WireGuard's, together: a thousand peers cost a few messages.
    pub async fn apply(&self, steps: &[Step]) -> Result<(), KernelError> {
        let runs: Vec<Run> = steps
            .chunk_by(|a, b| is_update(a) == is_update(b))
            .map(Run::of)
            .collect();
        let (device, index) = (self.device.clone(), self.own.load(Ordering::Relaxed));
        let result = blocking(describe(steps), move || {
            let name = name(&device)?;
            require_link(&device, index)?;
            runs.into_iter().try_for_each(|run| match run {
                Run::Any(update) => update.apply(&name, Backend::Kernel),
                Run::Updates(updates) => updates.apply(&device),
            })
        })
        .await;
        let port = steps.iter().find_map(|step| match step {
            Step::SetListenPort(port) => Some(*port),
            _ => None,
        });
        match (result, port) {
            (Err(KernelError::WireGuard { source, .. }), Some(port))
                if source.kind() == io::ErrorKind::AddrInUse =>
            {
                Err(KernelError::PortTaken { port })
            }
            (result, _) => result,
        }
    }
}

/// Steps that are done together.
enum Run {
    Any(DeviceUpdate),
    Updates(update::Updates),
}

impl Run {
    fn of(steps: &[Step]) -> Self {
        if steps.iter().all(is_update) {
            Self::Updates(update::Updates::new(steps))
        } else {
            Self::Any(steps.iter().fold(DeviceUpdate::new(), with_step))
        }
    }
}

fn is_update(step: &Step) -> bool {
    matches!(step, Step::UpdatePeer { .. })
}

/// Whether [`WireGuard::apply`] does it.
pub(super) fn is_wireguards(step: &Step) -> bool {
    matches!(
        step,
        Step::SetPrivateKey(_)
            | Step::SetListenPort(_)
            | Step::SetFwmark(_)
            | Step::AddPeer { .. }
            | Step::UpdatePeer { .. }
            | Step::RemovePeer(_)
    )
}

fn describe(steps: &[Step]) -> String {
    match steps {
        [Step::SetPrivateKey(_)] => "setting the private key".into(),
        [Step::SetListenPort(port)] => format!("setting the WireGuard port to {port}"),
        [Step::SetFwmark(mark)] => format!("setting the device's mark to {mark:#x}"),
        [Step::AddPeer { key, .. }] => format!("adding the peer {}", key.short()),
        [Step::UpdatePeer { key, .. }] => format!("updating the peer {}", key.short()),
        [Step::RemovePeer(key)] => format!("removing the peer {}", key.short()),
        many => format!("{} changes of the WireGuard device", many.len()),
    }
}

fn with_step(update: DeviceUpdate, step: &Step) -> DeviceUpdate {
    match step {
        Step::SetPrivateKey(key) => update.set_private_key(Key(key.to_bytes())),
        Step::SetListenPort(port) => update.set_listen_port(*port),
        Step::SetFwmark(mark) => update.set_fwmark(*mark),
        Step::AddPeer { key, peer } => with_peer(update, key, peer),
        Step::RemovePeer(key) => update.remove_peer_by_key(&Key(*key.as_bytes())),
        _ => update,
    }
}

/// A peer that isn't there. Of one that is, the first entry replaces the prefixes; further ones append those that don't fit.
fn with_peer(mut update: DeviceUpdate, key: &NodePublic, peer: &Peer) -> DeviceUpdate {
    let prefixes: Vec<AllowedIp> = peer
        .allowed_ips
        .iter()
        .map(|prefix| AllowedIp {
            address: prefix.network(),
            cidr: prefix.prefix_len(),
        })
        .collect();
    let mut chunks = prefixes.chunks(CHUNK);
    let mut first = PeerConfigBuilder::new(&Key(*key.as_bytes()))
        .replace_allowed_ips()
        .add_allowed_ips(chunks.next().unwrap_or_default());
    if let Some(endpoint) = peer.endpoint {
        first = first.set_endpoint(endpoint);
    }
    update = update.add_peer(first);
    for chunk in chunks {
        let more = PeerConfigBuilder::new(&Key(*key.as_bytes())).add_allowed_ips(chunk);
        update = update.add_peer(more);
    }
    update
}

async fn blocking<T: Send + 'static>(
    what: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, KernelError> {
    let result = tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten();
    result.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => KernelError::NotPermitted { what },
        _ => KernelError::WireGuard { what, source },
    })
}

fn name(device: &str) -> io::Result<InterfaceName> {
    device.parse().map_err(io::Error::from)
}

fn require_link(device: &str, index: u32) -> io::Result<()> {
    let name = std::ffi::CString::new(device).map_err(io::Error::other)?;
    // SAFETY: `name` is a string that ends in zero and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        found if found == index && index != 0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
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
            .map(|n| IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 32).unwrap());
        let peer = Peer {
            endpoint: None,
            allowed_ips: prefixes.collect(),
        };
        let update = with_peer(DeviceUpdate::new(), &key, &peer);
        let entry = || PeerConfigBuilder::new(&Key([1; 32]));
        let expected = (0..450u32).map(|n| AllowedIp {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
            cidr: 32,
        });
        let expected: Vec<AllowedIp> = expected.collect();
        let chunks = DeviceUpdate::new()
            .add_peer(
                entry()
                    .add_allowed_ips(&expected[..200])
                    .replace_allowed_ips(),
            )
            .add_peer(entry().add_allowed_ips(&expected[200..400]))
            .add_peer(entry().add_allowed_ips(&expected[400..]));
        assert!(update == chunks, "not printed: its Debug shows keys");
    }

    #[test]
    fn a_device_that_does_not_exist_is_not_created_by_a_write() {
        for index in [0, 1] {
            let error = require_link("lr-no-such-dev", index).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
    }

    #[test]
    fn a_device_with_another_index_is_not_written_to() {
        assert!(require_link("lo", 77).is_err());
    }
}
