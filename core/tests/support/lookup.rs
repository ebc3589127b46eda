//! The compiled tables, looked up as the kernel programs do.

use std::{collections::HashMap, net::IpAddr};

use lowroad_abi::{Address, Class, Side};
use lowroad_core::filter::{Compiled, PairKey, PortKey, RuleId, Service};

/// What the tables call no rule.
const NO_RULE: u64 = 0;

pub struct Lookup<'a> {
    compiled: &'a Compiled,
    hosts: HashMap<Address, Class>,
    prefixes: HashMap<(u32, Address), Class>,
    ports: HashMap<PortKey, Service>,
    pairs: HashMap<PairKey, u64>,
}

impl<'a> Lookup<'a> {
    pub fn new(compiled: &'a Compiled) -> Self {
        let tables = &compiled.tables;
        Self {
            compiled,
            hosts: tables.hosts.iter().copied().collect(),
            prefixes: tables
                .prefixes
                .iter()
                .map(|(n, a, c)| ((*n, *a), *c))
                .collect(),
            ports: tables.ports.iter().copied().collect(),
            pairs: tables.pairs.iter().copied().collect(),
        }
    }

    /// What the tables call a rule.
    pub fn key(&self, id: Option<RuleId>) -> u64 {
        let Some(id) = id else { return NO_RULE };
        let rule = self.compiled.rules.iter().find(|rule| rule.id == id);
        rule.expect("a rule in force").key
    }

    fn class(&self, side: Side, address: IpAddr) -> Class {
        let (family, bits, bytes) = match address {
            IpAddr::V4(a) => (4, 32, u128::from(u32::from(a)) << 96),
            IpAddr::V6(a) => (6, 128, u128::from(a)),
        };
        let exact = Address::new(side, family, bytes.to_be_bytes());
        let within = |length: u32| {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            let address = Address::new(side, family, (bytes & mask).to_be_bytes());
            self.prefixes.get(&(Address::TAG_BITS + length, address))
        };
        let longest = || (0..=bits).rev().find_map(within);
        self.hosts
            .get(&exact)
            .or_else(longest)
            .copied()
            .unwrap_or_default()
    }

    /// Key of the rule that admits a whole inbound packet.
    pub fn rule(&self, packet: &[u8]) -> u64 {
        let header = Header::of(packet);
        let destination = self.class(Side::Destination, header.destination);
        let service = (0..=16u32).rev().find_map(|bits| {
            let port = header.port & u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            self.ports.get(&PortKey {
                bits,
                class: destination.number(),
                protocol: header.protocol,
                port,
            })
        });
        match service {
            None => NO_RULE,
            Some(Service::Everybody(rule)) => *rule,
            Some(Service::Number(service)) => {
                let pair = PairKey {
                    source: self.class(Side::Source, header.source).number(),
                    service: *service,
                };
                self.pairs.get(&pair).copied().unwrap_or(NO_RULE)
            }
        }
    }
}

/// Of packets that the reference found whole.
struct Header {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
}

impl Header {
    fn of(packet: &[u8]) -> Self {
        let v4 = |at: usize| -> IpAddr {
            let octets: [u8; 4] = packet[at..at + 4].try_into().expect("four bytes");
            octets.into()
        };
        let v6 = |at: usize| -> IpAddr {
            let octets: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
            octets.into()
        };
        let (source, destination, protocol, transport) = match packet[0] >> 4 {
            4 => (v4(12), v4(16), packet[9], usize::from(packet[0] & 15) * 4),
            _ if packet[6] == 44 => (v6(8), v6(24), packet[40], 48),
            _ => (v6(8), v6(24), packet[6], 40),
        };
        let port = match protocol {
            6 | 17 | 132 => u16::from_be_bytes([packet[transport + 2], packet[transport + 3]]),
            _ => 0,
        };
        Self {
            source,
            destination,
            protocol,
            port,
        }
    }
}
