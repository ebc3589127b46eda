//! What programs that watch nodes read of this one.

use lowroad_abi::Count;
use lowroad_core::{
    desired::PeerStats,
    filter::{Direction, DropReason, FilterCounters},
};
use lowroad_wire::key::NodePublic;

use super::*;

/// Those of a stock node that serves nothing and relays for nobody.
const NAMES: [&str; 10] = [
    "tailscaled_advertised_routes gauge",
    "tailscaled_approved_routes gauge",
    "tailscaled_health_messages gauge",
    "tailscaled_home_derp_region_id gauge",
    "tailscaled_inbound_bytes_total counter",
    "tailscaled_inbound_dropped_packets_total counter",
    "tailscaled_inbound_packets_total counter",
    "tailscaled_outbound_bytes_total counter",
    "tailscaled_outbound_dropped_packets_total counter",
    "tailscaled_outbound_packets_total counter",
];

async fn metrics(agent: &Agent) -> String {
    agent.ask(|reply| Ask::Metrics { reply }).await
}

fn names(text: &str) -> Vec<&str> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    names.collect()
}

fn stats(endpoint: &str, rx_bytes: u64, tx_bytes: u64) -> PeerStats {
    PeerStats {
        key: NodePublic::from_bytes([9; 32]),
        endpoint: Some(endpoint.parse().unwrap()),
        rx_bytes,
        tx_bytes,
        last_handshake: None,
    }
}

/// Waits until the metrics have all these lines; counters are not read for each who asks.
async fn wait_for(agent: &Agent, lines: &[&str]) {
    let mut text = metrics(agent).await;
    let deadline = Instant::now() + PATIENCE;
    while !lines
        .iter()
        .all(|line| text.lines().any(|own| own == *line))
    {
        assert!(Instant::now() < deadline, "not all of {lines:?} in {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        text = metrics(agent).await;
    }
}

#[tokio::test]
async fn metrics_have_the_stock_names_whatever_the_node_does() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let text = metrics(&agent).await;
    assert_eq!(names(&text), NAMES, "of one that never ran");
    let steps = agent.up(request(&server.url)).await;
    let _stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    let text = metrics(&agent).await;
    assert_eq!(names(&text), NAMES);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = name.split('{').next().unwrap();
        assert!(value.parse::<u64>().is_ok(), "{line}");
        assert!(
            NAMES
                .iter()
                .any(|known| known.split(' ').next() == Some(name)),
            "{line}"
        );
    }
    agent.end().await;
}

#[tokio::test]
async fn direct_bytes_count_by_their_family_and_drops_by_their_reason() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, _stream) = connected(&dir, &mut server).await;
    let kernel = agent.kernel();
    let dropped = Count {
        packets: 3,
        bytes: 180,
    };
    kernel.set_counters(FilterCounters {
        dropped: vec![(Direction::In, DropReason::Acl, dropped)],
        ..FilterCounters::default()
    });
    kernel.set_stats(vec![stats("192.0.2.1:41641", 100, 20)]);
    wait_for(
        &agent,
        &[
            "tailscaled_inbound_bytes_total{path=\"direct_ipv4\"} 100",
            "tailscaled_outbound_bytes_total{path=\"direct_ipv4\"} 20",
            "tailscaled_inbound_dropped_packets_total{reason=\"acl\"} 3",
        ],
    )
    .await;
    kernel.set_stats(vec![stats("[2001:db8::1]:41641", 107, 29)]);
    wait_for(
        &agent,
        &[
            "tailscaled_inbound_bytes_total{path=\"direct_ipv4\"} 100",
            "tailscaled_inbound_bytes_total{path=\"direct_ipv6\"} 7",
            "tailscaled_outbound_bytes_total{path=\"direct_ipv6\"} 9",
        ],
    )
    .await;
    agent.end().await;
}
