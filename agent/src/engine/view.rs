//! What the local API shows of the engine.

mod health;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lowroad_core::filter::granted;
use lowroad_wire::{
    control::{Node, UserId},
    key::NodePublic,
    netmap::NetMap,
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::debug;

use super::{Engine, cached::Ended, net::Net, session::Session};
use crate::{
    localapi::{Ask, Who},
    prefs::Change,
    status::{
        BackendState, Lowroad, NEVER, PeerStatus, Status, Tailnet, UserStatus, WhoIs, version,
    },
};

impl Engine {
    pub(super) async fn on_ask(&mut self, ask: Ask) {
        // Whoever asked may have gone: an answer that nobody takes is no error.
        match ask {
            Ask::Status { peers, reply } => {
                if peers {
                    self.read_counters().await;
                }
                drop(reply.send(self.status(peers)));
            }
            Ask::WhoIs { who, reply } => drop(reply.send(self.whois(who))),
            Ask::Prefs { reply } => drop(reply.send(self.prefs.to_stock_json())),
            Ask::Set { change, reply } => drop(reply.send(self.set(change).await)),
            Ask::Up { request, progress } => self.on_up(*request, progress).await,
            Ask::Start {
                auth_key,
                change,
                reply,
            } => drop(reply.send(self.start_without_waiting(auth_key, change).await)),
            Ask::Login { reply } => drop(reply.send(self.on_login().await)),
            Ask::Down { reply } => drop(reply.send(self.on_down().await)),
            Ask::Logout { reply } => self.on_logout(reply).await,
            Ask::Ping { ip, kind, reply } => self.ping(ip, kind, reply),
            Ask::DerpMap { reply } => drop(reply.send(self.derp_map())),
            Ask::Netcheck { reply } => drop(reply.send(self.netcheck())),
            Ask::Metrics { reply } => {
                self.read_counters().await;
                drop(reply.send(self.metrics()));
            }
            Ask::Counters { reply } => drop(reply.send(self.counters())),
            Ask::Flows { reply } => drop(reply.send(self.flows.follow())),
            Ask::Watch { mask, reply } => drop(reply.send(self.watch(mask))),
        }
    }

    /// Counters as of now; those of the last look do if the kernel has none to give.
    async fn read_counters(&mut self) {
        let node = self
            .session
            .as_mut()
            .and_then(|session| session.node.as_mut());
        if let Some(node) = node.filter(|node| node.was_programmed)
            && let Err(error) = node.refresh_stats(Instant::now()).await
        {
            debug!(%error, "cannot read the counters of peers");
        }
    }

    async fn set(&mut self, mut change: Change) -> Result<Value, String> {
        change.validate().map_err(|error| error.to_string())?;
        let mut prefs = self.prefs.clone();
        change.apply(&mut prefs);
        self.check_server(&prefs)?;
        match change.want_running {
            Some(true) => self.start_without_waiting(None, change).await?,
            Some(false) => {
                self.keep(&change)?;
                self.prefs = prefs;
                self.on_down().await?;
            }
            None => {
                if change
                    .control_url
                    .as_ref()
                    .is_some_and(|url| *url != self.prefs.control_url)
                    && self.session.is_some()
                {
                    return Err("can't change the login server while running: use `lowroad up --login-server=… --force-reauth`".to_owned());
                }
                self.keep(&change)?;
                self.prefs = prefs;
                self.apply_preferences();
            }
        }
        Ok(self.prefs.to_stock_json())
    }

    fn node(&self) -> Option<&super::node::Node> {
        self.session.as_ref()?.node.as_ref()
    }

    pub(super) fn map(&self) -> Option<&NetMap> {
        self.node()?.map.as_ref()
    }

    pub(super) fn backend_state(&self) -> BackendState {
        let Some(session) = &self.session else {
            return match (self.prefs.want_running, &self.state.node_key) {
                (_, None) => BackendState::NeedsLogin,
                // It should run, but the server has turned it away.
                (true, _) if self.restart_at.is_none() && self.failure.is_some() => {
                    BackendState::NeedsLogin
                }
                (true, _) => BackendState::Starting,
                (false, _) => BackendState::Stopped,
            };
        };
        let has_ended = self.ended != Ended::No && session.registered.is_none();
        if has_ended
            || session.is_expired()
            || (session.registered.is_none() && !session.auth_url.is_empty())
        {
            return BackendState::NeedsLogin;
        }
        let node = session.node.as_ref();
        match node.and_then(|node| node.map.as_ref()?.self_node.as_ref()) {
            None => BackendState::Starting,
            Some(own) if !own.machine_authorized => BackendState::NeedsMachineAuth,
            Some(_) if node.is_some_and(|node| node.was_programmed) => BackendState::Running,
            Some(_) => BackendState::Starting,
        }
    }

    pub(super) fn status(&self, peers: bool) -> Status {
        let session = self.session.as_ref();
        let map = self.map();
        let own = map.and_then(|map| map.self_node.as_ref());
        let suffix = own.map(|node| suffix(&node.name)).unwrap_or_default();
        let addresses: Vec<_> = own.map(|node| node.ips().collect()).unwrap_or_default();
        Status {
            version: version().to_owned(),
            tun: true,
            backend_state: self.backend_state(),
            have_node_key: self.state.node_key.is_some(),
            auth_url: session
                .map(|session| session.auth_url.clone())
                .unwrap_or_default(),
            tailscale_ips: (!addresses.is_empty()).then_some(addresses),
            self_node: Some(self.self_status(own)),
            health: self.health(),
            magic_dns_suffix: suffix.clone(),
            current_tailnet: map.map(|map| Tailnet {
                name: map.domain.clone(),
                magic_dns_enabled: map.dns.proxied,
                magic_dns_suffix: suffix,
            }),
            cert_domains: map.and_then(|map| filled(map.dns.cert_domains.clone())),
            extra_records: map.and_then(|map| {
                let records = map.dns.extra_records.iter();
                filled(records.map(|record| json!(record)).collect())
            }),
            peer: peers.then(|| self.peers()),
            user: map.map(|map| {
                map.users
                    .keys()
                    .filter_map(|id| Some((id.0, self.user(*id)?)))
                    .collect()
            }),
            client_version: None,
            lowroad: self.lowroad(),
        }
    }

    fn lowroad(&self) -> Lowroad {
        let session = self.session.as_ref();
        let net = session.and_then(|session| session.net.as_ref());
        let relayed = net.map(Net::relayed).unwrap_or_default();
        Lowroad {
            relayed_tx_packets: relayed.sent,
            relayed_rx_packets: relayed.received,
            version: version().to_owned(),
            dataplane: session
                .map(|session| session.dataplane.name().to_owned())
                .unwrap_or_default(),
            device: self.options.kernel.device.clone(),
            port: self.options.kernel.port,
            home_relay: session.map(home_code).unwrap_or_default(),
            waiting_for: session.and_then(Session::waiting_for).unwrap_or_default(),
            malformed_peers: self
                .node()
                .map(|node| node.malformed.clone())
                .unwrap_or_default(),
            cached_netmap: self.node().and_then(|node| node.cached).map(rfc3339),
            adopted_ms: self.adopted_after.map(|after| after.as_millis() as u64),
        }
    }

    fn self_status(&self, own: Option<&Node>) -> PeerStatus {
        let Some(own) = own else {
            return PeerStatus {
                // While a new key isn't registered, we are known by the one before it.
                public_key: self
                    .state
                    .old_node_key
                    .as_ref()
                    .or(self.state.node_key.as_ref())
                    .map_or(NodePublic::ZERO, |key| key.public())
                    .to_string(),
                host_name: crate::control::hostinfo::hostinfo(&self.prefs, &self.state.id).hostname,
                os: "linux".to_owned(),
                ..PeerStatus::default()
            };
        };
        let session = self.session.as_ref();
        let connected = session
            .is_some_and(|session| session.trouble.is_none() && session.registered.is_some());
        let endpoints = session.and_then(|session| session.net.as_ref()).map(|net| {
            net.endpoints()
                .iter()
                .map(|(address, _)| *address)
                .collect()
        });
        PeerStatus {
            addrs: endpoints,
            relay: session.map(home_code).unwrap_or_default(),
            online: connected,
            in_magic_sock: false,
            in_engine: false,
            capabilities: own.cap_map.keys().cloned().collect(),
            cap_map: own
                .cap_map
                .iter()
                .map(|(name, values)| (name.clone(), json!(values)))
                .collect(),
            ..facts(own)
        }
    }

    fn peers(&self) -> BTreeMap<String, PeerStatus> {
        let (Some(session), Some(map)) = (&self.session, self.map()) else {
            return BTreeMap::new();
        };
        let codes = session.region_codes();
        let now = map.control_time(OffsetDateTime::now_utc());
        map.peers
            .values()
            .map(|node| {
                (
                    node.key.to_string(),
                    self.peer_status(session, node, &codes, now),
                )
            })
            .collect()
    }

    fn peer_status(
        &self,
        session: &Session,
        node: &Node,
        codes: &BTreeMap<lowroad_wire::control::RegionId, String>,
        now: OffsetDateTime,
    ) -> PeerStatus {
        let plane = session.node.as_ref();
        let path = plane.and_then(|plane| plane.paths.status(&node.key));
        let stats = plane.and_then(|plane| plane.stats.get(&node.key));
        let handshake = stats.and_then(|stats| stats.last_handshake);
        let routable = node.is_routable(now);
        PeerStatus {
            cur_addr: path
                .and_then(|path| path.current)
                .map(|address| address.to_string())
                .unwrap_or_default(),
            relay: node
                .home_region()
                .and_then(|region| codes.get(&region).cloned())
                .unwrap_or_default(),
            rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
            tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
            last_handshake: handshake.map_or_else(|| NEVER.to_owned(), since_epoch),
            online: node.online.unwrap_or(false),
            active: path.is_some_and(|path| path.active),
            in_magic_sock: routable,
            in_engine: handshake.is_some(),
            expired: node.is_expired(now),
            ..facts(node)
        }
    }

    fn user(&self, id: UserId) -> Option<UserStatus> {
        let user = self.map()?.users.get(&id)?;
        Some(UserStatus {
            id: id.0,
            login_name: user.login_name.clone(),
            display_name: user.display_name.clone(),
            profile_pic_url: user.profile_pic_url.clone(),
        })
    }

    fn whois(&self, who: Who) -> Option<WhoIs> {
        let map = self.map()?;
        let mut nodes = map.peers.values().map(|node| &**node).chain(&map.self_node);
        let node = nodes.find(|node| match who {
            Who::Address(ip) => node.ips().any(|own| own == ip),
            Who::Key(key) => node.key == key,
        })?;
        let mut json = serde_json::to_value(node).ok()?;
        let name = node.name.split('.').next().unwrap_or_default();
        if let Some(object) = json.as_object_mut() {
            object.insert("ComputedName".to_owned(), name.into());
            object.insert("ComputedNameWithHost".to_owned(), name.into());
        }
        let user_profile = self.user(node.user).unwrap_or_else(|| UserStatus {
            id: node.user.0,
            ..UserStatus::default()
        });
        Some(WhoIs {
            node: json,
            user_profile,
            cap_map: Some(granted_here(map, node)).filter(|caps| !caps.is_empty()),
        })
    }
}

/// What the policy grants a node at this one.
fn granted_here(map: &NetMap, node: &Node) -> BTreeMap<String, Value> {
    let own: Vec<_> = map.self_node.iter().flat_map(Node::ips).collect();
    granted(map.filter_rules(), node, &own)
        .into_iter()
        .map(|(name, values)| (name, Value::from(values)))
        .collect()
}

/// What the netmap says of a node.
fn facts(node: &Node) -> PeerStatus {
    PeerStatus {
        id: node.stable_id.to_string(),
        node_id: node.id.0,
        public_key: node.key.to_string(),
        host_name: node.hostinfo.hostname.clone(),
        dns_name: node.name.clone(),
        os: node.hostinfo.os.clone(),
        user_id: node.user.0,
        tailscale_ips: Some(node.ips().collect()),
        allowed_ips: Some(node.allowed_ips().to_vec()),
        tags: node.tags.clone(),
        primary_routes: node.primary_routes.clone(),
        created: node.created.map_or_else(|| NEVER.to_owned(), rfc3339),
        last_seen: node.last_seen.map_or_else(|| NEVER.to_owned(), rfc3339),
        exit_node_option: node
            .allowed_ips()
            .iter()
            .any(|prefix| prefix.prefix_len() == 0),
        in_network_map: true,
        key_expiry: node.key_expiry.map(|end| rfc3339(whole_seconds(end))),
        ..PeerStatus::default()
    }
}

fn home_code(session: &Session) -> String {
    let home = session.net.as_ref().and_then(super::net::Net::home);
    home.map(|home| session.region_code(home))
        .unwrap_or_default()
}

/// Null for an empty list, as the stock client shows it.
fn filled<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// The name behind the first label, without the trailing dot.
fn suffix(name: &str) -> String {
    name.trim_end_matches('.')
        .split_once('.')
        .map(|(_, suffix)| suffix.to_owned())
        .unwrap_or_default()
}

/// The nearest one, as the stock client shows the end of a key; servers tell it to the nanosecond.
fn whole_seconds(end: OffsetDateTime) -> OffsetDateTime {
    let nearest = end.checked_add(time::Duration::milliseconds(500));
    let nearest = nearest.unwrap_or(end);
    nearest.replace_nanosecond(0).unwrap_or(nearest)
}

pub(super) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| NEVER.to_owned())
}

fn since_epoch(time: Duration) -> String {
    rfc3339(OffsetDateTime::UNIX_EPOCH + time)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_end_of_a_key_is_shown_to_the_nearest_second() {
        for (end, shown) in [
            (
                datetime!(2026-01-01 0:00:01.499999999 UTC),
                "2026-01-01T00:00:01Z",
            ),
            (datetime!(2026-01-01 0:00:59.5 UTC), "2026-01-01T00:01:00Z"),
            (datetime!(9999-12-31 23:59:59.9 UTC), "9999-12-31T23:59:59Z"),
            (datetime!(2026-01-01 0:00:01 UTC), "2026-01-01T00:00:01Z"),
        ] {
            assert_eq!(rfc3339(whole_seconds(end)), shown);
        }
    }
}
