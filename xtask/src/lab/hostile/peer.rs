//! A member of the tailnet, known to its victim, floods it directly and over the relay: natively the userspace device, and in the VM the kernel's WireGuard.

use anyhow::{Context, Result, ensure};

use super::{ATTACK, EVIL, EVIL_ADDRESS, Memory, Siege, argument, attacker, direct};
use crate::{
    lab::{ALLOW_ALL, Lab, peers::prefix, secs},
    tailnet::{Client as _, Node, WgPeer},
    wait,
};

#[derive(Debug)]
struct Attack {
    name: &'static str,
    /// How many packets it sends at least: a fraction of what it does on a machine of two cores that has nothing else to do.
    least: u64,
    emulated: Emulated,
}

/// How many it sends at least against the kernel's WireGuard, in the VM.
#[derive(Debug)]
enum Emulated {
    /// A fourth of the least that was seen there.
    Always(u64),
    /// With `LOWROAD_LONG`, as it meets the agent and the relay, and hardly WireGuard: a fourth of the host's.
    Long(u64),
}

const fn attack(name: &'static str, least: u64, emulated: Emulated) -> Attack {
    Attack {
        name,
        least,
        emulated,
    }
}

const ATTACKS: &[Attack] = &[
    attack("garbage", 500, Emulated::Always(350)),
    attack("initiations", 500, Emulated::Always(500)),
    attack("own-initiations", 100, Emulated::Always(20)),
    attack("disco-pings", 200, Emulated::Always(50)),
    attack("call-me-maybe", 10, Emulated::Always(3)),
    attack("relayed-pings", 500, Emulated::Long(125)),
    attack("relayed-garbage", 500, Emulated::Long(125)),
    attack("relayed-initiations", 500, Emulated::Always(180)),
    attack("oversize", 100, Emulated::Long(25)),
];

impl Attack {
    /// At least so many packets, where it is tried.
    fn least_here(&self, lab: &Lab) -> Option<u64> {
        match self.emulated {
            _ if !lab.emulated => Some(self.least),
            Emulated::Always(least) => Some(least),
            Emulated::Long(least) => lab.long.then_some(least),
        }
    }
}

/// The heaviest of each way in: WireGuard's, the engine's and the relay's.
const TWICE: &[&str] = &["initiations", "disco-pings", "relayed-garbage"];

/// How many packets an emulated attacker makes before it begins, to send them again and again.
const PREPARED: usize = 128;

pub fn a_hostile_peer_harms_no_other(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    // The kernel's counters and endpoint are looked at there: with one path, nothing but an attack could move it.
    let node = |name: &str, last| match lab.emulated {
        true => lab.single_path_node(name, last),
        false => lab.public_node(name, last),
    };
    let alpha = node("alpha", 30)?;
    let bravo = node("bravo", 31)?;
    let evil = lab.net.public("evil", EVIL)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let to = bravo.ip(4)?;
    direct(&alpha, &bravo)?;
    let mut session = match lab.emulated {
        true => Some(Session::of(&alpha, &bravo)?),
        false => None,
    };
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
        let Some(least) = attack.least_here(lab) else {
            continue;
        };
        let arguments = [
            argument("server", "203.0.113.10:8080"),
            argument("key", &key),
            argument("name", "mallory"),
            argument("seed", 0x5a),
            argument("own", EVIL_ADDRESS),
            argument("home", 999),
            argument("victim", "alpha"),
            argument("attack", attack.name),
            argument("prepared", if lab.emulated { PREPARED } else { 0 }),
            argument("ms", ATTACK.as_millis()),
        ];
        let attacks = || attacker(&evil, "peer", &arguments, least);
        match TWICE.contains(&attack.name) {
            true => siege.under_twice(attack.name, attacks)?,
            false => siege.under(attack.name, attacks)?,
        }
        let path = alpha.path_to("bravo")?;
        ensure!(path.is_direct(), "{}: the path is {path:?}", attack.name);
        if let Some(session) = &mut session {
            session.goes_on().context(attack.name)?;
            if attack.name == "own-initiations" {
                lab.note(&format!("   {}", session.other_has_handshakes()?));
            }
        }
    }
    siege.end()?;
    // Whoever joins now is not kept out.
    let charlie = node("charlie", 32)?;
    charlie.up(&key)?;
    alpha.wait_for_peer("charlie", secs(10)).map(drop)
}

/// The innocent pair's, in the kernel's WireGuard of one of them.
pub(super) struct Session<'a> {
    of: &'a Node,
    prefix: String,
    before: WgPeer,
}

impl<'a> Session<'a> {
    pub(super) fn of(of: &'a Node, with: &Node) -> Result<Self> {
        for node in [of, with] {
            let plane = node.dataplane()?;
            ensure!(plane == "kernel", "{}'s data plane is {plane}", node.name);
        }
        let prefix = prefix(with)?;
        let before = of.wireguard_peer_with(&prefix)?;
        Ok(Self { of, prefix, before })
    }

    /// Initiations of another peer reached WireGuard, and it took them for what they are.
    fn other_has_handshakes(&self) -> Result<String> {
        let bytes = || -> Result<u64> {
            let peers = self.of.wireguard()?;
            let others = peers.iter().filter(|peer| peer.key != self.before.key);
            Ok(others.map(|peer| peer.received).sum())
        };
        let (bytes, _) = wait::wait_for("a hostile peer's handshake", secs(10), || {
            Ok(Some(bytes()?).filter(|bytes| *bytes > 0))
        })?;
        Ok(format!(
            "WireGuard took {bytes} bytes of the peer's handshakes"
        ))
    }

    /// It is the same as before, and has carried more.
    pub(super) fn goes_on(&mut self) -> Result<()> {
        let after = self.of.wireguard_peer_with(&self.prefix)?;
        self.before.has_become(&after).map_err(anyhow::Error::msg)?;
        ensure!(
            after.received > self.before.received && after.sent > self.before.sent,
            "it carried nothing: {after:?}"
        );
        self.before = after;
        Ok(())
    }
}
