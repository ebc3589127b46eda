//! What polls and update requests do to the state, and who counts as online.

use std::time::Instant;

use lowroad_wire::{
    control::{EndpointType, Hostinfo, MapRequest, NetInfo, NodeId},
    key::MachinePublic,
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{Session, State};
use crate::{
    Error,
    model::{Endpoint, Node},
    name,
};

/// Stock clients have a dozen at most.
const MAX_ENDPOINTS: usize = 64;
/// Host info goes to every peer, so its size is everybody's matter. Stock clients send 1 to 3 KiB.
const MAX_HOSTINFO: usize = 32 * 1024;

/// A poll that has begun. Give it back to [`State::detach`].
#[derive(Debug)]
pub struct Attached {
    pub node: NodeId,
    pub serial: u64,
    /// Fires when another poll supersedes this one, or the node is gone.
    pub cancelled: CancellationToken,
}

impl State {
    /// The node that `request` speaks for, if `machine` owns it; takes in what the request says about it.
    pub fn update(
        &mut self,
        machine: MachinePublic,
        request: MapRequest,
        now: OffsetDateTime,
    ) -> Result<NodeId, Error> {
        let unknown = || Error::not_found("node not found; register first");
        let key = request.node_key.ok_or_else(unknown)?;
        let node = self
            .node_by_key(key)
            .filter(|node| node.machine == machine)
            .ok_or_else(unknown)?;
        let id = node.id;
        let mut node = Node::clone(node);
        if let Some(hostinfo) = request.hostinfo {
            self.take_hostinfo(&mut node, hostinfo)?;
            self.follow_hostname(&mut node);
        }
        if let Some(disco) = request.disco_key {
            node.disco = disco;
        }
        let kinds = request
            .endpoint_types
            .iter()
            .copied()
            .chain(std::iter::repeat(EndpointType::UNKNOWN));
        let endpoints: Vec<_> = request
            .endpoints
            .into_iter()
            .zip(kinds)
            .take(MAX_ENDPOINTS)
            .collect();
        // A client without any endpoint cannot be told from one that has not looked yet, and stale ones cost nothing.
        if !endpoints.is_empty() {
            node.endpoints = endpoints
                .into_iter()
                .map(|(address, kind)| Endpoint { address, kind })
                .collect();
        }
        node.cap = request.version;
        self.put_node(node, now);
        Ok(id)
    }

    /// Begins a poll; an older one of the node ends.
    pub fn attach(&mut self, node: NodeId, now: OffsetDateTime) -> Attached {
        self.end_session(node);
        self.departed.remove(&node);
        self.next_serial += 1;
        let serial = self.next_serial;
        let cancel = CancellationToken::new();
        self.sessions.insert(
            node,
            Session {
                serial,
                cancel: cancel.clone(),
            },
        );
        self.change_node(node, now, |node| {
            node.online = true;
            node.last_seen = Some(now);
        });
        Attached {
            node,
            serial,
            cancelled: cancel,
        }
    }

    /// A poll has ended. The node stays online for a while, unless another poll has taken over anyway.
    pub fn detach(&mut self, node: NodeId, serial: u64, instant: Instant) {
        if self
            .sessions
            .get(&node)
            .is_some_and(|session| session.serial == serial)
        {
            self.sessions.remove(&node);
            self.departed.insert(node, instant);
        }
    }

    pub(super) fn settle_departed(&mut self, now: OffsetDateTime, instant: Instant) {
        let timing = self.settings.timing.clone();
        let departed: Vec<_> = self
            .departed
            .iter()
            .map(|(id, since)| (*id, instant.saturating_duration_since(*since)))
            .collect();
        for (id, gone) in departed {
            let Some(node) = self.node(id).cloned() else {
                self.departed.remove(&id);
                continue;
            };
            if gone >= timing.offline_grace && node.online {
                tracing::info!(node = %node.name, "offline");
                self.change_node(id, now, |node| {
                    node.online = false;
                    node.last_seen = Some(now);
                });
            }
            if gone >= timing.offline_grace && !node.ephemeral {
                self.departed.remove(&id);
            }
            if gone >= timing.ephemeral_timeout && node.ephemeral {
                tracing::info!(node = %node.name, "ephemeral node deleted after it disconnected");
                self.remove_node(id);
            }
        }
    }

    /// Takes over what a node says about its host.
    pub(super) fn take_hostinfo(
        &mut self,
        node: &mut Node,
        mut hostinfo: Hostinfo,
    ) -> Result<(), Error> {
        check_size(&hostinfo)?;
        hostinfo.routable_ips = hostinfo
            .routable_ips
            .iter()
            .map(ipnet::IpNet::trunc)
            .collect();
        hostinfo.routable_ips.sort();
        hostinfo.routable_ips.dedup();
        let told = hostinfo.net_info.as_ref();
        match told.and_then(|info| info.preferred_derp) {
            Some(home) => self.homes.note(node.machine, home),
            // A home that a request does not mention stays: clients leave it out until their first measurement.
            None => {
                let home = self.homes.of(&node.machine).or(node.home());
                let before = node.hostinfo.net_info.take();
                let info = hostinfo.net_info.take().or(before);
                hostinfo.net_info = match (info, home) {
                    (None, None) => None,
                    (info, home) => Some(NetInfo {
                        preferred_derp: home,
                        ..info.unwrap_or_default()
                    }),
                };
            }
        }
        node.hostinfo = hostinfo;
        Ok(())
    }

    /// Names the node after its host, unless an administrator chose its name.
    pub(super) fn follow_hostname(&self, node: &mut Node) {
        if node.name_chosen {
            return;
        }
        let wanted = name::label(&node.hostinfo.hostname);
        // A numbered name stays as long as it is a number of the wanted one: names should not move when another node goes.
        let is_numbered = |name: &str| {
            name.strip_prefix(&wanted).is_some_and(|rest| {
                rest.is_empty()
                    || rest
                        .strip_prefix('-')
                        .is_some_and(|n| n.parse::<u32>().is_ok())
            })
        };
        if !is_numbered(&node.name) {
            let id = node.id;
            node.name = name::unique(&wanted, |name| {
                self.nodes()
                    .any(|other| other.id != id && other.name == name)
            });
        }
    }
}

pub(crate) fn check_size(hostinfo: &Hostinfo) -> Result<(), Error> {
    let size = serde_json::to_vec(hostinfo).map_or(usize::MAX, |json| json.len());
    if size > MAX_HOSTINFO {
        return Err(Error::bad_request(format!(
            "Hostinfo has {size} bytes; at most {MAX_HOSTINFO} are taken"
        )));
    }
    Ok(())
}
