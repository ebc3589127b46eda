//! What the filter refused of late.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use lowroad_core::filter::{Direction, DropReason, FlowTuple};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast;

use crate::status::Flow;

/// Kept for readers that come later.
const KEPT: usize = 1000;
/// A follower that is further behind misses some.
const QUEUE: usize = 1024;

#[derive(Debug)]
pub struct Flows {
    recent: VecDeque<Flow>,
    followers: broadcast::Sender<Flow>,
    /// The wall clock when the monotonic clock of the events was zero.
    boot: SystemTime,
}

/// One drop as the kernel reports it.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    /// Since boot.
    pub time: Duration,
    pub direction: Direction,
    pub reason: DropReason,
    pub tuple: FlowTuple,
    pub length: u32,
}

impl Flows {
    /// `uptime` is the monotonic clock's time at `now`.
    pub fn new(now: SystemTime, uptime: Duration) -> Self {
        Self {
            recent: VecDeque::new(),
            followers: broadcast::channel(QUEUE).0,
            boot: now.checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    pub fn push(&mut self, drop: Drop) {
        let time = OffsetDateTime::from(self.boot + drop.time);
        let flow = Flow {
            time: time
                .replace_nanosecond(time.nanosecond() / 1000 * 1000)
                .unwrap_or(time)
                .format(&Rfc3339)
                .unwrap_or_default(),
            direction: if drop.direction == Direction::Out {
                "out"
            } else {
                "in"
            }
            .to_owned(),
            verdict: "drop".to_owned(),
            reason: drop.reason.name().to_owned(),
            proto: protocol_name(drop.tuple.protocol),
            src: drop.tuple.source.ip(),
            src_port: drop.tuple.source.port(),
            dst: drop.tuple.destination.ip(),
            dst_port: drop.tuple.destination.port(),
            length: drop.length,
            rule: None,
        };
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(flow.clone());
        // Nobody following is no error.
        let _ = self.followers.send(flow);
    }

    pub fn follow(&self) -> (Vec<Flow>, broadcast::Receiver<Flow>) {
        (
            self.recent.iter().cloned().collect(),
            self.followers.subscribe(),
        )
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_becomes_a_flow_with_wall_time_and_names() {
        let mut flows = Flows::new(
            SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
            Duration::from_secs(900),
        );
        let tuple = FlowTuple {
            source: "100.64.0.2:4000".parse().unwrap(),
            destination: "100.64.0.1:22".parse().unwrap(),
            protocol: 6,
        };
        for _ in 0..KEPT + 5 {
            flows.push(Drop {
                time: Duration::from_secs(901),
                direction: Direction::In,
                reason: DropReason::Acl,
                tuple,
                length: 60,
            });
        }
        let (recent, _) = flows.follow();
        assert_eq!(recent.len(), KEPT);
        assert_eq!(recent[0].time, "1970-01-01T00:16:41Z");
        assert_eq!(
            (
                recent[0].proto.as_str(),
                recent[0].reason.as_str(),
                recent[0].direction.as_str()
            ),
            ("tcp", "acl", "in")
        );
    }
}
