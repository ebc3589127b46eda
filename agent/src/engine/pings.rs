//! Pings that somebody waits for.

use std::{collections::BTreeMap, net::IpAddr};

use lowroad_core::path;
use lowroad_wire::control::DerpMap;
use tokio::sync::oneshot;

use crate::status::{PingResult, TIMED_OUT};

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
