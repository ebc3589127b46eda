//! A member of the tailnet, known to its victim, floods it directly and over the relay.

use anyhow::Result;

use super::{ATTACK, EVIL, EVIL_ADDRESS, Memory, Siege, argument, attacker, direct};
use crate::{
    lab::{ALLOW_ALL, Lab, secs},
    tailnet::Client as _,
};

const ATTACKS: &[&str] = &[
    "garbage",
    "initiations",
    "own-initiations",
    "disco-pings",
    "call-me-maybe",
    "relayed-pings",
    "relayed-garbage",
    "relayed-initiations",
    "oversize",
];

pub fn a_hostile_peer_harms_no_other(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    let evil = lab.net.public("evil", EVIL)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let to = bravo.ip(4)?;
    direct(&alpha, &bravo)?;
    let victims = [
        ("alpha", alpha.agent_pid()),
        ("bravo", bravo.agent_pid()),
        ("coordinator", Some(coordinator.pid())),
    ];
    let allowed = Memory {
        peak: 48,
        after: 32,
    };
    let siege = Siege::begin(lab, (&alpha.namespace, to), &victims, allowed)?;
    for attack in ATTACKS {
        let arguments = [
            argument("server", "203.0.113.10:8080"),
            argument("key", &key),
            argument("name", "mallory"),
            argument("seed", 0x5a),
            argument("own", EVIL_ADDRESS),
            argument("home", 999),
            argument("victim", "alpha"),
            argument("attack", attack),
            argument("ms", ATTACK.as_millis()),
        ];
        siege.under(attack, || attacker(&evil, "peer", &arguments))?;
    }
    siege.end()?;
    // Whoever joins now is not kept out.
    let charlie = lab.public_node("charlie", 32)?;
    charlie.up(&key)?;
    alpha.wait_for_peer("charlie", secs(10)).map(drop)
}
