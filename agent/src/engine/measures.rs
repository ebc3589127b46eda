//! What the local API tells of networks, relays and packets: netcheck, counters, metrics.

use std::{collections::BTreeMap, fmt::Write as _};

use lowroad_core::filter::Direction;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Engine, session::Session, view::rfc3339};

impl Engine {
    pub(super) fn derp_map(&self) -> Value {
        self.map()
            .and_then(|map| serde_json::to_value(&map.derp_map).ok())
            .unwrap_or(Value::Null)
    }

    pub(super) fn netcheck(&self) -> Value {
        let net = self
            .session
            .as_ref()
            .and_then(|session| session.net.as_ref());
        let mut report = net.map_or_else(|| json!({}), |net| net.report());
        let codes = self
            .session
            .as_ref()
            .map(Session::region_codes)
            .unwrap_or_default();
        let regions: BTreeMap<_, _> = codes
            .into_iter()
            .map(|(id, code)| (id.to_string(), code))
            .collect();
        if let Some(object) = report.as_object_mut() {
            object.insert("Now".to_owned(), rfc3339(OffsetDateTime::now_utc()).into());
            object.insert("Lowroad".to_owned(), json!({"Regions": regions}));
        }
        report
    }

    /// Of packets as the kernel hands them over: TCP segments that it keeps together are one.
    pub(super) fn counters(&mut self) -> Value {
        let Some(node) = self
            .session
            .as_mut()
            .and_then(|session| session.node.as_mut())
        else {
            return json!({});
        };
        let Ok(counters) = node.kernel.filter_counters() else {
            return json!({});
        };
        let direction = |direction: Direction| {
            if direction == Direction::Out {
                "out"
            } else {
                "in"
            }
        };
        let rules: Vec<_> = counters.rules.iter().map(|rule| json!({"Rule": rule.rule.0, "Text": rule.text, "Packets": rule.count.packets, "Bytes": rule.count.bytes, "Counted": rule.counted})).collect();
        let passed: Vec<_> = counters.passed.iter().map(|(way, pass, count)| json!({"Direction": direction(*way), "How": pass.name(), "Packets": count.packets, "Bytes": count.bytes})).collect();
        let dropped: Vec<_> = counters.dropped.iter().map(|(way, reason, count)| json!({"Direction": direction(*way), "Reason": reason.name(), "Packets": count.packets, "Bytes": count.bytes})).collect();
        json!({"Rules": rules, "Passed": passed, "Dropped": dropped})
    }

    /// What of the stock client's metrics there is, in Prometheus's text.
    pub(super) fn metrics(&mut self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, lines: &[(String, u64)]| {
            let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {help}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        metric(
            "tailscaled_advertised_routes",
            "gauge",
            "Number of advertised network routes (e.g. by a subnet router)",
            &[(String::new(), 0)],
        );
        metric(
            "tailscaled_approved_routes",
            "gauge",
            "Number of approved network routes (e.g. by a subnet router)",
            &[(String::new(), 0)],
        );
        metric(
            "tailscaled_health_messages",
            "gauge",
            "Number of health messages broken down by type.",
            &[("{type=\"warning\"}".to_owned(), self.health().len() as u64)],
        );
        let home = self
            .session
            .as_ref()
            .and_then(|session| session.net.as_ref()?.home())
            .map_or(0, |region| u64::from(region.0));
        metric(
            "tailscaled_home_derp_region_id",
            "gauge",
            "DERP region ID of this node's home relay server",
            &[(String::new(), home)],
        );
        let counters = self
            .session
            .as_mut()
            .and_then(|session| session.node.as_mut())
            .and_then(|node| node.kernel.filter_counters().ok());
        for (name, help, way) in [
            (
                "tailscaled_inbound_dropped_packets_total",
                "Counts the number of dropped packets received by the node from other peers",
                Direction::In,
            ),
            (
                "tailscaled_outbound_dropped_packets_total",
                "Counts the number of packets dropped while being sent to other peers",
                Direction::Out,
            ),
        ] {
            let dropped = counters
                .iter()
                .flat_map(|counters| &counters.dropped)
                .filter(|(direction, ..)| *direction == way);
            let lines: Vec<_> = dropped
                .map(|(_, reason, count)| {
                    (format!("{{reason=\"{}\"}}", reason.name()), count.packets)
                })
                .collect();
            metric(name, "counter", help, &lines);
        }
        text
    }
}
