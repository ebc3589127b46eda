//! Random rule sets and packets, from a small world in which they often meet.

use std::net::IpAddr;

use ipnet::IpNet;
use lowroad_core::filter::{Direction, Input, PeerFacts};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom as _};

use super::packets::{self, Ip};

const ADDRESSES: [&str; 14] = [
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "100.64.0.9",
    "100.127.255.254",
    "10.77.0.1",
    "10.77.3.2",
    "192.168.50.2",
    "fd7a:115c:a1e0::1",
    "fd7a:115c:a1e0::2",
    "fd7a:115c:a1e0::3",
    "fd7a:115c:a1e0::9",
    "2001:db8:7::2",
    "fd00::5",
];
/// Destinations that mean something of their own.
const ODD: [&str; 9] = [
    "169.254.169.254",
    "169.254.1.1",
    "224.0.0.251",
    "fe80::1",
    "ff02::1",
    "::ffff:100.64.0.1",
    "::ffff:224.0.0.1",
    "::ffff:169.254.169.254",
    "0.0.0.0",
];
const LOCAL: [&str; 7] = [
    "100.64.0.1/32",
    "fd7a:115c:a1e0::1/128",
    "10.77.0.0/24",
    "10.77.0.0/16",
    "2001:db8:7::/64",
    "0.0.0.0/0",
    "::/0",
];
const CAPS: [&str; 3] = ["example.com/a", "example.com/b", "example.com/none"];
const PORTS: [u16; 13] = [
    0, 1, 22, 53, 79, 80, 81, 443, 1023, 1024, 8080, 65534, 65535,
];
const PROTOCOLS: [u8; 13] = [6, 17, 132, 1, 58, 99, 47, 50, 2, 0, 255, 44, 60];
pub const DISCO: [u8; 32] = [0xd5; 32];

fn pick<T: Clone>(rng: &mut StdRng, from: &[T]) -> T {
    from.choose(rng).expect("not empty").clone()
}

fn address(rng: &mut StdRng) -> IpAddr {
    pick(rng, &ADDRESSES).parse().expect("address")
}

/// Some of a list.
fn some<T>(rng: &mut StdRng, most: usize, mut one: impl FnMut(&mut StdRng) -> T) -> Vec<T> {
    let count = rng.random_range(0..=most);
    (0..count).map(|_| one(rng)).collect()
}

pub fn input(rng: &mut StdRng) -> Input {
    Input {
        rules: some(rng, 12, rule),
        local: std::iter::once("100.64.0.1/32")
            .chain(some(rng, 4, |rng| pick(rng, &LOCAL)))
            .map(|n| n.parse().expect("prefix"))
            .collect(),
        peers: some(rng, 4, peer),
        own_addresses: vec![
            ADDRESSES[0].parse().expect("address"),
            ADDRESSES[8].parse().expect("address"),
        ],
        peer_api_port: rng.random_bool(0.5).then_some(8080),
        shields_up: rng.random_bool(0.1),
        disco: rng.random_bool(0.7).then_some(DISCO),
    }
}

fn peer(rng: &mut StdRng) -> PeerFacts {
    let addresses = some(rng, 2, address);
    let mut allowed_ips: Vec<IpNet> = addresses.iter().map(|a| IpNet::from(*a)).collect();
    if rng.random_bool(0.3) {
        allowed_ips.push(prefix(rng));
    }
    PeerFacts {
        addresses,
        allowed_ips,
        caps: some(rng, 2, |rng| pick(rng, &CAPS).to_owned())
            .into_iter()
            .collect(),
        jailed: rng.random_bool(0.1),
        unsigned_peer_api_only: rng.random_bool(0.02),
    }
}

fn prefix(rng: &mut StdRng) -> IpNet {
    let address = address(rng);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = pick(rng, &[0, 8, 10, 16, 24, 30, 31, 64, 120, 127, 128]).min(bits);
    IpNet::new(address, length).expect("a right length").trunc()
}

fn source(rng: &mut StdRng) -> String {
    match rng.random_range(0..10) {
        0 => "*".to_owned(),
        1 => format!("cap:{}", pick(rng, &CAPS)),
        _ => destination(rng),
    }
}

fn destination(rng: &mut StdRng) -> String {
    match rng.random_range(0..20) {
        0..2 => "*".to_owned(),
        2..5 => format!("{}-{}", address(rng), address(rng)),
        5..10 => prefix(rng).to_string(),
        10 => "10.77.0.1/8".to_owned(),
        11 => "nonsense".to_owned(),
        _ => address(rng).to_string(),
    }
}

fn rule(rng: &mut StdRng) -> FilterRule {
    FilterRule {
        src_ips: some(rng, 4, source),
        dst_ports: some(rng, 4, |rng| NetPortRange {
            ip: destination(rng),
            ports: port_range(rng),
        }),
        ip_proto: if rng.random_bool(0.5) {
            Vec::new()
        } else {
            some(rng, 4, |rng| {
                pick(rng, &[6, 17, 132, 1, 58, 47, 50, 99, 2, 60, 256, -1])
            })
        },
        ..FilterRule::default()
    }
}

fn port_range(rng: &mut StdRng) -> PortRange {
    match rng.random_range(0..4) {
        0 | 1 => PortRange::ANY,
        2 => {
            let port = pick(rng, &PORTS);
            PortRange {
                first: port,
                last: port,
            }
        }
        _ => PortRange {
            first: pick(rng, &PORTS),
            last: pick(rng, &PORTS),
        },
    }
}

/// A packet; sometimes the answer to one of `sent`.
pub fn packet(rng: &mut StdRng, sent: &mut Vec<Ip>) -> (Direction, Vec<u8>) {
    if rng.random_bool(0.2) && !sent.is_empty() {
        return (Direction::In, answer(&pick(rng, sent)).bytes());
    }
    let mut ip = plain(rng);
    let direction = if rng.random_bool(0.3) {
        Direction::Out
    } else {
        Direction::In
    };
    if direction == Direction::Out {
        if rng.random_bool(0.8) {
            // What comes from this node, so that answers are for it.
            std::mem::swap(&mut ip.source, &mut ip.destination);
        }
        if sent.len() < 50 && ip.fragment.is_none() {
            sent.push(ip.clone());
        }
    }
    let mut bytes = ip.bytes();
    if rng.random_bool(0.05) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
    }
    if rng.random_bool(0.05) {
        bytes.truncate(rng.random_range(14..=bytes.len()));
    }
    (direction, bytes)
}

/// Ends and ports swapped.
fn answer(sent: &Ip) -> Ip {
    let mut out = sent.clone();
    std::mem::swap(&mut out.source, &mut out.destination);
    if matches!(out.protocol, 6 | 17 | 132) && out.payload.len() >= 4 {
        out.payload[..4].rotate_left(2);
    }
    out
}

fn plain(rng: &mut StdRng) -> Ip {
    let mut source = address(rng);
    let mut destination: IpAddr = match rng.random_range(0..10) {
        0 => pick(rng, &ODD).parse().expect("address"),
        1..7 => pick(
            rng,
            &[ADDRESSES[0], ADDRESSES[5], ADDRESSES[8], ADDRESSES[12]],
        )
        .parse()
        .expect("address"),
        _ => address(rng),
    };
    if source.is_ipv4() != destination.is_ipv4() {
        let of_family =
            |a: &&str| a.parse::<IpAddr>().expect("address").is_ipv4() == destination.is_ipv4();
        let same: Vec<&str> = ADDRESSES.iter().copied().filter(of_family).collect();
        source = pick(rng, &same).parse().expect("address");
    }
    if rng.random_bool(0.02) {
        std::mem::swap(&mut source, &mut destination);
    }
    let protocol = if rng.random_bool(0.7) {
        pick(rng, &PROTOCOLS[..5])
    } else {
        pick(rng, &PROTOCOLS)
    };
    let mut ip = Ip::between(source, destination, protocol, &payload(rng, protocol));
    if rng.random_bool(0.1) {
        ip.options = rng.random_range(1..=10);
    }
    if rng.random_bool(0.1) {
        ip.fragment = Some((
            pick(rng, &[0, 0, 1, 9, 10, 11, 100, 8191]),
            rng.random_bool(0.5),
        ));
    }
    if rng.random_bool(0.05) {
        ip.lie = pick(rng, &[-30, -8, -1, 1, 8]);
    }
    if rng.random_bool(0.1) {
        ip.trailing = rng.random_range(1..20);
    }
    ip
}

fn payload(rng: &mut StdRng, protocol: u8) -> Vec<u8> {
    let (a, b) = (pick(rng, &PORTS), pick(rng, &PORTS));
    let mut out = match protocol {
        6 => packets::tcp(
            a,
            b,
            pick(rng, &[2, 2, 2, 0x12, 0x10, 0x42, 0xc2, 4, 0, 0xff]),
        ),
        17 if rng.random_bool(0.1) => {
            let sender = pick(rng, &[DISCO, [0; 32]]);
            packets::udp(a, b, &packets::disco(sender))
        }
        17 => packets::udp(a, b, b"payload"),
        132 => packets::sctp(a, b),
        1 | 58 => packets::icmp(
            pick(rng, &[0, 1, 2, 3, 4, 5, 8, 11, 12, 18, 128, 129, 133]),
            pick(rng, &[0, 0, 0, 1]),
        ),
        99 => {
            let mut out = vec![pick(rng, b"pa!oTx"), 6, pick(rng, b"ASTW")];
            out.resize(pick(rng, &[7, 8, 9, 32, 33, 40]), 0);
            out
        }
        _ => vec![0; rng.random_range(0..40)],
    };
    if rng.random_bool(0.05) {
        out.truncate(rng.random_range(0..=out.len()));
    }
    out
}
