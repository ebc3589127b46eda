//! Which STUN servers are asked when.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lowroad_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId};

use super::Report;

/// Between two tries of a full round.
const TRY_PAUSE: Duration = Duration::from_millis(100);
const FULL_TRIES: u32 = 3;
/// Between two tries of an incremental round, if the latency is unknown.
const DEFAULT_PAUSE: Duration = Duration::from_millis(200);
const HOME_TRIES: u32 = 4;
const NEAR_TRIES: u32 = 2;
const NEAREST: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub region: RegionId,
    pub address: SocketAddr,
}

type Plan = Vec<(Duration, Server)>;
type Names = BTreeMap<String, Vec<IpAddr>>;

/// Every region, every family, several tries round its nodes.
pub(super) fn full(map: &DerpMap, names: &Names) -> Plan {
    let mut plan = Plan::new();
    for (id, region) in measured(map) {
        add(&mut plan, (id, region, names), FULL_TRIES, TRY_PAUSE);
    }
    sorted(plan)
}

/// The nearest regions and home only.
pub(super) fn incremental(map: &DerpMap, names: &Names, last: &Report) -> Plan {
    let mut nearest: Vec<_> = last
        .latencies
        .iter()
        .map(|(region, latency)| (*latency, *region))
        .collect();
    nearest.sort_unstable();
    nearest.truncate(NEAREST);
    let mut plan = Plan::new();
    for (id, region) in measured(map) {
        let is_home = last.preferred == Some(id);
        let near = nearest.iter().any(|(_, near)| *near == id);
        if !is_home && !near {
            continue;
        }
        let latency = last.latencies.get(&id);
        let pause = latency.map_or(DEFAULT_PAUSE, |latency| {
            latency.mul_f32(1.2).max(TRY_PAUSE / 2)
        });
        let tries = if is_home { HOME_TRIES } else { NEAR_TRIES };
        add(&mut plan, (id, region, names), tries, pause);
    }
    sorted(plan)
}

/// Names that have to be looked up before their region can be asked.
pub(super) fn unresolved(map: &DerpMap) -> Vec<String> {
    let nodes = measured(map).flat_map(|(_, region)| &region.nodes);
    let nodes = nodes.filter(|node| node.stun_port().is_some() && fixed(node).is_empty());
    let mut names: Vec<_> = nodes
        .filter(|node| wants_name(node))
        .map(|node| node.host_name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn measured(map: &DerpMap) -> impl Iterator<Item = (RegionId, &DerpRegion)> {
    let regions = map.regions.iter().map(|(id, region)| (*id, region));
    regions.filter(|(_, region)| !region.no_measure_no_home)
}

fn add(
    plan: &mut Plan,
    (id, region, names): (RegionId, &DerpRegion, &Names),
    tries: u32,
    pause: Duration,
) {
    for wanted in [true, false] {
        let servers: Vec<_> = region
            .nodes
            .iter()
            .filter_map(|node| {
                let port = node.stun_port()?;
                let mut addresses = addresses(node, names).into_iter();
                let address = addresses.find(|address| address.is_ipv4() == wanted)?;
                Some(Server {
                    region: id,
                    address: SocketAddr::new(address, port),
                })
            })
            .collect();
        let tries = (0..tries).zip(servers.iter().cycle());
        plan.extend(tries.map(|(number, server)| (pause * number, *server)));
    }
}

fn addresses(node: &DerpNode, names: &Names) -> Vec<IpAddr> {
    let fixed = fixed(node);
    if !fixed.is_empty() {
        return fixed;
    }
    if let Ok(address) = node.host_name.parse() {
        return vec![address];
    }
    names
        .get(&node.host_name)
        .filter(|_| wants_name(node))
        .cloned()
        .unwrap_or_default()
}

/// Addresses that the map itself gives.
fn fixed(node: &DerpNode) -> Vec<IpAddr> {
    if let Ok(address) = node.stun_test_ip.parse() {
        return vec![address];
    }
    [&node.ipv4, &node.ipv6]
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

/// Whether the name is to be asked at all: an address field with anything but an address means "none".
fn wants_name(node: &DerpNode) -> bool {
    let open = node.ipv4.is_empty() || node.ipv6.is_empty();
    open && !node.host_name.is_empty() && node.host_name.parse::<IpAddr>().is_err()
}

fn sorted(mut plan: Plan) -> Plan {
    plan.sort_by_key(|(after, _)| *after);
    plan
}
