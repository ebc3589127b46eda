//! What the local API tells of networks, relays and packets: netcheck, counters.

use std::collections::BTreeMap;

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
}
