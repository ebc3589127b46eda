//! Clients of the coordinator mean harm. Its tailnet's pings go over its relay meanwhile, and whoever comes while a crowd of
//! strangers fills every place gets in.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{ATTACK, EVIL, LIMIT, Memory, Siege, Standing, argument, at_least};
use crate::{
    lab::{ALLOW_ALL, Lab, secs},
    tailnet::{Client as _, Node},
    topology::Nat,
    traffic::Pinger,
    wait,
};

#[derive(Debug)]
struct Attack {
    name: &'static str,
    /// How many of whatever it is.
    count: usize,
    /// How many it has to do until it ends: connections, packets, and so on.
    least: u64,
    /// What the coordinator lets be at once, if that is to be met.
    limit: usize,
    /// Somebody joins meanwhile, and reaches others by the relay.
    newcomer: bool,
}

const fn attack(name: &'static str, count: usize) -> Attack {
    Attack {
        name,
        count,
        least: count as u64,
        limit: 0,
        newcomer: false,
    }
}

impl Attack {
    /// More than `limit`, by as many as are enough to see that others make way.
    const fn beyond(name: &'static str, limit: usize) -> Self {
        Self {
            limit,
            newcomer: true,
            ..attack(name, limit + 150)
        }
    }

    /// What it does without a count, goes on until it is told to end.
    const fn at_least(mut self, least: u64) -> Self {
        self.least = least;
        self
    }

    const fn with_newcomer(mut self) -> Self {
        self.newcomer = true;
        self
    }
}

/// `MAX_CONNECTIONS` in `coordinator/src/server.rs`.
const CONNECTIONS: usize = 8192;
/// `MAX_STRANGERS` in `coordinator/src/control/channel.rs`.
const CHANNELS: usize = 1024;
/// `MAX_GREETING` in `coordinator/src/derp.rs`.
const GREETING: usize = 512;

const ATTACKS: &[Attack] = &[
    Attack::beyond("half-open", CONNECTIONS),
    Attack::beyond("silent", CONNECTIONS),
    Attack::beyond("relay-greeting", GREETING),
    Attack::beyond("repeated", CHANNELS),
    Attack::beyond("pending", CHANNELS),
    attack("tls-garbage", 1000),
    attack("noise-garbage", 1).at_least(50).with_newcomer(),
    attack("unread", 10).at_least(100),
    attack("relay-unread", 1).at_least(500),
    attack("relay-flood", 1).at_least(500),
    attack("stun", 1).at_least(1000),
];
/// How long a newcomer may take, at the worst moment and on a busy machine.
const JOIN: Duration = secs(10);

pub fn a_hostile_client_harms_no_other(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.node_behind("alpha", 21, Nat::UdpBlocked)?;
    let bravo = lab.node_behind("bravo", 22, Nat::UdpBlocked)?;
    let evil = lab.net.public("evil", EVIL)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let victims = [
        ("coordinator", Some(coordinator.pid())),
        ("alpha", alpha.agent_pid()),
    ];
    // Each of so many connections costs some 17 KiB, and the allocator keeps what it once had.
    let allowed = Memory {
        peak: 224,
        after: 192,
    };
    let pair = (&alpha.namespace, bravo.ip(4)?);
    let siege = Siege::begin(lab, pair, &victims, allowed)?;
    for (number, attack) in (40..).zip(ATTACKS) {
        let newcomer = match attack.newcomer {
            true => Some(lab.public_node(&format!("new{number}"), number)?),
            false => None,
        };
        let arguments = [
            argument("server", "203.0.113.10:8080"),
            argument("key", &key),
            argument("attack", attack.name),
            argument("count", attack.count),
            argument("limit", attack.limit),
            argument("ms", LIMIT.as_millis()),
        ];
        siege.under(attack.name, || {
            let mut attacker = Standing::start(lab, &evil, "client", &arguments)?;
            attacker.wait_for("complete", "what it does under way")?;
            let met = match &newcomer {
                Some(newcomer) => join(newcomer, &key, &alpha)?,
                None => {
                    wait::pass(ATTACK)?;
                    String::new()
                }
            };
            let done = attacker.finish()?;
            Ok(format!("{}{met}", at_least(attack.least, &done)?))
        })?;
    }
    siege.end()
}

/// Joins while the attack goes on, and reaches somebody who can be reached by the relay only; says how long that took.
fn join(newcomer: &Node, key: &str, other: &Node) -> Result<String> {
    let time = newcomer.up(key)?;
    ensure!(time <= JOIN, "an `up` meanwhile took {time:?}");
    let ping = Pinger::start(&newcomer.namespace, other.ip(4)?, super::PACE)?;
    let reached = ping.first_answer(JOIN)?;
    Ok(format!(
        "; {} joined in {:.1} s and reached {} after {:.1} s more",
        newcomer.name,
        time.as_secs_f32(),
        other.name,
        reached.as_secs_f32()
    ))
}
