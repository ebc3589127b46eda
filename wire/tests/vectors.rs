//! Our codecs against bytes that the stock code wrote (`samples/vectors/codecs.json`).

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "support/samples.rs"]
mod samples;

use std::time::Duration;

use lowroad_wire::{
    Kind, classify,
    disco::{self, AllocateRelay, Bind, Envelope, Message, Ping, RelayEndpoint, SharedKey, TxId},
    geneve,
    key::{DiscoPrivate, DiscoPublic, NodePublic},
    stun, tsmp,
};
use serde_json::Value;

const TX: TxId = TxId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

#[test]
fn disco_messages_are_what_the_stock_code_reads_and_writes() {
    let Some(vectors) = vectors() else { return };
    let vectors = &vectors["disco"];
    let [sender, receiver] = ["sender_private", "receiver_private"]
        .map(|name| DiscoPrivate::from_bytes(bytes(&vectors[name]).try_into().unwrap()));
    assert_eq!(sender.public().to_string(), vectors["sender_public"]);
    assert_eq!(receiver.public().to_string(), vectors["receiver_public"]);
    let (sending, receiving) = (
        SharedKey::new(&sender, &receiver.public()),
        SharedKey::new(&receiver, &sender.public()),
    );
    let node = vectors["node_key"].as_str().unwrap().parse().unwrap();
    let messages = vectors["messages"].as_object().unwrap();
    assert!(messages.len() >= 12);
    for (name, vector) in messages {
        let (plain, packet) = (bytes(&vector["plain"]), bytes(&vector["packet"]));
        let message = Message::parse(&plain).unwrap();
        assert_eq!(
            message,
            expected_disco(name, node, sender.public(), receiver.public()),
            "{name}"
        );
        assert_eq!(message.encode(), plain, "{name}");

        assert_eq!(classify(&packet), Kind::Disco, "{name}");
        let envelope = Envelope::parse(&packet).unwrap();
        assert_eq!(envelope.sender, sender.public(), "{name}");
        assert_eq!(
            disco::open(&envelope, &receiving).unwrap(),
            message,
            "{name}"
        );
        assert_eq!(
            disco::seal(sender.public(), &sending, envelope.nonce, &message),
            packet,
            "{name}"
        );
    }
}

#[test]
fn stun_is_what_the_stock_code_reads_and_writes() {
    let Some(vectors) = vectors() else { return };
    let vectors = &vectors["stun"];
    let request = bytes(&vectors["request"]);
    assert_eq!(stun::request(TX), request);
    assert_eq!(stun::parse_request(&request).unwrap(), TX);
    assert_eq!(classify(&request), Kind::Stun);
    for name in ["response_v4", "response_v6"] {
        let (response, address) = (bytes(&vectors[name]["hex"]), &vectors[name]["addr"]);
        let address = address.as_str().unwrap().parse().unwrap();
        assert_eq!(stun::response(TX, address), response, "{name}");
        assert_eq!(
            stun::parse_response(&response).unwrap(),
            (TX, address),
            "{name}"
        );
        assert_eq!(classify(&response), Kind::Stun);
    }
}

#[test]
fn tsmp_packets_are_what_the_stock_code_reads_and_writes() {
    use tsmp::{Message::*, Packet, Reason, Rejected};
    let Some(vectors) = vectors() else { return };
    let vectors = vectors["tsmp"].as_object().unwrap();
    let rejected = |reason, maybe_broken| {
        Rejected(Rejected {
            protocol: 6,
            reason,
            source_port: 5555,
            destination_port: 80,
            maybe_broken,
        })
    };
    let data = [1, 2, 3, 4, 5, 6, 7, 8];
    for (name, vector) in vectors {
        let packet = bytes(vector);
        let parsed = Packet::parse(&packet).unwrap();
        let message = match name.as_str() {
            "ping_v4" => Ping(data),
            "pong_v4" => Pong {
                data,
                peer_api_port: 4242,
            },
            "reject_v4_acl" => rejected(Reason::Acl, false),
            "reject_v4_forwarding_maybe" => rejected(Reason::ForwardingOff, true),
            "reject_v6_shields" => rejected(Reason::ShieldsUp, false),
            other => panic!("what is {other}?"),
        };
        assert_eq!(parsed.message, message, "{name}");
        assert_eq!(
            hex::encode(parsed.encode().unwrap()),
            hex::encode(packet),
            "{name}"
        );
    }
    let [ping, pong] =
        ["ping_v4", "pong_v4"].map(|name| Packet::parse(&bytes(&vectors[name])).unwrap());
    assert_eq!(ping.answer(Some(4242)), Some(pong));
    assert_eq!(pong.answer(Some(4242)), None);
}

#[test]
fn geneve_headers_are_what_the_stock_code_reads_and_writes() {
    use geneve::{Header, Protocol};
    let Some(vectors) = vectors() else { return };
    for (name, protocol, control) in [
        ("disco", Protocol::Disco, false),
        ("disco_control", Protocol::Disco, true),
        ("wireguard", Protocol::WireGuard, false),
    ] {
        let vector = bytes(&vectors["geneve_vni_010203"][name]);
        let header = Header {
            protocol,
            control,
            vni: 0x01_02_03,
        };
        assert_eq!(header.encode()[..], vector, "{name}");
        assert_eq!(Header::parse(&vector).unwrap(), (header, &[][..]), "{name}");
        assert_eq!(classify(&vector), Kind::Geneve, "{name}");
    }
}

fn expected_disco(
    name: &str,
    node: NodePublic,
    sender: DiscoPublic,
    receiver: DiscoPublic,
) -> Message {
    let ping = |padding| {
        Message::Ping(Ping {
            tx: TX,
            node: Some(node),
            padding,
        })
    };
    let pong = |source: &str| Message::Pong {
        tx: TX,
        source: source.parse().unwrap(),
    };
    let call = |endpoints: &[&str]| Message::CallMeMaybe {
        endpoints: endpoints
            .iter()
            .map(|endpoint| endpoint.parse().unwrap())
            .collect(),
    };
    let mut challenge = [0; 32];
    challenge[..3].copy_from_slice(&[1, 2, 3]);
    let bind = Bind {
        vni: 0x01_02_03,
        generation: 9,
        remote: receiver,
        challenge,
    };
    let relay = RelayEndpoint {
        server: sender,
        clients: [sender, receiver],
        lamport_id: 77,
        vni: 5,
        bind_lifetime: Duration::from_secs(30),
        steady_lifetime: Duration::from_secs(300),
        addresses: ["203.0.113.9:7777", "[2001:db8::9]:7777"]
            .map(|address| address.parse().unwrap())
            .into(),
    };
    match name {
        "ping" => ping(0),
        "ping_padded" => ping(20),
        "pong_v4" => pong("203.0.113.7:41641"),
        "pong_v6" => pong("[2001:db8::7]:41641"),
        "call_me_maybe" => call(&["203.0.113.7:41641", "192.168.1.2:41641", "[2001:db8::7]:1"]),
        "call_me_maybe_empty" => call(&[]),
        "bind" => Message::BindRelay(bind),
        "bind_challenge" => Message::BindRelayChallenge(bind),
        "bind_answer" => Message::BindRelayAnswer(bind),
        "call_me_maybe_via" => Message::CallMeMaybeVia(relay),
        "allocate_request" => Message::AllocateRelay(AllocateRelay {
            clients: [sender, receiver],
            generation: 3,
        }),
        "allocate_response" => Message::RelayAllocated {
            generation: 3,
            endpoint: relay,
        },
        other => panic!("what is {other}?"),
    }
}

fn vectors() -> Option<Value> {
    let text = samples::read("vectors/codecs.json")?;
    Some(serde_json::from_str(&text).unwrap())
}

fn bytes(hex: &Value) -> Vec<u8> {
    hex::decode(hex.as_str().unwrap()).unwrap()
}
