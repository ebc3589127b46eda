//! Clients of the coordinator mean harm. Its tailnet's pings go over its relay meanwhile.

use anyhow::Result;

use super::{ATTACK, EVIL, Memory, Siege, argument, attacker};
use crate::{
    lab::{ALLOW_ALL, Lab, secs},
    tailnet::Client as _,
    topology::Nat,
};

/// And how many of whatever it is.
const ATTACKS: &[(&str, usize)] = &[
    ("half-open", 3000),
    ("silent", 3000),
    ("tls-garbage", 1000),
    ("noise-garbage", 500),
    ("pending", 100),
    ("unread", 10),
    ("relay-unread", 1),
    ("relay-flood", 1),
    ("stun", 1),
];

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
    let allowed = Memory {
        peak: 160,
        after: 128,
    };
    let pair = (&alpha.namespace, bravo.ip(4)?);
    let siege = Siege::begin(lab, pair, &victims, allowed)?;
    for (attack, count) in ATTACKS {
        let arguments = [
            argument("server", "203.0.113.10:8080"),
            argument("key", &key),
            argument("attack", attack),
            argument("count", count),
            argument("ms", ATTACK.as_millis()),
        ];
        siege.under(attack, || attacker(&evil, "client", &arguments))?;
    }
    siege.end()?;
    // Whoever joins now is not kept out, and changes still reach everybody.
    let charlie = lab.public_node("charlie", 32)?;
    let time = charlie.up(&key)?;
    lab.within("an `up` afterwards", time, secs(10))?;
    alpha.wait_for_peer("charlie", secs(10)).map(drop)
}
