//! Relays, STUN and what they say of the networks this node is in.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lowroad_core::netcheck::{Config, Report};
use lowroad_wire::{
    control::{DerpMap, EndpointType, NetInfo, RegionId},
    key::{NodePrivate, NodePublic},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::AbortHandle, time::sleep};
use tracing::{debug, info, warn};

use super::{Sources, node::Relays};
use crate::{
    derp::{DerpEvent, DerpPool, Packets, Why},
    kernel::{KernelError, KernelOptions},
    tls::TlsConfig,
    traversal::{
        port::{Datagram, Port},
        relay::{Inlet, RelayDoor, RelayEvent, Relayed},
        stun::{Probed, Prober},
    },
};

/// Relayed packets that are injected together.
const BATCH: usize = 64;
/// How long the port of the relay door may stay taken.
const DOOR_PATIENCE: Duration = Duration::from_secs(1);
const DOOR_RETRY: Duration = Duration::from_millis(10);
/// The prober hears that a region is alive at most this often.
const FRAME_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Net {
    derp: DerpPool,
    door: RelayDoor,
    prober: Prober,
    pump: AbortHandle,
    endpoints: Vec<(SocketAddr, EndpointType)>,
    endpoints_are_new: bool,
    report: Report,
    /// A whole round of probes has ended since there are relays.
    settled: bool,
    home: Option<RegionId>,
    /// What is wrong with a region.
    trouble: BTreeMap<RegionId, String>,
    /// What a relay wants people to know.
    notices: BTreeMap<RegionId, String>,
    last_frame: Option<Instant>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Net {
    /// Opens the door to the relays. Its events come from `sources`.
    pub async fn start(
        node: NodePrivate,
        port: Port,
        options: &KernelOptions,
        tls: TlsConfig,
        sources: &mut Sources,
    ) -> Result<Self, KernelError> {
        let mut seed = [0; 32];
        if getrandom::fill(&mut seed).is_err() {
            debug!("no randomness from the system");
        }
        let [a, b, c, d, e, f, g, h, ..] = *node.public().as_bytes();
        let config = Config {
            port: options.port,
            seed,
            stable: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        };
        let (derp, packets, events) = DerpPool::start(node, tls, options.mark.value);
        let (door, relay) = open_door(options.port, options.mark.value, &derp).await?;
        if let Some(shortcut) = port.shortcut() {
            door.take(shortcut);
        }
        let (prober, probed) = Prober::start(port, config, options.device.clone());
        let pump = tokio::spawn(pump(packets, door.inlet())).abort_handle();
        sources.relay = Some(relay);
        sources.probed = Some(probed);
        sources.derp = Some(events);
        Ok(Self {
            derp,
            door,
            prober,
            pump,
            endpoints: Vec::new(),
            endpoints_are_new: false,
            report: Report::default(),
            settled: false,
            home: None,
            trouble: BTreeMap::new(),
            notices: BTreeMap::new(),
            last_frame: None,
        })
    }

    /// Looks at addresses and asks STUN again.
    pub fn refresh(&self) {
        self.prober.refresh();
    }

    pub fn on_link_change(&self) {
        self.derp.link_changed();
        self.prober.refresh();
    }

    pub fn set_derp_map(&mut self, map: &DerpMap) {
        self.derp.set_map(map);
        self.prober.set_map(map.clone());
        self.trouble
            .retain(|region, _| map.regions.contains_key(region));
        if map.regions.is_empty() {
            // Nobody to ask: local addresses are all there is.
            self.prober.refresh();
        }
    }

    pub fn relayed(&self) -> Relayed {
        self.door.relayed()
    }

    /// A handshake initiation that went by a relay and got no answer yet.
    pub fn take_unanswered(&self, peer: &NodePublic) -> Option<Bytes> {
        self.door.take_unanswered(peer)
    }

    /// To be called after WireGuard has the peers.
    pub fn set_relays(&self, relays: Relays) {
        match relays {
            Relays::Whole(table) => self.door.set_table(table),
            Relays::Changes(changes) if changes.is_empty() => {}
            Relays::Changes(changes) => self.door.change(changes),
        }
    }

    pub fn send(&self, region: RegionId, to: NodePublic, bytes: Vec<u8>) {
        self.derp.send(region, to, bytes.into());
    }

    pub fn on_stun(&self, datagram: Datagram) {
        self.prober.on_datagram(datagram);
    }

    /// Something came from this region's relay.
    pub fn on_frame(&mut self, now: Instant, region: RegionId) {
        if self
            .last_frame
            .is_none_or(|last| now.duration_since(last) >= FRAME_PAUSE)
        {
            self.last_frame = Some(now);
            self.prober.on_frame(region);
        }
    }

    pub fn on_derp(&mut self, event: DerpEvent) {
        if let DerpEvent::Connected { region } | DerpEvent::Disconnected { region, .. } = &event {
            // What a relay said was said of the connection before.
            self.notices.remove(region);
        }
        match event {
            DerpEvent::Connected { region } => {
                info!(region = region.0, "relay connected");
                self.trouble.remove(&region);
                self.prober.on_frame(region);
            }
            DerpEvent::Disconnected {
                region,
                why: Why::Failed(why),
            } => {
                // It is tried again every few seconds; the same reason is said once.
                if self.trouble.get(&region) != Some(&why) {
                    warn!(region = region.0, why, "no connection to a relay");
                }
                self.trouble.insert(region, why);
            }
            DerpEvent::Disconnected { region, .. } => debug!(region = region.0, "relay closed"),
            DerpEvent::Health { region, text } if text.is_empty() => {
                drop(self.notices.remove(&region))
            }
            DerpEvent::Health { region, text } => drop(self.notices.insert(region, text)),
        }
    }

    pub fn on_probed(&mut self, probed: Probed) {
        let endpoints: Vec<_> = probed
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.address, endpoint.kind))
            .collect();
        if endpoints != self.endpoints {
            info!(endpoints = ?endpoints.iter().map(|(address, _)| address).collect::<Vec<_>>(), "this node's endpoints");
            self.endpoints = endpoints;
            self.endpoints_are_new = true;
        }
        if !probed.complete {
            return;
        }
        self.settled = true;
        if probed.report.preferred != self.home {
            info!(
                region = probed.report.preferred.map(|region| region.0),
                "home relay"
            );
            self.home = probed.report.preferred;
            self.derp.set_home(self.home);
        }
        self.report = probed.report;
    }

    /// True once endpoints and home are known as well as they can be.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    pub fn is_connected(&self, region: RegionId) -> bool {
        self.derp.is_connected(region)
    }

    /// Best first.
    pub fn endpoints(&self) -> &[(SocketAddr, EndpointType)] {
        &self.endpoints
    }

    /// True once after the endpoints have changed.
    pub fn take_new_endpoints(&mut self) -> bool {
        std::mem::take(&mut self.endpoints_are_new)
    }

    /// For the control server. Latencies alone are no reason to report again: `before` is kept then.
    pub fn net_info(&self, before: Option<&NetInfo>) -> NetInfo {
        let fresh = NetInfo {
            preferred_derp: self.home,
            mapping_varies_by_dest_ip: self.report.mapping_varies,
            working_udp: Some(self.report.udp_works()),
            working_ipv6: Some(self.report.global_v6.is_some()),
            derp_latency: BTreeMap::new(),
            ..NetInfo::default()
        };
        match before {
            Some(before)
                if (NetInfo {
                    derp_latency: BTreeMap::new(),
                    ..before.clone()
                }) == fresh =>
            {
                before.clone()
            }
            _ => {
                let latency = |(region, latency): (&RegionId, &Duration)| {
                    (format!("{region}-v4"), latency.as_secs_f64())
                };
                NetInfo {
                    derp_latency: self.report.latencies.iter().map(latency).collect(),
                    ..fresh
                }
            }
        }
    }

    /// Why the home relay is not connected, and what relays say.
    pub fn health(&self) -> Vec<String> {
        let trouble = self
            .home
            .filter(|home| !self.is_connected(*home))
            .and_then(|home| self.trouble.get(&home));
        let trouble = trouble.map(|why| format!("the home relay cannot be reached: {why}"));
        trouble
            .into_iter()
            .chain(self.notices.values().cloned())
            .collect()
    }

    /// As the stock client's `netcheck`.
    pub fn report(&self) -> Value {
        let address = |address: Option<SocketAddr>| {
            address
                .map(|address| address.to_string())
                .unwrap_or_default()
        };
        let nanoseconds =
            |latency: &Duration| u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let latencies: BTreeMap<_, _> = self
            .report
            .latencies
            .iter()
            .map(|(region, latency)| (region.to_string(), nanoseconds(latency)))
            .collect();
        json!({
            "UDP": self.report.udp_works(),
            "IPv6": self.report.global_v6.is_some(),
            "IPv4": self.report.global_v4.is_some(),
            "MappingVariesByDestIP": self.report.mapping_varies,
            "PreferredDERP": self.home.map_or(0, |home| home.0),
            "RegionLatency": latencies,
            "GlobalV4": address(self.report.global_v4),
            "GlobalV6": address(self.report.global_v6),
            "CaptivePortal": null,
        })
    }
}

/// A door that has just been closed may hold its port for a moment more: a new node key needs a new one.
async fn open_door(
    port: u16,
    mark: u32,
    derp: &DerpPool,
) -> Result<(RelayDoor, mpsc::Receiver<RelayEvent>), KernelError> {
    let until = Instant::now() + DOOR_PATIENCE;
    loop {
        let sender = derp.clone();
        let send = move |region, to, bytes| sender.send(region, to, bytes);
        match RelayDoor::start(port + 1, port, mark, send) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                sleep(DOOR_RETRY).await;
            }
            other => return other.map_err(|error| relay_error(error, port + 1)),
        }
    }
}

fn relay_error(source: io::Error, port: u16) -> KernelError {
    match source.kind() {
        io::ErrorKind::AddrInUse => KernelError::PortTaken { port },
        io::ErrorKind::PermissionDenied => KernelError::NotPermitted {
            what: "opening the relay sockets".to_owned(),
        },
        _ => KernelError::Netlink {
            what: format!("opening the relay sockets (UDP port {port} on lo)"),
            source,
        },
    }
}

/// Packets go straight to WireGuard, in the batches they come in, and wait for nothing that the engine does.
async fn pump(mut packets: Packets, inlet: Inlet) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        packets.recv_many(&mut batch, BATCH).await;
        inlet.deliver(&batch);
        batch.clear();
    }
}
