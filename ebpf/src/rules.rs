//! Lookups in a rule set's tables: three at most for each end, however many rules there are.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lowroad_abi::{Address, Class, NO_RULE, PairKey, PortKey, Service, Side};

use crate::{
    packet::{Packet, SCTP, TCP, UDP},
    tables::{HOSTS, PAIRS, PORTS, PREFIXES},
};

/// What an address is: as a host of its own, else by the longest prefix around it, else nothing.
#[inline(always)]
pub fn class(slot: u32, side: Side, family: u8, bytes: [u8; 16]) -> Class {
    let address = Address::new(side, family, bytes);
    if let Some(hosts) = HOSTS.get(slot) {
        // SAFETY: rule sets are not changed while a program may look at them (`lowroad_abi::SLOTS`).
        if let Some(class) = unsafe { hosts.get(&address) } {
            return Class::from_words(*class);
        }
    }
    if let Some(prefixes) = PREFIXES.get(slot) {
        if let Some(class) = prefixes.get(&Key::new(Address::TAG_BITS + 128, address)) {
            return Class::from_words(*class);
        }
    }
    Class::new(0, 0)
}

#[inline(always)]
pub fn source_class(slot: u32, packet: &Packet) -> Class {
    class(slot, Side::Source, packet.tuple.family, packet.tuple.source)
}

#[inline(always)]
pub fn destination_class(slot: u32, packet: &Packet) -> Class {
    class(
        slot,
        Side::Destination,
        packet.tuple.family,
        packet.tuple.destination,
    )
}

/// Key of the rule that admits the packet to this class of destinations, or [`NO_RULE`].
#[inline(always)]
pub fn admitting(slot: u32, packet: &Packet, destination: Class) -> u64 {
    let Some(ports) = PORTS.get(slot) else {
        return NO_RULE;
    };
    let port = match packet.tuple.protocol {
        TCP | UDP | SCTP => packet.tuple.destination_port,
        _ => [0; 2],
    };
    let key = PortKey::new(destination.number(), packet.tuple.protocol, port);
    let Some(words) = ports.get(&Key::new(PortKey::ANY_PORT_BITS + 16, key)) else {
        return NO_RULE;
    };
    let service = Service::from_words(*words);
    if service.any() != NO_RULE {
        return service.any();
    }
    let Some(pairs) = PAIRS.get(slot) else {
        return NO_RULE;
    };
    let pair = PairKey::new(source_class(slot, packet).number(), service.number());
    // SAFETY: as above.
    match unsafe { pairs.get(&pair) } {
        Some(rule) => *rule,
        None => NO_RULE,
    }
}
