//! What every codec has to hold for all inputs: a round trip loses nothing, and strangers' bytes never panic.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use lowroad_wire::{
    Kind, classify,
    control::{FilterRule, MapRequest, MapResponse, Node, RegisterRequest},
    derp::{self, Codec, Frame, GoneReason},
    disco::{self, AllocateRelay, Bind, Envelope, Message, Ping, RelayEndpoint, SharedKey, TxId},
    framing::{self, Compression, MessageReader},
    geneve,
    key::{DiscoPrivate, DiscoPublic, MachinePrivate, NodePrivate, NodePublic},
    netmap::NetMap,
    noise::{self, Channel, Initiator},
    stun, tsmp,
};
use proptest::{collection::vec, option, prelude::*};
use time::OffsetDateTime;
use tokio_util::codec::{Decoder, Encoder};

proptest! {
    #[test]
    fn a_disco_message_survives_sealing_and_opening(
        message in disco_message(),
        nonce in any::<[u8; 24]>(),
        [own, peer] in [any::<[u8; 32]>(), any::<[u8; 32]>()],
    ) {
        let [own, peer] = [own, peer].map(DiscoPrivate::from_random);
        let packet = disco::seal(own.public(), &SharedKey::new(&own, &peer.public()), nonce, &message);
        prop_assert_eq!(classify(&packet), Kind::Disco);
        let envelope = Envelope::parse(&packet).unwrap();
        prop_assert_eq!(envelope.sender, own.public());
        prop_assert_eq!(disco::open(&envelope, &SharedKey::new(&peer, &own.public())).unwrap(), message);
    }

    #[test]
    fn a_changed_disco_packet_does_not_open(flip in 62_usize..100, bit in 0..8) {
        let [own, peer] = [[1; 32], [2; 32]].map(DiscoPrivate::from_random);
        let message = Message::Ping(Ping { tx: TxId([3; 12]), node: Some(NodePublic::from_bytes([4; 32])), padding: 0 });
        let mut packet = disco::seal(own.public(), &SharedKey::new(&own, &peer.public()), [5; 24], &message);
        packet[flip] ^= 1_u8 << bit;
        let envelope = Envelope::parse(&packet).unwrap();
        prop_assert!(disco::open(&envelope, &SharedKey::new(&peer, &own.public())).is_err());
    }

    #[test]
    fn a_claimed_length_takes_no_memory(length in 0_u32..=1 << 20, come in 0_usize..70_000) {
        let (mut codec, mut input) = (Codec::client(), BytesMut::new());
        input.extend_from_slice(&[0x04]);
        input.extend_from_slice(&length.to_be_bytes());
        input.resize(input.len() + come.min(length as usize) / 2, 0);
        let _ = codec.decode(&mut input);
        prop_assert!(input.capacity() <= 2 * (come + 64 * 1024 + 5), "{}", input.capacity());
    }

    #[test]
    fn a_derp_frame_survives_the_codec_however_the_stream_is_cut(frames in vec(frame(), 1..6), cut in 1_usize..40) {
        let (mut codec, mut stream) = (Codec::client(), BytesMut::new());
        for frame in &frames {
            codec.encode(frame.clone(), &mut stream).unwrap();
        }
        let (mut input, mut got) = (BytesMut::new(), Vec::new());
        for chunk in stream.chunks(cut) {
            input.extend_from_slice(chunk);
            while let Some(frame) = codec.decode(&mut input).unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, frames);
        prop_assert!(input.is_empty());
    }

    #[test]
    fn stun_tells_the_address_that_it_was_given(tx in any::<[u8; 12]>(), address in address()) {
        let tx = TxId(tx);
        prop_assert_eq!(stun::parse_response(&stun::response(tx, address)).unwrap(), (tx, address));
        prop_assert_eq!(stun::parse_request(&stun::request(tx)).unwrap(), tx);
    }

    #[test]
    fn a_changed_stun_request_is_refused(tx in any::<[u8; 12]>(), flip in 8_usize..40, bit in 0..8) {
        let mut request = stun::request(TxId(tx));
        request[flip] ^= 1_u8 << bit;
        prop_assert!(stun::parse_request(&request).is_err());
    }

    #[test]
    fn a_tsmp_packet_survives_a_round_trip(packet in tsmp_packet()) {
        prop_assert_eq!(tsmp::Packet::parse(&packet.encode().unwrap()).unwrap(), packet);
    }

    #[test]
    fn a_geneve_header_survives_a_round_trip(vni in 0..=geneve::MAX_VNI, control: bool, is_disco: bool) {
        let protocol = if is_disco { geneve::Protocol::Disco } else { geneve::Protocol::WireGuard };
        let header = geneve::Header { protocol, control, vni };
        let bytes = header.encode();
        prop_assert_eq!(geneve::Header::parse(&bytes).unwrap().0, header);
        prop_assert_eq!(classify(&bytes), Kind::Geneve);
    }

    #[test]
    fn what_goes_into_the_channel_comes_out_however_it_is_cut(
        messages in vec(vec(any::<u8>(), 0..9000), 1..4),
        cut in 1_usize..5000,
    ) {
        let (mut client, mut server) = channel();
        let mut sealed = BytesMut::new();
        for message in &messages {
            client.seal(message, &mut sealed).unwrap();
        }
        let (mut input, mut got) = (BytesMut::new(), Vec::new());
        for chunk in sealed.chunks(cut) {
            input.extend_from_slice(chunk);
            while let Some(plain) = server.open(&mut input).unwrap() {
                prop_assert!(!plain.is_empty() && plain.len() <= noise::MAX_PLAINTEXT);
                got.extend_from_slice(&plain);
            }
        }
        prop_assert_eq!(got, messages.concat());
    }

    #[test]
    fn map_messages_survive_framing(messages in vec(vec(any::<u8>(), 0..3000), 0..5), zstd: bool, cut in 1_usize..999) {
        let compression = if zstd { Compression::Zstd } else { Compression::None };
        let stream: Vec<u8> = messages.iter().flat_map(|json| framing::encode(json, compression).unwrap()).collect();
        let (mut reader, mut got) = (MessageReader::new(compression), Vec::new());
        for chunk in stream.chunks(cut) {
            reader.push(chunk);
            loop {
                let is_complete = reader.is_complete();
                let message = reader.next_message().unwrap();
                prop_assert_eq!(is_complete, message.is_some());
                let Some(message) = message else { break };
                got.push(message.to_vec());
            }
        }
        prop_assert_eq!(got, messages);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in strange_bytes()) {
        classify(&bytes);
        let key = SharedKey::new(&DiscoPrivate::from_random([1; 32]), &DiscoPublic::from_bytes([2; 32]));
        let _ = Envelope::parse(&bytes).map(|envelope| disco::open(&envelope, &key));
        let _ = Message::parse(&bytes);
        let _ = stun::parse_request(&bytes);
        let _ = stun::parse_response(&bytes);
        let _ = geneve::Header::parse(&bytes);
        let _ = tsmp::Packet::parse(&bytes);
        let _ = tsmp::Message::parse(&bytes);
        let node = NodePrivate::from_random([1; 32]);
        let _ = derp::open_client_info(&node, &NodePublic::ZERO, &bytes);
        let _ = derp::open_server_info(&node, &NodePublic::ZERO, &bytes);
        for mut codec in [Codec::client(), Codec::server()] {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = codec.decode(&mut input) {}
        }
        let control = MachinePrivate::from_random([1; 32]);
        let _ = noise::respond(&bytes, &control, [2; 32]);
        let (initiator, _) = Initiator::new(130, &control, &control.public(), [3; 32]).unwrap();
        let _ = initiator.finish(&bytes);
        let _ = channel().0.open(&mut BytesMut::from(&bytes[..]));
        let _ = noise::read_early(&mut BytesMut::from(&bytes[..]));
        for compression in [Compression::None, Compression::Zstd] {
            let mut reader = MessageReader::new(compression);
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_message() {}
        }
        parse_json(&bytes);
    }

    #[test]
    fn arbitrary_json_in_the_place_of_any_field_never_panics(name in field_name(), value in json(), inner in field_name()) {
        let whole = format!(r#"{{"{name}":{value},"Node":{{"ID":1,"{inner}":{value}}},"Peers":[{{"{inner}":{value}}},{value}]}}"#);
        parse_json(whole.as_bytes());
    }
}

fn parse_json(bytes: &[u8]) {
    if let Ok((response, malformed)) = MapResponse::parse(bytes) {
        assert!(malformed.len() <= 32);
        NetMap::default().apply(response, OffsetDateTime::UNIX_EPOCH);
    }
    let _ = serde_json::from_slice::<MapRequest>(bytes);
    let _ = serde_json::from_slice::<RegisterRequest>(bytes);
    let _ = serde_json::from_slice::<Node>(bytes);
    let _ = serde_json::from_slice::<FilterRule>(bytes);
}

/// Both ends after a handshake.
fn channel() -> (Channel, Channel) {
    let [machine, control] = [[1; 32], [2; 32]].map(MachinePrivate::from_random);
    let (initiator, initiation) =
        Initiator::new(130, &machine, &control.public(), [3; 32]).expect("the keys are good");
    let (peer, response, server) =
        noise::respond(&initiation, &control, [4; 32]).expect("it was just made");
    assert_eq!(
        peer,
        noise::Peer {
            machine: machine.public(),
            version: 130
        }
    );
    (
        initiator.finish(&response).expect("it was just made"),
        server,
    )
}

/// Bytes that get past the first look of one decoder or another.
fn strange_bytes() -> impl Strategy<Value = Vec<u8>> {
    let beginnings: Vec<Vec<u8>> = vec![
        vec![],
        disco::MAGIC.to_vec(),
        vec![0, 1, 0, 20, 0x21, 0x12, 0xa4, 0x42],
        vec![1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42],
        vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 99],
        vec![0x60, 0, 0, 0, 0, 9, 99, 64],
        vec![4, 0, 16],
        vec![0, 130, 1, 0, 96],
        b"\xff\xff\xffTS\0\0\0".to_vec(),
        vec![0x28, 0xb5, 0x2f, 0xfd],
        br#"{"Peers":["#.to_vec(),
        vec![5, 0, 0, 0],
        vec![0x01, 0, 0, 0, 40],
    ];
    (prop::sample::select(beginnings), vec(any::<u8>(), 0..200)).prop_map(|(mut bytes, rest)| {
        bytes.extend(rest);
        bytes
    })
}

fn field_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "Node",
        "DERPMap",
        "Peers",
        "PeersChanged",
        "PeersRemoved",
        "PeersChangedPatch",
        "PeerSeenChange",
        "OnlineChange",
        "DNSConfig",
        "PacketFilter",
        "PacketFilters",
        "UserProfiles",
        "Health",
        "DisplayMessages",
        "ControlTime",
        "Debug",
        "PingRequest",
        "KeepAlive",
        "Domain",
        "ID",
        "Key",
        "KeyExpiry",
        "Addresses",
        "AllowedIPs",
        "Endpoints",
        "HomeDERP",
        "DERP",
        "Hostinfo",
        "Cap",
        "CapMap",
        "Online",
        "LastSeen",
        "Tags",
        "PrimaryRoutes",
        "Machine",
        "DiscoKey",
        "Regions",
        "SrcIPs",
        "DstPorts",
        "IPProto",
        "CapGrant",
        "Version",
        "Expiry",
        "Auth",
        "Created",
        "User",
    ])
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        Just("1e400".to_owned()),
        "[a-z0-9.:/<>-]{0,12}".prop_map(|text| format!("\"{text}\"")),
        Just("\"0001-01-01T00:00:00Z\"".to_owned()),
        Just("\"9999-12-31T23:59:59Z\"".to_owned()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((field_name(), inner), 0..4).prop_map(|fields| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("\"{name}\":{value}"))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    // An IPv4-mapped address means the IPv4 one.
    any::<SocketAddr>()
        .prop_map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn disco_key() -> impl Strategy<Value = DiscoPublic> {
    any::<[u8; 32]>().prop_map(DiscoPublic::from_bytes)
}

fn node_key() -> impl Strategy<Value = NodePublic> {
    any::<[u8; 32]>().prop_map(NodePublic::from_bytes)
}

fn bind() -> impl Strategy<Value = Bind> {
    (any::<u32>(), any::<u32>(), disco_key(), any::<[u8; 32]>()).prop_map(
        |(vni, generation, remote, challenge)| Bind {
            vni,
            generation,
            remote,
            challenge,
        },
    )
}

fn relay() -> impl Strategy<Value = RelayEndpoint> {
    let lifetime = || any::<u64>().prop_map(Duration::from_nanos);
    (
        disco_key(),
        [disco_key(), disco_key()],
        any::<u64>(),
        any::<u32>(),
        lifetime(),
        lifetime(),
        vec(address(), 1..5),
    )
        .prop_map(
            |(server, clients, lamport_id, vni, bind_lifetime, steady_lifetime, addresses)| {
                RelayEndpoint {
                    server,
                    clients,
                    lamport_id,
                    vni,
                    bind_lifetime,
                    steady_lifetime,
                    addresses,
                }
            },
        )
}

fn disco_message() -> impl Strategy<Value = Message> {
    let tx = || any::<[u8; 12]>().prop_map(TxId);
    prop_oneof![
        (tx(), node_key(), 0_usize..1300).prop_map(|(tx, node, padding)| Message::Ping(Ping {
            tx,
            node: Some(node),
            padding
        })),
        tx().prop_map(|tx| Message::Ping(Ping {
            tx,
            node: None,
            padding: 0
        })),
        (tx(), address()).prop_map(|(tx, source)| Message::Pong { tx, source }),
        vec(address(), 0..20).prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
        bind().prop_map(Message::BindRelay),
        bind().prop_map(Message::BindRelayChallenge),
        bind().prop_map(Message::BindRelayAnswer),
        relay().prop_map(Message::CallMeMaybeVia),
        ([disco_key(), disco_key()], any::<u32>()).prop_map(|(clients, generation)| {
            Message::AllocateRelay(AllocateRelay {
                clients,
                generation,
            })
        }),
        (any::<u32>(), relay()).prop_map(|(generation, endpoint)| Message::RelayAllocated {
            generation,
            endpoint
        }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let bytes = || vec(any::<u8>(), 0..1500).prop_map(Bytes::from);
    let milliseconds = || any::<u32>().prop_map(|number| Duration::from_millis(number.into()));
    prop_oneof![
        node_key().prop_map(Frame::ServerKey),
        (node_key(), bytes()).prop_map(|(key, sealed)| Frame::ClientInfo { key, sealed }),
        bytes().prop_map(|sealed| Frame::ServerInfo { sealed }),
        (node_key(), bytes()).prop_map(|(to, packet)| Frame::SendPacket { to, packet }),
        (node_key(), bytes()).prop_map(|(from, packet)| Frame::RecvPacket { from, packet }),
        (node_key(), node_key(), bytes()).prop_map(|(from, to, packet)| Frame::ForwardPacket {
            from,
            to,
            packet
        }),
        Just(Frame::KeepAlive),
        any::<bool>().prop_map(Frame::NotePreferred),
        (node_key(), any::<u8>()).prop_map(|(key, reason)| Frame::PeerGone {
            key,
            reason: GoneReason::from(reason)
        }),
        (node_key(), option::of((address(), any::<u8>()))).prop_map(|(key, rest)| {
            Frame::PeerPresent {
                key,
                address: rest.map(|(address, _)| address),
                flags: rest.map_or(0, |(_, flags)| flags),
            }
        }),
        Just(Frame::WatchConns),
        node_key().prop_map(Frame::ClosePeer),
        any::<[u8; 8]>().prop_map(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Pong),
        ".{0,80}".prop_map(Frame::Health),
        (milliseconds(), milliseconds()).prop_map(|(reconnect_in, try_for)| Frame::Restarting {
            reconnect_in,
            try_for
        }),
        (0x20_u8..).prop_map(Frame::Unknown),
    ]
}

fn tsmp_packet() -> impl Strategy<Value = tsmp::Packet> {
    use tsmp::{Message, Packet, Reason, Rejected};
    let message = prop_oneof![
        any::<[u8; 8]>().prop_map(Message::Ping),
        any::<([u8; 8], u16)>().prop_map(|(data, peer_api_port)| Message::Pong {
            data,
            peer_api_port
        }),
        any::<(u8, u8, u16, u16, bool)>().prop_map(
            |(protocol, reason, source_port, destination_port, maybe_broken)| {
                Message::Rejected(Rejected {
                    protocol,
                    reason: Reason::from(reason),
                    source_port,
                    destination_port,
                    maybe_broken,
                })
            }
        ),
        disco_key().prop_map(Message::DiscoKey),
    ];
    let addresses = prop_oneof![
        any::<[std::net::Ipv4Addr; 2]>().prop_map(|pair| pair.map(std::net::IpAddr::V4)),
        any::<[std::net::Ipv6Addr; 2]>().prop_map(|pair| pair.map(std::net::IpAddr::V6)),
    ];
    (addresses, message).prop_map(|([source, destination], message)| Packet {
        source,
        destination,
        message,
    })
}
