//! The embedded WireGuard: gotatun on a TUN device of our own, with our UDP transport.
//!
//! gotatun's traps: built with a key and without peers it never binds its sockets, so the key comes after; its own update of a
//! whole peer would lose nothing, but a prefix that moves to another peer stays in the first one's list, so we keep the owners.

mod mmsg;
mod tun;
mod udp;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gotatun::device::{Device, DeviceBuilder, Error};
use gotatun::tun::MtuWatcher;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use lowroad_core::desired::{Peer, PeerStats};
use lowroad_core::plan::{AllowedIps, Step};
use lowroad_wire::key::{NodePrivate, NodePublic};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use self::tun::Tun;
pub use self::udp::arrivals;
use self::udp::{Factory, Sockets};
use super::KernelError;
use super::wireguard::Snapshot;
use crate::traversal::port::{Datagram, Port};
use crate::traversal::shortcut::Shortcut;

/// How long the sockets of the device before may take to close, on a busy machine.
const LAST_SOCKETS: Duration = Duration::from_millis(500);

type Tunnel = Device<(Factory, Tun, Tun)>;

/// The port, bound as long as the agent runs, and the device while there is one.
pub(super) struct Userspace {
    sockets: Sockets,
    factory: Factory,
    port: u16,
    mark: u32,
    running: Option<Running>,
}

/// After `down` the tasks of the last device end one by one, and the sockets with the last of them: an `up` right after it
/// waits for that.
async fn bind_when_free(port: u16, mark: u32) -> Result<Sockets, KernelError> {
    let start = Instant::now();
    loop {
        match Sockets::bind(port, mark) {
            Err(KernelError::PortTaken { .. }) if start.elapsed() < LAST_SOCKETS => {
                sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

struct Running {
    tunnel: Tunnel,
    mtu: watch::Sender<u16>,
    /// Who owns which prefix, and the other way round.
    owners: HashMap<IpNet, NodePublic>,
    peers: HashMap<NodePublic, BTreeSet<IpNet>>,
}

impl Userspace {
    /// Binds the port. Disco and STUN that arrive there come out of the receiver from then on.
    pub async fn bind(
        port: u16,
        mark: u32,
    ) -> Result<(Self, Port, mpsc::Receiver<Datagram>), KernelError> {
        let sockets = bind_when_free(port, mark).await?;
        let (sender, datagrams) = mpsc::channel(udp::DATAGRAMS);
        let (shortcut, injected) = Shortcut::new();
        let factory = Factory::new(sockets.clone(), sender, shortcut.clone(), injected);
        let shared = Port::shared(sockets.v4.clone(), sockets.v6.clone(), Some(shortcut));
        let userspace = Self {
            sockets,
            factory,
            port,
            mark,
            running: None,
        };
        Ok((userspace, shared, datagrams))
    }

    /// Whether a device was created and not stopped. Somebody else may have deleted its link since.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Creates the TUN device and an empty WireGuard on it.
    pub async fn create(&mut self, device: &str, mtu: u32) -> Result<(), KernelError> {
        self.stop().await;
        let file = tun::open(device)?;
        let (sender, watched) = watch::channel(narrow(mtu));
        let tun =
            Tun::new(file, MtuWatcher::from(watched)).map_err(|source| KernelError::WireGuard {
                what: "watching the TUN device".into(),
                source,
            })?;
        let tunnel = DeviceBuilder::new()
            .with_udp(self.factory.share())
            .with_ip(tun)
            .with_listen_port(self.port)
            .with_fwmark(self.mark)
            .build()
            .await
            .map_err(failed("starting the userspace WireGuard"))?;
        self.running = Some(Running {
            tunnel,
            mtu: sender,
            owners: HashMap::new(),
            peers: HashMap::new(),
        });
        Ok(())
    }

    /// Stops the tunnel. Its TUN device vanishes when the last task is done with it.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.tunnel.stop().await;
        }
    }

    pub fn set_mtu(&self, mtu: u32) {
        if let Some(running) = &self.running {
            running.mtu.send_replace(narrow(mtu));
        }
    }

    /// The steps that are WireGuard's.
    pub async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::SetPrivateKey(key) => self.set_private_key(key).await,
            Step::SetListenPort(port) => self.set_listen_port(*port),
            Step::SetFwmark(mark) => self.set_fwmark(*mark).await,
            Step::AddPeer { key, peer } => self.add_peer(key, peer).await,
            Step::UpdatePeer {
                key,
                endpoint,
                allowed_ips,
            } => self.update_peer(key, *endpoint, allowed_ips).await,
            Step::RemovePeer(key) => self.remove_peer(key).await,
            _ => Ok(()),
        }
    }

    async fn set_private_key(&mut self, key: &NodePrivate) -> Result<(), KernelError> {
        let key = StaticSecret::from(key.to_bytes());
        self.running("setting the private key")?
            .tunnel
            .set_private_key(key)
            .await
            .map_err(failed("setting the private key"))
    }

    /// The port is bound once, with its sockets shared: another one needs another agent.
    fn set_listen_port(&self, port: u16) -> Result<(), KernelError> {
        if port == self.port {
            return Ok(());
        }
        Err(KernelError::NeedsRestart {
            what: format!("changing the port from {} to {port}", self.port),
        })
    }

    async fn set_fwmark(&mut self, mark: u32) -> Result<(), KernelError> {
        self.sockets
            .set_mark(mark)
            .map_err(|source| KernelError::WireGuard {
                what: "marking the sockets".into(),
                source,
            })?;
        self.mark = mark;
        match &self.running {
            Some(running) => running
                .tunnel
                .set_fwmark(mark)
                .await
                .map_err(failed("setting the device's mark")),
            None => Ok(()),
        }
    }

    async fn add_peer(&mut self, key: &NodePublic, peer: &Peer) -> Result<(), KernelError> {
        let running = self.running("adding a peer")?;
        if running.peers.contains_key(key) {
            let prefixes = AllowedIps::Replace(peer.allowed_ips.clone());
            return self.update_peer(key, peer.endpoint, &prefixes).await;
        }
        if running
            .tunnel
            .read(async |device| device.private_key().is_none())
            .await
        {
            return Err(KernelError::WireGuard {
                what: "adding a peer".into(),
                source: io::Error::other("the device has no private key yet"),
            });
        }
        running.take_from_others(key, &peer.allowed_ips).await?;
        let mut new = gotatun::device::Peer::new(public(key))
            .with_allowed_ips(peer.allowed_ips.iter().map(network));
        new.endpoint = peer.endpoint;
        running
            .tunnel
            .add_peer(new)
            .await
            .map_err(failed("adding a peer"))?;
        running.own(key, peer.allowed_ips.clone());
        Ok(())
    }

    /// Keeps the session whatever changes.
    async fn update_peer(
        &mut self,
        key: &NodePublic,
        endpoint: Option<SocketAddr>,
        allowed_ips: &AllowedIps,
    ) -> Result<(), KernelError> {
        let running = self.running("updating a peer")?;
        let mut prefixes = running.peers.get(key).cloned().unwrap_or_default();
        match allowed_ips {
            AllowedIps::Keep => {}
            AllowedIps::Append(more) => prefixes.extend(more),
            AllowedIps::Replace(all) => prefixes.clone_from(all),
        }
        running.take_from_others(key, &prefixes).await?;
        let rewrite = *allowed_ips != AllowedIps::Keep;
        running
            .tunnel
            .modify_peer(&public(key), |peer| {
                if let Some(endpoint) = endpoint {
                    peer.set_endpoint(Some(endpoint));
                }
                if rewrite {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(prefixes.iter().map(network));
                }
            })
            .await
            .map_err(failed("updating a peer"))?;
        running.own(key, prefixes);
        Ok(())
    }

    async fn remove_peer(&mut self, key: &NodePublic) -> Result<(), KernelError> {
        let running = self.running("removing a peer")?;
        running
            .tunnel
            .remove_peer(&public(key))
            .await
            .map_err(failed("removing a peer"))?;
        running.own(key, BTreeSet::new());
        running.peers.remove(key);
        Ok(())
    }

    pub async fn read(&self) -> Result<Snapshot, KernelError> {
        let Some(running) = &self.running else {
            return Ok(Snapshot {
                public_key: None,
                listen_port: self.port,
                fwmark: self.mark,
                peers: BTreeMap::new(),
                stats: Vec::new(),
            });
        };
        let (public_key, peers) = running
            .tunnel
            .read(async |device| {
                (
                    device.private_key().map(PublicKey::from),
                    device.peers().await,
                )
            })
            .await;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let stats = peers.iter().map(|peer| PeerStats {
            key: node(&peer.peer.public_key),
            endpoint: peer.peer.endpoint,
            rx_bytes: peer.stats.rx_bytes as u64,
            tx_bytes: peer.stats.tx_bytes as u64,
            last_handshake: peer
                .stats
                .last_handshake
                .and_then(|age| now.checked_sub(age)),
        });
        let mut stats: Vec<PeerStats> = stats.collect();
        stats.sort_by_key(|stats| stats.key);
        Ok(Snapshot {
            public_key: public_key.as_ref().map(node),
            listen_port: self.port,
            fwmark: self.mark,
            stats,
            peers: peers
                .into_iter()
                .map(|peer| {
                    let allowed_ips = peer
                        .peer
                        .allowed_ips
                        .iter()
                        .filter_map(|net| IpNet::new(net.network(), net.prefix()).ok());
                    let endpoint = peer.peer.endpoint;
                    let allowed_ips = allowed_ips.collect();
                    (
                        node(&peer.peer.public_key),
                        Peer {
                            endpoint,
                            allowed_ips,
                        },
                    )
                })
                .collect(),
        })
    }

    fn running(&mut self, what: &str) -> Result<&mut Running, KernelError> {
        self.running.as_mut().ok_or_else(|| KernelError::WireGuard {
            what: what.into(),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        })
    }
}

impl Running {
    /// gotatun routes a prefix to whoever got it last, but the peer that had it keeps it in its list, and would get it back with the
    /// next change of its own.
    async fn take_from_others(
        &mut self,
        key: &NodePublic,
        prefixes: &BTreeSet<IpNet>,
    ) -> Result<(), KernelError> {
        let losers: BTreeSet<NodePublic> = prefixes
            .iter()
            .filter_map(|prefix| self.owners.get(prefix))
            .filter(|owner| *owner != key)
            .copied()
            .collect();
        for loser in losers {
            let mut rest = self.peers.get(&loser).cloned().unwrap_or_default();
            rest.retain(|prefix| !prefixes.contains(prefix));
            self.tunnel
                .modify_peer(&public(&loser), |peer| {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(rest.iter().map(network));
                })
                .await
                .map_err(failed("moving a prefix to another peer"))?;
            self.own(&loser, rest);
        }
        Ok(())
    }

    fn own(&mut self, key: &NodePublic, prefixes: BTreeSet<IpNet>) {
        let before = self
            .peers
            .insert(*key, prefixes.clone())
            .unwrap_or_default();
        for lost in before.difference(&prefixes) {
            if self.owners.get(lost) == Some(key) {
                self.owners.remove(lost);
            }
        }
        self.owners
            .extend(prefixes.into_iter().map(|prefix| (prefix, *key)));
    }
}

fn narrow(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

fn public(key: &NodePublic) -> PublicKey {
    PublicKey::from(*key.as_bytes())
}

fn node(key: &PublicKey) -> NodePublic {
    NodePublic::from_bytes(key.to_bytes())
}

fn network(prefix: &IpNet) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix_len())
        .expect("an IpNet's length fits its family")
}

fn failed(what: &'static str) -> impl FnOnce(Error) -> KernelError {
    move |error| {
        let source = match error {
            Error::IoError(source) | Error::Bind(source, _) => source,
            other => io::Error::other(other),
        };
        KernelError::WireGuard {
            what: what.into(),
            source,
        }
    }
}
