//! What exists while the node runs, or tries to: control client, kernel side, relays.

use std::{collections::BTreeMap, io, time::Instant};

use lowroad_core::{intent::Choices, path::Command};
use lowroad_wire::{
    Kind, classify,
    control::{RegionId, RegisterResponse},
    key::{DiscoPrivate, NodePrivate},
};
use time::OffsetDateTime;
use tracing::debug;

use super::{Engine, RETRY_INTERVAL, Sources, net::Net, node::Node, pings::Pings, whole};
use crate::{
    control::{Control, ControlEvent, ControlOptions, Facts, hostinfo::hostinfo},
    derp::DerpEvent,
    kernel::{Dataplane, Kernel, KernelError, KernelOptions},
    prefs::AuthKey,
    tls::Verification,
    traversal::{
        port::{Datagram, Port},
        relay::RelayEvent,
        stun::Probed,
    },
};

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
    table_stale: bool,
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

/// How a session's login differs from a restart with what is saved.
#[derive(Clone, Debug, Default)]
pub struct Login {
    pub auth_key: Option<AuthKey>,
    pub force_reauth: bool,
    pub accept_server_key: bool,
}

impl Engine {
    /// Starts the session; if that fails, tries again later.
    pub(super) async fn start_or_retry(&mut self) {
        if let Err(why) = self.start_session(Login::default()).await {
            let why = whole(&why);
            if self.failure.as_ref() != Some(&why) {
                tracing::error!(error = %why, "cannot start; trying again");
            }
            self.failure = Some(why);
            self.restart_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    /// Starts kernel side and control client in place of those that run.
    pub(super) async fn start_session(&mut self, login: Login) -> Result<(), KernelError> {
        let kept = self.end_control();
        self.restart_at = None;
        let (kernel, port, dataplane, why_userspace) = match kept {
            Some(kept) => kept,
            None => {
                let started = (self.options.start_kernel)(self.options.kernel.clone()).await?;
                tracing::info!(dataplane = %started.dataplane, why = started.why_userspace.as_deref(), "data plane");
                self.sources.changes = Some(started.changes);
                self.sources.datagrams = Some(started.datagrams);
                self.sources.filter = Some(started.filter_events);
                (
                    started.kernel,
                    started.port,
                    started.dataplane,
                    started.why_userspace,
                )
            }
        };
        let facts = Facts {
            generation: 1,
            hostinfo: hostinfo(&self.prefs, &self.state.id),
            endpoints: Vec::new(),
        };
        let mut session = Session {
            control: None,
            waiting_kernel: Some(WaitingKernel(kernel)),
            node: None,
            net: None,
            port,
            dataplane,
            why_userspace,
            registered: None,
            auth_url: String::new(),
            trouble: None,
            facts: facts.clone(),
            acknowledged: 0,
            pings: Pings::default(),
            table_stale: false,
        };
        let known = self.state.node_key.clone();
        if let Some(key) = known.clone().filter(|_| !login.force_reauth) {
            session.set_key(self, key).await?;
        }
        let (control, events) = Control::start(self.control_options(login, known), facts);
        session.control = Some(control);
        self.sources.control = Some(events);
        self.session = Some(session);
        self.failure = None;
        Ok(())
    }

    fn control_options(&self, login: Login, node: Option<NodePrivate>) -> ControlOptions {
        let known_server = self.state.server_keys.get(&self.prefs.control_url).copied();
        ControlOptions {
            url: self.prefs.control_url.clone(),
            machine: self.state.machine_key.clone(),
            node,
            old_node: self.state.old_node_key.clone(),
            disco: self.disco.public(),
            auth_key: login.auth_key,
            force_reauth: login.force_reauth,
            known_server: known_server.filter(|_| !login.accept_server_key),
            fwmark: self.options.kernel.mark.value,
            tls: self
                .options
                .tls
                .client(&Verification::Roots)
                .expect("the configuration for the roots was made with them"),
        }
    }

    /// The control client as it is with what is saved, for a logout.
    pub(super) fn saved_control_options(&self) -> ControlOptions {
        self.control_options(Login::default(), self.state.node_key.clone())
    }

    /// Ends the control client and the relays; the kernel side is kept for the next session.
    #[expect(clippy::type_complexity, reason = "taken apart at its one call")]
    fn end_control(&mut self) -> Option<(Box<dyn Kernel>, Port, Dataplane, Option<String>)> {
        self.sources.control = None;
        self.sources.relay = None;
        let session = self.session.take()?;
        let kernel = session
            .node
            .map(|node| node.kernel)
            .or(session.waiting_kernel.map(|waiting| waiting.0))?;
        Some((
            kernel,
            session.port,
            session.dataplane,
            session.why_userspace,
        ))
    }

    /// Ends the session and removes all that it made on this host.
    pub(super) async fn stop_session(&mut self) -> Result<(), KernelError> {
        self.restart_at = None;
        let kept = self.end_control();
        self.sources = Sources::default();
        match kept {
            Some((mut kernel, ..)) => kernel.teardown().await,
            None => crate::kernel::cleanup(&self.options.kernel).await,
        }
    }

    pub(super) async fn on_control(&mut self, event: ControlEvent) {
        let now = Instant::now();
        match event {
            ControlEvent::ServerKey(key) => {
                self.state
                    .server_keys
                    .insert(self.prefs.control_url.clone(), key);
                let _ = self.save();
            }
            ControlEvent::NodeKey { node, old } => self.on_node_key(node, old).await,
            ControlEvent::Visit(url) => {
                self.with_session(|session| session.needs_login(url));
                self.reconcile_soon(now);
            }
            ControlEvent::Registered(response) => {
                self.state.old_node_key = None;
                self.state.registered_at = Some(self.prefs.control_url.clone());
                let _ = self.save();
                self.with_session(|session| {
                    session.auth_url.clear();
                    session.registered = Some(response);
                });
            }
            ControlEvent::PollStarted => self.with_session(|session| {
                session.trouble = None;
                session.node.iter_mut().for_each(Node::poll_started);
            }),
            ControlEvent::Map {
                response,
                malformed,
            } => {
                let Some(session) = &mut self.session else {
                    return;
                };
                let Some(node) = &mut session.node else {
                    return;
                };
                let consequences =
                    node.take_map(*response, &malformed, now, OffsetDateTime::now_utc());
                if consequences.derp_map {
                    session.set_derp_map();
                }
                if consequences.kernel {
                    session.table_stale = true;
                    self.reconcile_soon(now);
                }
            }
            ControlEvent::Acknowledged(generation) => self.with_session(|session| {
                session.acknowledged = session.acknowledged.max(generation)
            }),
            ControlEvent::Lost { why, .. } => {
                let trouble = Trouble {
                    message: why.to_string(),
                    ends_up: why.ends_up(),
                };
                self.with_session(|session| session.trouble = Some(trouble));
            }
            ControlEvent::Failed(why) => self.on_refused(&why.to_string()).await,
        }
    }

    async fn on_node_key(&mut self, node: NodePrivate, old: Option<NodePrivate>) {
        self.state.node_key = Some(node.clone());
        self.state.old_node_key = old;
        let _ = self.save();
        let Some(mut session) = self.session.take() else {
            return;
        };
        let set = session.set_key(self, node).await;
        self.session = Some(session);
        if let Err(why) = set {
            let why = whole(&why);
            self.failure = Some(why.clone());
            self.fail_ups(&why).await;
        }
    }

    /// The server does not want this node: nothing may pass on the word of a netmap that no longer holds.
    async fn on_refused(&mut self, why: &str) {
        self.failure = Some(why.to_owned());
        if self.ups.is_empty() {
            if let Err(error) = self.stop_session().await {
                tracing::error!(%error, "cannot remove what was programmed");
            }
        } else {
            self.fail_ups(why).await;
        }
    }
}

impl Session {
    /// Takes on an identity: at the start, and when the node key is replaced.
    async fn set_key(&mut self, engine: &mut Engine, key: NodePrivate) -> Result<(), KernelError> {
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
        let disco: DiscoPrivate = engine.disco.clone();
        self.node = Some(Node::adopt(kernel, choices, disco, seed).await?);
        self.net = None;
        if engine.options.traversal {
            let (options, tls) = (&engine.options.kernel, engine.options.tls.clone());
            self.net = Some(Net::start(
                key,
                self.port.clone(),
                options,
                tls,
                &mut engine.sources,
            )?);
        }
        Ok(())
    }

    /// Somebody has to log in. A node that was logged in is so no more: its netmap is void.
    fn needs_login(&mut self, url: String) {
        self.auth_url = url;
        if self.registered.take().is_some()
            && let Some(node) = &mut self.node
        {
            node.forget_map();
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.node.as_ref()?.paths.next_deadline()
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

    pub fn on_derp(&mut self, event: DerpEvent) {
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
            }
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
            }
            _ => {}
        }
    }

    fn set_derp_map(&mut self) {
        if let (Some(net), Some(map)) = (
            &mut self.net,
            self.node.as_ref().and_then(|node| node.map.as_ref()),
        ) {
            net.set_derp_map(&map.derp_map);
        }
    }

    pub async fn reconcile(&mut self, now: Instant) -> Result<usize, KernelError> {
        let Some(node) = &mut self.node else {
            return Ok(0);
        };
        self.table_stale = true;
        node.reconcile(now, OffsetDateTime::now_utc()).await
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
                    self.table_stale = true;
                    node.set_endpoint(peer, endpoint).await?;
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
            if std::mem::take(&mut self.table_stale) {
                net.set_table(node.relay_table(OffsetDateTime::now_utc()));
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
        hostinfo: lowroad_wire::control::Hostinfo,
    ) {
        if let Some(node) = &mut self.node {
            let key = node.choices.private_key.clone();
            node.set_choices(choices(key));
        }
        let net_info = self.facts.hostinfo.net_info.take();
        let hostinfo = lowroad_wire::control::Hostinfo {
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

    /// What is missing until `up` may return (design.md, First contact); `None` when connected.
    pub fn waiting_for(&self) -> Option<String> {
        if self.registered.is_none() && !self.auth_url.is_empty() {
            return Some(format!("somebody to visit {}", self.auth_url));
        }
        let Some((node, map)) = self
            .node
            .as_ref()
            .and_then(|node| Some((node, node.map.as_ref()?)))
        else {
            return Some(match &self.trouble {
                Some(trouble) => format!("the login server ({})", trouble.message),
                None if self.registered.is_none() => {
                    "the login server to accept this node".to_owned()
                }
                None => "the netmap".to_owned(),
            });
        };
        if map
            .self_node
            .as_ref()
            .is_some_and(|node| !node.machine_authorized)
        {
            return Some("an administrator to approve this machine".to_owned());
        }
        if !node.programmed {
            return Some("the kernel to be programmed".to_owned());
        }
        if let Some(net) = &self.net {
            if !net.is_settled() {
                return Some("the nearest relay to be found".to_owned());
            }
            if let Some(home) = net.home().filter(|home| !net.is_connected(*home)) {
                return Some(format!("the home relay {}", self.region_code(home)));
            }
        }
        (self.acknowledged < self.facts.generation)
            .then(|| "the login server to take note of this node's addresses".to_owned())
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

impl Engine {
    /// What the preferences and options say about the data plane.
    pub(super) fn choices(&self, private_key: NodePrivate) -> Choices {
        choices(&self.options.kernel, &self.prefs, &self.disco, private_key)
    }
}

pub(super) fn choices(
    kernel: &KernelOptions,
    prefs: &crate::prefs::Prefs,
    disco: &DiscoPrivate,
    private_key: NodePrivate,
) -> Choices {
    Choices {
        device: kernel.device.clone(),
        listen_port: kernel.port,
        mark: kernel.mark,
        private_key,
        accept_routes: prefs.route_all,
        shields_up: prefs.shields_up,
        disco: *disco.public().as_bytes(),
    }
}

fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
    )
}
