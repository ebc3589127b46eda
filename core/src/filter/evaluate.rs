//! The reference: judges packets by reading the rules themselves, in the order of `protocol.md` 5.3.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use lowroad_wire::control::PortRange;

use super::{
    Action, Direction, DropReason, Family, Input, Pass, Prefix, Verdict,
    answer::TSMP,
    packet::{Packet, SCTP, TCP, UDP, icmp_of},
    rules::{Rule, Rules},
};

/// The cloud metadata service, which people route through the tailnet.
const METADATA: [u8; 4] = [169, 254, 169, 254];

/// A UDP or SCTP flow as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    remote: (IpAddr, u16),
    local: (IpAddr, u16),
    jailed: bool,
}

/// Judges packets one after the other; what goes out lets answers in.
#[derive(Clone, Debug)]
pub struct Evaluator {
    input: Input,
    rules: Vec<Rule>,
    local: Vec<Prefix>,
    /// Owner by longest prefix: whether it is jailed.
    senders: Vec<(Prefix, bool)>,
    /// Flows seen going out, with when (a count of packets).
    flows: HashMap<Flow, u64>,
    clock: u64,
}

impl Evaluator {
    /// Flows remembered: as many as the kernel's table holds.
    pub const FLOWS: usize = lowroad_abi::FLOW_ENTRIES;

    pub fn new(input: &Input) -> Self {
        Self {
            rules: Rules::of(input).rules,
            local: input.local.iter().map(|n| Prefix::from(*n)).collect(),
            senders: input
                .peers
                .iter()
                .flat_map(|p| {
                    let own = p.addresses.iter().map(|a| Prefix::host(*a));
                    own.chain(p.allowed_ips.iter().map(|n| Prefix::from(*n)))
                        .map(|prefix| (prefix, p.jailed))
                })
                .collect(),
            input: input.clone(),
            flows: HashMap::new(),
            clock: 0,
        }
    }

    /// Takes another rule set. Flows stay, unless shields go up now: what was allowed to answer then is not any more.
    pub fn replace(&mut self, input: &Input) {
        let forget = input.shields_up && !self.input.shields_up;
        let flows = std::mem::take(&mut self.flows);
        let clock = self.clock;
        *self = Self::new(input);
        self.clock = clock;
        if !forget {
            self.flows = flows;
        }
    }

    /// Judges an IP packet. `Out` is what the host sends, not the agent.
    pub fn judge(&mut self, direction: Direction, packet: &[u8]) -> Verdict {
        if packet.is_empty() {
            return Verdict::accept(Pass::Outbound);
        }
        self.clock += 1;
        let packet = match Packet::parse(packet) {
            Ok(packet) => packet,
            Err(reason) => return Verdict::drop(reason),
        };
        if let Some(reason) = forbidden_destination(packet.destination) {
            return Verdict::drop(reason);
        }
        if direction == Direction::Out {
            return self.outbound(&packet);
        }
        if packet.later_fragment {
            return Verdict::accept(Pass::Fragment);
        }
        let verdict = self.inbound(&packet);
        if matches!(verdict.action, Action::Drop(_)) && self.is_peer_api(&packet) {
            return Verdict::accept(Pass::PeerApi);
        }
        verdict
    }

    /// Whether a refused packet is reported to its sender (step 12).
    pub fn rejects(&self, packet: &[u8], verdict: &Verdict) -> bool {
        use DropReason::{Acl, Jailed, NotLocal, ShieldsUp};
        matches!(
            verdict.action,
            Action::Drop(Acl | Jailed | NotLocal | ShieldsUp)
        ) && Packet::parse(packet).is_ok_and(|p| p.family() == Family::V4 && p.is_tcp_syn())
    }

    fn outbound(&mut self, packet: &Packet) -> Verdict {
        if packet.later_fragment {
            return Verdict::accept(Pass::Fragment);
        }
        if packet.protocol == TSMP {
            return Verdict::drop(DropReason::TsmpFromHost);
        }
        if self.is_own_disco(packet) {
            return Verdict::drop(DropReason::OwnDisco);
        }
        if matches!(packet.protocol, UDP | SCTP) {
            let (local, remote) = packet.ports();
            let flow = Flow {
                protocol: packet.protocol,
                remote: (packet.destination, remote),
                local: (packet.source, local),
                jailed: self.is_jailed(packet.destination),
            };
            self.remember(flow);
        }
        Verdict::accept(Pass::Outbound)
    }

    fn remember(&mut self, flow: Flow) {
        if self.flows.len() >= Self::FLOWS
            && !self.flows.contains_key(&flow)
            && let Some(oldest) = self
                .flows
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(f, _)| *f)
        {
            self.flows.remove(&oldest);
        }
        self.flows.insert(flow, self.clock);
    }

    fn inbound(&mut self, packet: &Packet) -> Verdict {
        if packet.protocol == TSMP && is_for_agent(packet.transport) {
            return Verdict {
                action: Action::Consume,
                rule: None,
            };
        }
        if self.is_own_disco(packet) {
            return Verdict::drop(DropReason::OwnDisco);
        }
        if !self.local.iter().any(|p| p.contains(packet.destination)) {
            return Verdict::drop(DropReason::NotLocal);
        }
        let jailed = self.is_jailed(packet.source);
        let refused = Verdict::drop(match (jailed, self.input.shields_up) {
            (true, _) => DropReason::Jailed,
            (false, true) => DropReason::ShieldsUp,
            (false, false) => DropReason::Acl,
        });
        let (source_port, destination_port) = packet.ports();
        match packet.protocol {
            _ if packet.is_icmp() && is_icmp_reply(packet) => {
                return Verdict::accept(Pass::IcmpReply);
            }
            TCP if !packet.is_tcp_syn() => return Verdict::accept(Pass::TcpEstablished),
            UDP | SCTP => {
                let flow = Flow {
                    protocol: packet.protocol,
                    remote: (packet.source, source_port),
                    local: (packet.destination, destination_port),
                    jailed,
                };
                if let Some(at) = self.flows.get_mut(&flow) {
                    *at = self.clock;
                    return Verdict::accept(Pass::Flow);
                }
            }
            TSMP => return Verdict::accept(Pass::Tsmp),
            _ => {}
        }
        if jailed {
            return refused;
        }
        match self.first_rule(packet, destination_port) {
            Some(rule) => Verdict::rule(rule.id),
            None => refused,
        }
    }

    /// The rule that admits the packet. Of several, one that admits every source comes before the others, then the first.
    fn first_rule(&self, packet: &Packet, port: u16) -> Option<&Rule> {
        let caps = self.caps_of(packet.source);
        let matching = |rule: &&Rule| match packet.protocol {
            _ if packet.is_icmp() => admits_icmp(rule, packet, &caps),
            TCP | UDP | SCTP => {
                rule.protocols.contains(&packet.protocol)
                    && (holds(&rule.sources, packet.source)
                        || rule.caps.iter().any(|c| caps.contains(c.as_str())))
                    && rule
                        .destinations
                        .iter()
                        .any(|(p, ports)| p.contains(packet.destination) && ports.contains(port))
            }
            protocol => {
                rule.protocols.contains(&protocol)
                    && holds(&rule.sources, packet.source)
                    && rule.destinations.iter().any(|(p, ports)| {
                        p.contains(packet.destination) && *ports == PortRange::ANY
                    })
            }
        };
        // A rule that admits everyone does so only at its own destinations: for a ping, `cap:` sources have no such bound.
        let open = |rule: &&Rule| {
            rule.admits_everyone(packet.family())
                && (!packet.is_icmp()
                    || rule
                        .destinations
                        .iter()
                        .any(|(p, _)| p.contains(packet.destination)))
        };
        let mut found = self.rules.iter().filter(matching);
        found.clone().find(open).or_else(|| found.next())
    }

    fn caps_of(&self, source: IpAddr) -> BTreeSet<&str> {
        let peers = self
            .input
            .peers
            .iter()
            .filter(|p| p.addresses.contains(&source));
        peers
            .flat_map(|p| p.caps.iter().map(String::as_str))
            .collect()
    }

    /// Whether the peer that this address belongs to is jailed.
    fn is_jailed(&self, address: IpAddr) -> bool {
        let owners = self.senders.iter().filter(|(p, _)| p.contains(address));
        let longest = owners.clone().map(|(p, _)| p.length()).max();
        owners
            .filter(|(p, _)| Some(p.length()) == longest)
            .any(|(_, jailed)| *jailed)
    }

    fn is_peer_api(&self, packet: &Packet) -> bool {
        packet.is_tcp_syn()
            && self.input.own_addresses.contains(&packet.destination)
            && self.input.peer_api_port == Some(packet.ports().1)
    }

    fn is_own_disco(&self, packet: &Packet) -> bool {
        let Some(own) = self.input.disco else {
            return false;
        };
        packet.protocol == UDP
            && !packet.later_fragment
            && packet.transport.get(8..).is_some_and(|payload| {
                payload.len() >= lowroad_abi::DISCO_MIN_LEN
                    && payload
                        .strip_prefix(&lowroad_abi::DISCO_MAGIC)
                        .is_some_and(|rest| rest.starts_with(&own))
            })
    }
}

fn holds(prefixes: &[Prefix], address: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(address))
}

/// Step 7: ports and protocols do not count, and a capability counts whatever the destination.
fn admits_icmp(rule: &Rule, packet: &Packet, caps: &BTreeSet<&str>) -> bool {
    let by_address = holds(&rule.sources, packet.source)
        && rule
            .destinations
            .iter()
            .any(|(p, _)| p.contains(packet.destination));
    let by_cap = || {
        rule.caps.iter().any(|c| caps.contains(c.as_str()))
            && rule
                .destinations
                .iter()
                .any(|(p, _)| p.family() == packet.family())
    };
    by_address || by_cap()
}

/// Step 7: answers and errors, which belong to something that we sent.
fn is_icmp_reply(packet: &Packet) -> bool {
    let [kind, code, ..] = *packet.transport else {
        return false;
    };
    packet.transport.len() >= 8
        && if packet.protocol == icmp_of(Family::V4) {
            (kind == 0 && code == 0) || matches!(kind, 3 | 11 | 18)
        } else {
            (kind == 129 && code == 0) || matches!(kind, 1..=4)
        }
}

/// Step 3.
fn forbidden_destination(destination: IpAddr) -> Option<DropReason> {
    let (address, mapped) = match destination {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => (IpAddr::V4(v4), true),
            None => (destination, false),
        },
        v4 => (v4, false),
    };
    if address.is_multicast() {
        return Some(DropReason::Multicast);
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() && (mapped || v4.octets() != METADATA),
        IpAddr::V6(v6) => is_link_local(v6),
    };
    link_local.then_some(DropReason::LinkLocalUnicast)
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Step 5: pings, disco keys and rejections, each with its smallest length.
fn is_for_agent(message: &[u8]) -> bool {
    match message {
        [b'p', ..] => message.len() >= 9,
        [b'a', ..] => message.len() >= 33,
        [b'!', _, reason, ..] => message.len() >= 7 && *reason != b'T',
        _ => false,
    }
}
