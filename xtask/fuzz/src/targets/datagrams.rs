//! Datagrams: disco, STUN, Geneve, TSMP.

use std::net::SocketAddr;

use lowroad_wire::{
    classify,
    control::{DerpMap, DerpNode, DerpRegion, RegionId},
    disco::{self, Envelope, Message, Ping, SharedKey, TxId},
    geneve::{self, Header, Protocol},
    key::{DiscoPrivate, NodePublic},
    stun, tsmp,
};

use crate::script::Script;

/// What is inside the box, and what tells apart what arrives on the port.
pub fn disco_message(input: &[u8]) {
    classify(input);
    if let Ok(message) = Message::parse(input) {
        let again = Message::parse(&message.encode()).expect("what was read can be written");
        assert_eq!(again, message);
    }
    if let Ok((header, _)) = Header::parse(input) {
        let bytes = header.encode();
        assert_eq!(Header::parse(&bytes).expect("our own"), (header, &[][..]));
    }
}

pub fn disco_message_seeds() -> Vec<Vec<u8>> {
    let tx = TxId([7; 12]);
    let node = Some(NodePublic::from_bytes([9; 32]));
    let addresses = vec![
        "198.51.100.7:41641".parse().expect("an address"),
        "[2001:db8::7]:1".parse().expect("an address"),
    ];
    let messages = [
        Message::Ping(Ping {
            tx,
            node,
            padding: 0,
        }),
        Message::Ping(Ping {
            tx,
            node: None,
            padding: 40,
        }),
        Message::Pong {
            tx,
            source: addresses[0],
        },
        Message::CallMeMaybe {
            endpoints: addresses,
        },
    ];
    let mut seeds: Vec<Vec<u8>> = messages.iter().map(Message::encode).collect();
    // The relay's messages: type, version, and enough bytes.
    seeds.extend((4..=9).map(|kind| [&[kind, 0][..], &[1; 220]].concat()));
    let header = |protocol| {
        Header {
            protocol,
            control: true,
            vni: 0x01_0203,
        }
        .encode()
        .to_vec()
    };
    seeds.extend([header(Protocol::Disco), header(Protocol::WireGuard)]);
    seeds
}

/// A sealed ping that was changed on its way never opens, an unchanged one does.
pub fn disco_box(input: &[u8]) {
    let (ours, theirs) = (
        DiscoPrivate::from_random([1; 32]),
        DiscoPrivate::from_random([2; 32]),
    );
    let sending = SharedKey::new(&theirs, &ours.public());
    let ping = Message::Ping(Ping {
        tx: TxId([3; 12]),
        node: None,
        padding: 16,
    });
    let right = disco::seal(theirs.public(), &sending, [4; 24], &ping);
    for changed in [input.to_vec(), change(&right, input)] {
        let Ok(envelope) = Envelope::parse(&changed) else {
            continue;
        };
        let opened = disco::open(&envelope, &SharedKey::new(&ours, &envelope.sender));
        assert_eq!(
            opened.ok(),
            (changed == right).then(|| ping.clone()),
            "only what was sealed opens"
        );
    }
}

pub fn disco_box_seeds() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![0; 60],
        disco::MAGIC.to_vec(),
        [&[0; 62][..], &[1]].concat(),
        [&disco::MAGIC[..], &[5; 90]].concat(),
    ]
}

/// `right` with `mask` laid over it, and longer if the mask is.
pub fn change(right: &[u8], mask: &[u8]) -> Vec<u8> {
    let mut out = right.to_vec();
    out.resize(right.len().max(mask.len()), 0);
    out.iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    out
}

/// Requests as a server takes them and responses as a client does, as they are and with the fingerprint put right.
pub fn stun_message(input: &[u8]) {
    let finished = with_fingerprint(input);
    for bytes in [input, &finished] {
        if let Ok(tx) = stun::parse_request(bytes) {
            assert_eq!(
                stun::parse_request(&stun::request(tx)).expect("our own"),
                tx
            );
        }
        if let Ok((tx, address)) = stun::parse_response(bytes) {
            let again = stun::parse_response(&stun::response(tx, address)).expect("our own");
            assert_eq!(again.0, tx);
            assert_eq!(again.1.ip().to_canonical(), address.ip().to_canonical());
            assert_eq!(again.1.port(), address.port());
        }
    }
}

pub fn stun_seeds() -> Vec<Vec<u8>> {
    let tx = TxId([5; 12]);
    let response = |text: &str| stun::response(tx, text.parse().expect("an address"));
    vec![
        stun::request(tx),
        stun::request(tx)[..32].to_vec(),
        response("198.51.100.7:9"),
        response("[2001:db8::1]:65535"),
    ]
}

/// The message with a right FINGERPRINT behind it and a right length, which no fuzzer finds by itself.
fn with_fingerprint(input: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    if out.len() < 20 {
        return out;
    }
    let length = u16::try_from(out.len() - 20 + 8).unwrap_or(u16::MAX);
    out[2..4].copy_from_slice(&length.to_be_bytes());
    let mut crc = u32::MAX;
    for byte in &out {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    out.extend_from_slice(&[0x80, 0x28, 0, 4]);
    out.extend_from_slice(&(!crc ^ 0x5354_554e).to_be_bytes());
    out
}

pub fn geneve_and_tsmp(input: &[u8]) {
    if let Ok((_, inner)) = Header::parse(input) {
        assert_eq!(inner.len() + geneve::HEADER_LEN, input.len());
        classify(inner);
    }
    let _ = tsmp::Message::parse(input);
    let Ok(packet) = tsmp::Packet::parse(input) else {
        return;
    };
    let bytes = packet
        .encode()
        .expect("both addresses are of the packet's family");
    assert_eq!(tsmp::Packet::parse(&bytes).expect("our own"), packet);
    if let Some(pong) = packet.answer(Some(1)) {
        pong.encode()
            .expect("an answer goes back the way the question came");
        assert!(pong.answer(None).is_none(), "answers are not answered");
    }
}

pub fn geneve_and_tsmp_seeds() -> Vec<Vec<u8>> {
    let packet = |source: &str, destination: &str, message| {
        let (source, destination) = (
            source.parse().expect("an address"),
            destination.parse().expect("an address"),
        );
        tsmp::Packet {
            source,
            destination,
            message,
        }
        .encode()
        .expect("one family")
    };
    let rejected = tsmp::Message::Rejected(tsmp::Rejected {
        protocol: 6,
        reason: tsmp::Reason::Acl,
        source_port: 4000,
        destination_port: 80,
        maybe_broken: true,
    });
    let ping = tsmp::Message::Ping([1; 8]);
    let pong = tsmp::Message::Pong {
        data: [1; 8],
        peer_api_port: 7,
    };
    let key = tsmp::Message::DiscoKey(DiscoPrivate::from_random([1; 32]).public());
    let mut seeds = vec![[&[0, 0, 0x7a, 0x11, 1, 2, 3, 0][..], &disco::MAGIC, &[0; 80]].concat()];
    for message in [rejected, ping, pong, key] {
        seeds.push(packet("100.64.0.1", "100.64.0.2", message));
        seeds.push(packet("fd7a::1", "fd7a::2", message));
    }
    seeds
}

/// Answers of STUN servers that were asked, and of others, at any time; and maps of relays that say anything, the first of them in JSON if there is a line of it.
pub fn netcheck(input: &[u8]) {
    use lowroad_core::netcheck::{Command, Config, Netcheck};
    use std::time::{Duration, Instant};
    let (map, rest) = foreign_map(input);
    let mut script = Script::new(rest);
    let mut now = Instant::now();
    let mut check = Netcheck::new(Config {
        port: 41641,
        seed: [1; 32],
        stable: 1,
    });
    check.set_map(now, &map.unwrap_or_else(super::netmaps::derp_map));
    check.start(now);
    let mut asked = Vec::new();
    while !script.is_empty() {
        match script.below(7) {
            0 => now += Duration::from_millis(script.word().into()),
            1 => drop(check.on_datagram(now, script.address(), script.bytes(200))),
            2 if !asked.is_empty() => {
                // As a server would, but with any address, and from anywhere.
                let (to, tx) = asked[script.below(asked.len())];
                let from = if script.flag() { to } else { script.address() };
                check.on_datagram(now, from, &stun::response(tx, script.address()));
            }
            3 => check.start(now),
            4 => check.on_timer(now),
            5 => {
                let regions = u16::from(script.byte());
                check.set_map(now, &many_relays(regions, script.address()));
            }
            _ => check.on_resolved(now, "derp.example", vec![script.address().ip()]),
        }
        let mut commands = 0;
        while let Some(command) = check.poll_command() {
            commands += 1;
            if let Command::Send { to, bytes, .. } = command
                && let Ok(tx) = stun::parse_request(&bytes)
            {
                asked.push((to, tx));
            }
        }
        // Two families of 64 regions, three tries each, when a timer is late; and the next round's first.
        assert!(commands < 600, "{commands} commands for one input");
        asked.truncate(64);
        check.report();
    }
    let mut turns = 0;
    while let Some(at) = check.next_deadline().filter(|_| turns < 500) {
        check.on_timer(at.max(now));
        while check.poll_command().is_some() {}
        now = now.max(at);
        turns += 1;
    }
    assert!(turns < 500, "timers run in circles");
}

/// The relays of a first line that is JSON.
fn foreign_map(input: &[u8]) -> (Option<DerpMap>, &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (line, rest) = input.split_at(end.unwrap_or(input.len()));
    match serde_json::from_slice(line) {
        Ok(map) => (Some(map), rest),
        Err(_) => (None, input),
    }
}

fn many_relays(regions: u16, at: SocketAddr) -> DerpMap {
    let region = |id: u16| {
        let node = DerpNode {
            host_name: format!("{}.example", id % 100),
            ipv4: at.ip().to_string(),
            stun_port: i32::from(at.port()) + i32::from(id),
            ..DerpNode::default()
        };
        let region = DerpRegion {
            region_id: RegionId(id),
            nodes: vec![node; usize::from(id % 7)],
            ..DerpRegion::default()
        };
        (RegionId(id), region)
    };
    DerpMap {
        regions: (1..=regions).map(region).collect(),
        ..DerpMap::default()
    }
}

pub fn netcheck_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![2, 0, 1, 0, 0, 0, 0, 200, 1, 2, 1, 1, 4, 0, 0],
        (0..120).collect(),
        vec![2; 64],
        vec![5, 1, 3, 2, 0, 1, 0, 0, 0, 0, 0, 255, 255, 4, 3],
        [super::netmaps::DERP_MAP.replace('\n', "").as_bytes(), b"\n", &[5, 0, 200, 4, 2]].concat(),
        br#"{"HomeParams":{"RegionScore":{"1":0,"2":1e300,"3":-1}},"Regions":{"1":{"Nodes":[{"HostName":"a","STUNPort":-1},{"IPv4":"none","STUNTestIP":"x"}]},"2":{"NoMeasureNoHome":true},"3":{"Nodes":[{"IPv4":"255.255.255.255","IPv6":"::","STUNPort":65535}]}}}
"#.to_vec(),
    ]
}
