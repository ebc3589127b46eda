//! What exists while the node runs, or tries to: control client, kernel side, relays.

mod waiting;

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use lowroad_core::{intent::Choices, path::Command};
use lowroad_wire::{
    Kind, classify,
    control::{Hostinfo, Node as NodeFacts, RegionId, RegisterResponse},
    disco::Envelope,
    key::NodePrivate,
};
use time::OffsetDateTime;
use tracing::debug;

use super::{
    Engine, answer,
    cached::Ended,
    net::Net,
    node::{Node, Relays},
    pings::Pings,
    revive::{self, Revival},
};
use crate::{
    control::{Control, Facts},
    derp::DerpEvent,
    kernel::{Dataplane, Kernel, KernelError},
    process::give_memory_back,
    traversal::{
        port::{Datagram, Port},
        relay::{RelayEvent, relay_address},
        stun::Probed,
    },
};

/// How long packets can pass unfiltered at most, once root has taken the filter off: no one tells, and asking costs two calls.
const CHECK_FILTER: Duration = Duration::from_secs(3);

/// The kernel side of a session, which outlives it.
pub struct Plane {
    pub kernel: Box<dyn Kernel>,
    pub port: Port,
    pub dataplane: Dataplane,
    pub why_userspace: Option<String>,
}

#[derive(Debug)]
pub struct Session {
    /// `None` once the server has turned us away.
    pub control: Option<Control>,
    /// Until there is a node key.
    waiting_kernel: Option<WaitingKernel>,
    pub node: Option<Node>,
    pub net: Option<Net>,
    port: Port,
    pub dataplane: Dataplane,
    pub why_userspace: Option<String>,
    /// Since the start of this session.
    pub registered: Option<Box<RegisterResponse>>,
    pub auth_url: String,
    /// Trouble with the control server; empty while it is well.
    pub trouble: Option<Trouble>,
    facts: Facts,
    acknowledged: u64,
    pub pings: Pings,
    /// The user wants a new login although the old one may be valid: until it is done, what the kernel holds stays.
    forced_login: bool,
    check_filter_at: Instant,
    /// With the userspace device.
    revival: Option<Revival>,
}

/// Why there is no control connection.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub message: String,
    /// Waiting won't help.
    pub ends_up: bool,
}

struct WaitingKernel(Box<dyn Kernel>);

impl std::fmt::Debug for WaitingKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WaitingKernel")
    }
}

impl Session {
    pub fn new(plane: Plane, facts: Facts, forced_login: bool) -> Self {
        Self {
            control: None,
            waiting_kernel: Some(WaitingKernel(plane.kernel)),
            node: None,
            net: None,
            port: plane.port,
            dataplane: plane.dataplane,
            why_userspace: plane.why_userspace,
            registered: None,
            auth_url: String::new(),
            trouble: None,
            facts,
            acknowledged: 0,
            pings: Pings::default(),
            forced_login,
            check_filter_at: Instant::now() + CHECK_FILTER,
            revival: (plane.dataplane == Dataplane::Userspace)
                .then(|| Revival::new(Instant::now())),
        }
    }

    pub fn into_plane(self) -> Option<Plane> {
        let waiting = self.waiting_kernel.map(|waiting| waiting.0);
        let kernel = self.node.map(|node| node.kernel).or(waiting)?;
        Some(Plane {
            kernel,
            port: self.port,
            dataplane: self.dataplane,
            why_userspace: self.why_userspace,
        })
    }

    pub fn acknowledge(&mut self, generation: u64) {
        self.acknowledged = self.acknowledged.max(generation);
    }

    /// Takes on an identity: at the start, and when the node key is replaced.
    pub async fn set_key(
        &mut self,
        engine: &mut Engine,
        key: NodePrivate,
    ) -> Result<(), KernelError> {
        let kernel = match (self.node.take(), self.waiting_kernel.take()) {
            (Some(node), _) => node.kernel,
            (None, Some(waiting)) => waiting.0,
            (None, None) => return Ok(()),
        };
        let choices = engine.choices(key.clone());
        let mut seed = [0; 32];
        // Only transaction ids and nonces hang on it; a predictable one costs nothing but their surprise.
        if getrandom::fill(&mut seed).is_err() {
            debug!("no randomness from the system");
        }
        let disco = engine.state.disco_key.clone();
        let mut node = Node::adopt(kernel, choices, disco, seed).await?;
        if engine.ended == Ended::InForce {
            engine.reconcile_at = Instant::now();
            if !node.void_what_was_found() {
                engine.note_void().await;
            }
        }
        self.node = Some(node);
        self.net = None;
        if engine.options.traversal {
            let (options, tls) = (&engine.options.kernel, engine.options.tls.clone());
            self.net =
                Some(Net::start(key, self.port.clone(), options, tls, &mut engine.sources).await?);
        }
        Ok(())
    }

    /// Somebody has to log in. A node that was logged in is so no more: its netmap is void, and so is what an earlier agent left.
    pub fn needs_login(&mut self, url: String) {
        self.auth_url = url;
        // It has answered.
        self.trouble = None;
        let was_registered = self.registered.take().is_some();
        if let Some(node) = &mut self.node
            && (was_registered
                || node.cached.is_some()
                || (node.found_device && !self.forced_login))
        {
            node.forget_map();
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let node = self.node.as_ref()?;
        let filter = node.was_programmed.then_some(self.check_filter_at);
        let paths = node.paths.next_deadline();
        [paths, filter].into_iter().flatten().min()
    }

    /// Looks after the filter when it is time to: a link of the kernel's makes no notice when it goes.
    pub fn has_lost_filter(&mut self, now: Instant) -> bool {
        if now < self.check_filter_at {
            return false;
        }
        self.check_filter_at = now + CHECK_FILTER;
        self.node.as_mut().is_some_and(Node::filter_is_lost)
    }

    pub fn on_timer(&mut self, now: Instant) {
        if let Some(node) = &mut self.node {
            node.paths.on_timer(now);
        }
    }

    pub fn on_link_change(&mut self, now: Instant) {
        if let Some(node) = &mut self.node {
            node.paths.on_link_change(now);
        }
        if let Some(net) = &mut self.net {
            net.on_link_change();
        }
    }

    pub fn on_derp(&mut self, now: Instant, event: DerpEvent) {
        if let (Some(node), DerpEvent::Connected { region }) = (&mut self.node, &event) {
            node.paths.on_relay_connected(now, *region);
        }
        if let Some(net) = &mut self.net {
            net.on_derp(event);
        }
    }

    pub fn on_probed(&mut self, probed: Probed) {
        if let Some(net) = &mut self.net {
            net.on_probed(probed);
        }
    }

    pub fn on_relay(&mut self, now: Instant, event: RelayEvent) {
        let (Some(node), Some(net)) = (&mut self.node, &mut self.net) else {
            return;
        };
        match event {
            RelayEvent::Outgoing { peer } => node.paths.on_outgoing(now, peer),
            RelayEvent::Incoming { peer } => node.paths.on_relayed_data(now, peer),
            RelayEvent::Disco {
                region,
                from,
                bytes,
            } => {
                net.on_frame(now, region);
                node.paths.on_relayed(now, region, from, &bytes);
                self.revive(now, &bytes);
            }
        }
    }

    /// Begins a session anew with a peer that goes on with one that died with the last agent.
    fn revive(&mut self, now: Instant, disco: &[u8]) {
        self.revival.take_if(|revival| revival.is_over(now));
        let (Some(revival), Some(node)) = (&mut self.revival, &self.node) else {
            return;
        };
        if !revival.may_look(now) {
            return;
        }
        let (Some(map), Ok(envelope)) = (&node.map, Envelope::parse(disco)) else {
            return;
        };
        let known = |peer: &&NodeFacts| peer.disco_key == Some(envelope.sender);
        let Some(peer) = map.peers.values().map(|peer| &**peer).find(known) else {
            return;
        };
        let stats = node.stats.get(&peer.key);
        let session = stats.is_some_and(|stats| stats.last_handshake.is_some());
        if session || !node.programmed || !revival.on_disco(now, peer.key) {
            return;
        }
        debug!(peer = %peer.key.short(), "beginning a session that the last agent's end cut off");
        if let Some(ping) = revive::ping(map, peer, rand::random()) {
            answer::send(&node.choices.device, node.choices.mark.value, &ping);
        }
    }

    pub fn on_datagram(&mut self, now: Instant, datagram: Datagram) {
        match classify(&datagram.bytes) {
            Kind::Stun => {
                if let Some(net) = &self.net {
                    net.on_stun(datagram);
                }
            }
            Kind::Disco => {
                if let Some(node) = &mut self.node {
                    node.paths.on_datagram(now, datagram.from, &datagram.bytes);
                }
                self.revive(now, &datagram.bytes);
            }
            _ => {}
        }
    }

    pub fn set_derp_map(&mut self) {
        if let (Some(net), Some(map)) = (
            &mut self.net,
            self.node.as_ref().and_then(|node| node.map.as_ref()),
        ) {
            net.set_derp_map(&map.derp_map);
        }
    }

    /// Everything is to be compared with the kernel the next time.
    pub fn compare_whole(&mut self) {
        if let Some(node) = &mut self.node {
            node.compare_whole();
        }
    }

    /// `None`: a policy is being compiled, and this is to be called again after [`Self::finish_compiling`].
    pub async fn reconcile(&mut self, now: Instant) -> Result<Option<usize>, KernelError> {
        let Some(node) = &mut self.node else {
            return Ok(Some(0));
        };
        let clock = OffsetDateTime::now_utc();
        node.advance(now, clock).await
    }

    /// Whether the kernel holds that there is no netmap any more.
    pub fn is_void(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_void)
    }

    /// Until then no message of the control server may be taken.
    pub fn is_compiling(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_compiling)
    }

    /// Returns when a policy has been compiled.
    pub async fn finish_compiling(&mut self) {
        match &mut self.node {
            Some(node) => node.finish_compiling().await,
            None => std::future::pending().await,
        }
    }

    /// Does what the paths ask for, until they ask for nothing more.
    pub async fn run_commands(&mut self, now: Instant) -> Result<(), KernelError> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        while let Some(command) = node.paths.poll_command() {
            match command {
                Command::SendDirect { to, bytes } => match self.port.send(to, &bytes) {
                    Err(error) if unreachable(&error) => node.paths.on_unreachable(now, to),
                    Err(error) => debug!(%to, %error, "cannot send a disco message"),
                    Ok(()) => {}
                },
                Command::SendRelay { region, to, bytes } => {
                    if let Some(net) = &self.net {
                        net.send(region, to, bytes);
                    }
                }
                Command::SetEndpoint { peer, endpoint } => {
                    node.set_endpoint(peer, endpoint).await?;
                    let direct = self
                        .net
                        .as_ref()
                        .filter(|_| relay_address(endpoint).is_none());
                    if let Some(initiation) = direct.and_then(|net| net.take_unanswered(&peer)) {
                        // If the relay has brought it, the peer refuses this one by its time.
                        let _ = self.port.send(endpoint, &initiation);
                    }
                }
                Command::RefreshEndpoints => {
                    if let Some(net) = &self.net {
                        net.refresh();
                    }
                }
                Command::ReadStats => node.read_stats(now).await?,
                Command::PingDone { id, result } => {
                    self.pings
                        .done(id, result, node.map.as_ref().map(|map| &map.derp_map));
                }
            }
        }
        if let Some(net) = &mut self.net {
            let relays = node.take_relays();
            let is_whole = matches!(relays, Relays::Whole(_));
            net.set_relays(relays);
            if is_whole {
                // Everything was compared: what that took is free by now, and so is the table before.
                give_memory_back();
            }
            if net.take_new_endpoints() {
                node.paths.set_local_endpoints(
                    now,
                    net.endpoints()
                        .iter()
                        .map(|(address, _)| *address)
                        .collect(),
                );
            }
        }
        Ok(())
    }

    /// Reports to the control server what it should know, when that has changed.
    pub fn report(&mut self) {
        let Some(control) = &self.control else { return };
        let mut facts = self.facts.clone();
        if let Some(net) = self.net.as_ref().filter(|net| net.is_settled()) {
            facts.hostinfo.net_info = Some(net.net_info(self.facts.hostinfo.net_info.as_ref()));
            facts.endpoints = net.endpoints().to_vec();
        }
        if facts != self.facts {
            facts.generation = self.facts.generation + 1;
            self.facts = facts.clone();
            control.report(facts);
        }
    }

    /// The preferences have changed while running.
    pub fn set_preferences(
        &mut self,
        choices: impl Fn(NodePrivate) -> Choices,
        hostinfo: Hostinfo,
    ) {
        if let Some(node) = &mut self.node {
            let key = node.choices.private_key.clone();
            node.set_choices(choices(key));
        }
        let net_info = self.facts.hostinfo.net_info.take();
        let hostinfo = Hostinfo {
            net_info,
            ..hostinfo
        };
        self.facts = Facts {
            generation: self.facts.generation + 1,
            hostinfo,
            endpoints: std::mem::take(&mut self.facts.endpoints),
        };
        if let Some(control) = &self.control {
            control.report(self.facts.clone());
        }
    }

    pub fn region_code(&self, region: RegionId) -> String {
        let map = self.node.as_ref().and_then(|node| node.map.as_ref());
        let code = map
            .and_then(|map| map.derp_map.regions.get(&region))
            .map(|region| region.region_code.clone());
        code.unwrap_or_else(|| region.to_string())
    }

    /// Region codes by number.
    pub fn region_codes(&self) -> BTreeMap<RegionId, String> {
        let map = self.node.as_ref().and_then(|node| node.map.as_ref());
        map.into_iter()
            .flat_map(|map| &map.derp_map.regions)
            .map(|(id, region)| (*id, region.region_code.clone()))
            .collect()
    }
}

fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
    )
}
