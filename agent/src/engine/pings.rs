//! Pings that somebody waits for.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use lowroad_core::path;
use lowroad_wire::control::DerpMap;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::{Engine, probe::Probe};
use crate::status::{PingKind, PingResult, TIMED_OUT};

/// Answers owed, by the ping's number.
#[derive(Debug, Default)]
pub struct Pings(BTreeMap<path::PingId, Waiting>);

#[derive(Debug)]
struct Waiting {
    ip: IpAddr,
    name: String,
    reply: oneshot::Sender<PingResult>,
}

impl Pings {
    pub fn wait(
        &mut self,
        id: path::PingId,
        ip: IpAddr,
        name: String,
        reply: oneshot::Sender<PingResult>,
    ) {
        self.0.insert(id, Waiting { ip, name, reply });
    }

    pub fn done(&mut self, id: path::PingId, result: path::PingResult, derp: Option<&DerpMap>) {
        let Some(Waiting { ip, name, reply }) = self.0.remove(&id) else {
            return;
        };
        let mut answer = PingResult {
            ip: ip.to_string(),
            node_ip: ip.to_string(),
            node_name: name,
            ..PingResult::default()
        };
        match result {
            path::PingResult::Direct { endpoint, latency } => {
                answer.endpoint = endpoint.to_string();
                answer.latency_seconds = latency.as_secs_f64();
            }
            path::PingResult::Relayed { region, latency } => {
                answer.derp_region_id = region.0;
                answer.derp_region_code = derp
                    .and_then(|map| map.regions.get(&region))
                    .map(|region| region.region_code.clone())
                    .unwrap_or_default();
                answer.latency_seconds = latency.as_secs_f64();
            }
            path::PingResult::TimedOut => answer.err = TIMED_OUT.to_owned(),
        }
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }
}

/// Pings through the tunnel that may be under way: each has a socket that sees all that the peer sends of its protocol.
const MAX_THROUGH: usize = 64;

static THROUGH: Semaphore = Semaphore::const_new(MAX_THROUGH);

fn admit() -> Result<SemaphorePermit<'static>, String> {
    let refused = |_| format!("{MAX_THROUGH} pings through the tunnel are under way: try again");
    THROUGH.try_acquire().map_err(refused)
}

/// What was asked for, under way.
enum Begun {
    Disco(path::PingId),
    Through(Probe, SemaphorePermit<'static>),
}

impl Engine {
    /// Answers `reply`, at once or later.
    pub(super) fn ping(
        &mut self,
        ip: IpAddr,
        kind: PingKind,
        mut reply: oneshot::Sender<PingResult>,
    ) {
        let begun = self.begin_ping(ip, kind);
        // Whoever asked may have gone.
        match (begun, &mut self.session) {
            (Ok((Begun::Disco(id), name)), Some(session)) => {
                session.pings.wait(id, ip, name, reply);
            }
            (Ok((Begun::Through(probe, permit), name)), _) => {
                tokio::spawn(async move {
                    tokio::select! {
                        result = probe.result(kind, name) => drop(reply.send(result)),
                        () = reply.closed() => {}
                    }
                    drop(permit);
                });
            }
            (Err(refusal), _) => drop(reply.send(*refusal)),
            (Ok(_), None) => {}
        }
    }

    fn begin_ping(
        &mut self,
        ip: IpAddr,
        kind: PingKind,
    ) -> Result<(Begun, String), Box<PingResult>> {
        let refusal = |err: &str| {
            Box::new(PingResult {
                ip: ip.to_string(),
                err: err.to_owned(),
                ..PingResult::default()
            })
        };
        let node = self.session.as_mut().and_then(|it| it.node.as_mut());
        let (map, own, node) = node
            .and_then(|node| {
                let map = node.map.as_ref()?;
                Some((
                    map,
                    map.self_node.as_ref()?,
                    (&mut node.paths, &node.choices),
                ))
            })
            .ok_or_else(|| refusal("not connected: run `lowroad up`"))?;
        if own.ips().any(|own| own == ip) {
            let mut local = refusal(&format!("{ip} is local Tailscale IP"));
            local.is_local_ip = true;
            return Err(local);
        }
        let mut peers = map.peers.values();
        let peer = peers
            .find(|peer| peer.ips().any(|own| own == ip))
            .ok_or_else(|| refusal("no matching peer"))?;
        let name = peer.name.split('.').next().unwrap_or_default().to_owned();
        let (paths, choices) = node;
        if kind == PingKind::Disco {
            let why = format!("{name} cannot be pinged: it takes part in no path discovery");
            let id = paths.ping(Instant::now(), peer.key);
            return id
                .map(|id| (Begun::Disco(id), name))
                .ok_or_else(|| refusal(&why));
        }
        let from = own.ips().find(|own| own.is_ipv4() == ip.is_ipv4());
        let permit = admit().map_err(|why| refusal(&why))?;
        let mut data = [0; 8];
        getrandom::fill(&mut data).map_err(|error| refusal(&error.to_string()))?;
        let probe = Probe {
            device: choices.device.clone(),
            mark: choices.mark.value,
            from: from.ok_or_else(|| refusal("this node has no address of that family"))?,
            to: ip,
            data,
        };
        Ok((Begun::Through(probe, permit), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_pings_go_through_the_tunnel_at_once_than_there_are_places() {
        let under_way: Vec<_> = (0..MAX_THROUGH).map(|_| admit().unwrap()).collect();
        assert!(admit().unwrap_err().contains("try again"));
        drop(under_way);
        assert!(admit().is_ok());
    }
}
