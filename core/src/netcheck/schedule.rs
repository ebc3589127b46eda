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
/// Regions that are measured; of more, those with the lowest numbers. The hosted service has some thirty. Whoever writes the map says where our probes go: a round
/// of 64 regions is 384 datagrams of 40 bytes at most, in 200 ms.
const MAX_REGIONS: usize = 64;
/// Nodes of a region that may be asked: as many as a round has tries.
const MAX_NODES: usize = HOME_TRIES as usize;
/// Names that are looked up for one map.
const MAX_NAMES: usize = 64;

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
    let nodes = measured(map).flat_map(|(_, region)| asked(region));
    let nodes = nodes.filter(|node| node.stun_port().is_some() && fixed(node).is_empty());
    let mut names: Vec<_> = nodes
        .filter(|node| wants_name(node))
        .map(|node| node.host_name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(MAX_NAMES);
    names
}

/// Whether the same is asked by both maps, and the same made of the answers.
pub(super) fn is_same(one: &DerpMap, other: &DerpMap) -> bool {
    let regions = |map| measured(map).map(|(id, region)| (id, servers(region)));
    one.home_params == other.home_params
        && one.regions.keys().eq(other.regions.keys())
        && regions(one).eq(regions(other))
}

/// What of a region's nodes says who is asked.
fn servers<'a>(region: &'a DerpRegion) -> Vec<(Option<u16>, [&'a str; 4], bool)> {
    let facts = |node: &'a DerpNode| {
        let DerpNode {
            host_name,
            ipv4,
            ipv6,
            stun_test_ip,
            stun_only,
            ..
        } = node;
        let texts = [&**host_name, ipv4, ipv6, stun_test_ip];
        (node.stun_port(), texts, *stun_only)
    };
    asked(region).iter().map(facts).collect()
}

fn measured(map: &DerpMap) -> impl Iterator<Item = (RegionId, &DerpRegion)> {
    let regions = map.regions.iter().map(|(id, region)| (*id, region));
    regions
        .filter(|(_, region)| !region.no_measure_no_home)
        .take(MAX_REGIONS)
}

fn asked(region: &DerpRegion) -> &[DerpNode] {
    region.nodes.get(..MAX_NODES).unwrap_or(&region.nodes)
}

fn add(
    plan: &mut Plan,
    (id, region, names): (RegionId, &DerpRegion, &Names),
    tries: u32,
    pause: Duration,
) {
    for wanted in [true, false] {
        let servers: Vec<_> = asked(region)
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
