//! What of the stock client's metrics there is, in Prometheus's text.

use std::fmt::Write as _;

use lowroad_core::filter::{Direction, FilterCounters};

use super::Engine;

/// How the metrics of one direction are called, and what they count.
struct Names {
    prefix: &'static str,
    traffic: &'static str,
    dropped: &'static str,
}

const INBOUND: Names = Names {
    prefix: "tailscaled_inbound",
    traffic: "received from other peers",
    dropped: "dropped packets received by the node from other peers",
};
const OUTBOUND: Names = Names {
    prefix: "tailscaled_outbound",
    traffic: "sent to other peers",
    dropped: "packets dropped while being sent to other peers",
};

/// What went one way, of WireGuard's. It counts no packets: how many went directly nobody knows.
#[derive(Default)]
struct Traffic {
    relayed_packets: u64,
    relayed_bytes: u64,
    v4_bytes: u64,
    v6_bytes: u64,
}

impl Engine {
    pub(super) fn metrics(&mut self) -> String {
        let mut text = Text::default();
        text.gauge(
            "tailscaled_advertised_routes",
            "Number of advertised network routes (e.g. by a subnet router)",
            "",
            0,
        );
        text.gauge(
            "tailscaled_approved_routes",
            "Number of approved network routes (e.g. by a subnet router)",
            "",
            0,
        );
        text.gauge(
            "tailscaled_health_messages",
            "Number of health messages broken down by type.",
            "{type=\"warning\"}",
            self.health().len() as u64,
        );
        let net = self
            .session
            .as_ref()
            .and_then(|session| session.net.as_ref());
        let home = net.and_then(|net| net.home());
        text.gauge(
            "tailscaled_home_derp_region_id",
            "DERP region ID of this node's home relay server",
            "",
            home.map_or(0, |region| region.0.into()),
        );
        let [inbound, outbound] = self.traffic();
        let node = self
            .session
            .as_mut()
            .and_then(|session| session.node.as_mut());
        let counters = node.and_then(|node| node.kernel.filter_counters().ok());
        for (names, traffic, way) in [
            (&INBOUND, inbound, Direction::In),
            (&OUTBOUND, outbound, Direction::Out),
        ] {
            text.one_way(names, &traffic, &dropped(counters.as_ref(), way));
        }
        text.0
    }

    /// What came in, and what went out.
    fn traffic(&self) -> [Traffic; 2] {
        let Some(session) = &self.session else {
            return Default::default();
        };
        let relayed = session.net.as_ref().map(|net| net.relayed());
        let relayed = relayed.unwrap_or_default();
        let direct = session.node.as_ref().map(|node| &node.direct);
        let direct = direct.map(|direct| (direct.v4, direct.v6));
        let (v4, v6) = direct.unwrap_or_default();
        [
            Traffic {
                relayed_packets: relayed.received,
                relayed_bytes: relayed.received_bytes,
                v4_bytes: v4.received,
                v6_bytes: v6.received,
            },
            Traffic {
                relayed_packets: relayed.sent,
                relayed_bytes: relayed.sent_bytes,
                v4_bytes: v4.sent,
                v6_bytes: v6.sent,
            },
        ]
    }
}

type Lines = Vec<(String, u64)>;

fn dropped(counters: Option<&FilterCounters>, way: Direction) -> Lines {
    let dropped = counters.into_iter().flat_map(|counters| &counters.dropped);
    dropped
        .filter(|(direction, ..)| *direction == way)
        .map(|(_, reason, count)| (format!("{{reason=\"{}\"}}", reason.name()), count.packets))
        .collect()
}

fn by_path<const N: usize>(lines: [(&str, u64); N]) -> Lines {
    let lines = lines.map(|(path, value)| (format!("{{path=\"{path}\"}}"), value));
    lines.into()
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, lines: &[(String, u64)]) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
        for (labels, value) in lines {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &str, value: u64) {
        self.metric(name, "gauge", help, &[(labels.to_owned(), value)]);
    }

    fn one_way(&mut self, names: &Names, traffic: &Traffic, dropped: &[(String, u64)]) {
        let bytes = by_path([
            ("derp", traffic.relayed_bytes),
            ("direct_ipv4", traffic.v4_bytes),
            ("direct_ipv6", traffic.v6_bytes),
        ]);
        let packets = by_path([("derp", traffic.relayed_packets)]);
        for (what, counted, lines) in [
            ("bytes", format!("bytes {}", names.traffic), &*bytes),
            ("dropped_packets", names.dropped.to_owned(), dropped),
            ("packets", format!("packets {}", names.traffic), &*packets),
        ] {
            let name = format!("{}_{what}_total", names.prefix);
            let help = format!("Counts the number of {counted}");
            self.metric(&name, "counter", &help, lines);
        }
    }
}
