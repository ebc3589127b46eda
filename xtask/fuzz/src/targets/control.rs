//! The control channel from the outside in: handshake, records, early payload, message framing, JSON.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use lowroad_wire::{
    control::{
        DerpMap, DnsConfig, Hostinfo, MapRequest, MapResponse, Node, OverTlsPublicKey, PingRequest,
        PingResponse, RegisterRequest, RegisterResponse,
    },
    derp::{ClientInfo, ServerInfo},
    framing::{self, Compression, MessageReader},
    key::{ChallengePublic, MachinePrivate},
    noise::{self, Channel, Early, Initiator},
};
use serde::{Serialize, de::DeserializeOwned};

use super::datagrams::change;
use crate::script::Script;

const VERSION: u16 = 130;

/// Bodies of requests and answers: what reads can be written, and reads again as the same.
pub fn control_json(input: &[u8]) {
    again::<OverTlsPublicKey>(input);
    again::<RegisterRequest>(input);
    again::<RegisterResponse>(input);
    again::<MapRequest>(input);
    again::<Hostinfo>(input);
    again::<Node>(input);
    again::<DerpMap>(input);
    again::<DnsConfig>(input);
    again::<PingRequest>(input);
    again::<PingResponse>(input);
    again::<ClientInfo>(input);
    again::<ServerInfo>(input);
}

fn again<T: DeserializeOwned + Serialize + PartialEq + Debug>(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(json) else {
        return;
    };
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what we write, we read");
    assert_eq!(again, value);
}

pub fn control_json_seeds() -> Vec<Vec<u8>> {
    let key = |prefix: &str| format!("{prefix}:{}", "5a".repeat(32));
    let (node, disco, machine) = (key("nodekey"), key("discokey"), key("mkey"));
    let hostinfo = r#"{"IPNVersion":"1.80","OS":"linux","Hostname":"a","RoutableIPs":["10.0.0.0/8"],"RequestTags":["tag:a"],
        "Services":[{"Proto":"peerapi4","Port":1}],"NetInfo":{"MappingVariesByDestIP":true,"PreferredDERP":1,"DERPLatency":{"1-v4":0.01}},"Location":{"City":"x"}}"#;
    let texts = [
        format!(r#"{{"legacyPublicKey":"{machine}","publicKey":"{machine}"}}"#),
        format!(
            r#"{{"Version":130,"NodeKey":"{node}","OldNodeKey":"{node}","Auth":{{"AuthKey":"k"}},"Expiry":"2026-01-01T00:00:00Z","Followup":"","Hostinfo":{hostinfo},"Ephemeral":true}}"#
        ),
        r#"{"User":{"ID":1,"DisplayName":"lab"},"Login":{"ID":1,"LoginName":"lab"},"NodeKeyExpired":false,"MachineAuthorized":true,"AuthURL":"http://a/b","Error":""}"#.to_owned(),
        format!(
            r#"{{"Version":130,"Compress":"zstd","KeepAlive":true,"NodeKey":"{node}","DiscoKey":"{disco}","Stream":true,"Hostinfo":{hostinfo},"Endpoints":["1.2.3.4:5","[::1]:6"],"EndpointTypes":[1,2]}}"#
        ),
        hostinfo.to_owned(),
        super::netmaps::node(3),
        super::netmaps::DERP_MAP.to_owned(),
        r#"{"Resolvers":[{"Addr":"1.1.1.1"}],"Routes":{"a.b.":[],"c.":null},"Domains":["x"],"Proxied":true,"ExtraRecords":[{"Name":"a","Value":"1.2.3.4"}]}"#.to_owned(),
        r#"{"URL":"http://x/","URLIsNoise":true,"Log":true,"Types":"disco,TSMP","IP":"100.64.0.1","Payload":"aGk="}"#.to_owned(),
        r#"{"version":2,"meshKey":"","CanAckPings":true,"IsProber":false}"#.to_owned(),
        r#"{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":5}"#.to_owned(),
        "null".to_owned(),
    ];
    texts.map(String::into_bytes).to_vec()
}

/// Messages on their stream, cut anywhere, plain or zstd: bounded, and the same however they arrive.
pub fn map_stream(input: &[u8]) {
    let mut script = Script::new(input);
    let compression = if script.flag() {
        Compression::Zstd
    } else {
        Compression::None
    };
    let piece = usize::from(script.byte()) + 1;
    let stream = script.rest();
    let whole = messages(compression, std::iter::once(stream));
    let cut = messages(compression, stream.chunks(piece));
    assert_eq!(whole, cut);
}

/// The messages, and whether the stream is still good.
fn messages<'a>(
    compression: Compression,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Bytes>, bool) {
    let mut reader = MessageReader::new(compression);
    let mut out = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_message() {
                Ok(Some(message)) => {
                    assert!(message.len() <= framing::MAX_JSON);
                    out.push(message.slice(..message.len().min(1000)));
                }
                Ok(None) => break,
                Err(_) => return (out, false),
            }
        }
    }
    (out, true)
}

pub fn map_stream_seeds() -> Vec<Vec<u8>> {
    let message =
        |json: &[u8], compression| framing::encode(json, compression).expect("short").to_vec();
    let zstd = |json: &[u8]| message(json, Compression::Zstd);
    vec![
        [
            &[0, 3][..],
            &message(framing::KEEP_ALIVE, Compression::None),
            &message(b"{}", Compression::None),
        ]
        .concat(),
        [
            &[1, 3][..],
            &zstd(framing::KEEP_ALIVE),
            &zstd(b"{\"Seq\":1}"),
        ]
        .concat(),
        [&[1, 255][..], &zstd(&vec![b' '; 100_000])].concat(),
        // More than a message may hold, from few bytes.
        [&[1, 255][..], &zstd(&vec![0; framing::MAX_JSON + 1])].concat(),
        // A window of 128 MiB, asked for by a frame header: magic, descriptor, window descriptor, one raw block.
        [
            &[1, 9][..],
            &[13, 0, 0, 0],
            &[
                0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 0x21, 0, 0, b'a', b'a', b'a', b'a',
            ],
        ]
        .concat(),
        [&[0, 0][..], &[0xff; 8]].concat(),
    ]
}

fn keys() -> (MachinePrivate, MachinePrivate) {
    (
        MachinePrivate::from_random([1; 32]),
        MachinePrivate::from_random([2; 32]),
    )
}

/// A server meets any initiation: only the one that was made for it is answered.
pub fn noise_server(input: &[u8]) {
    let (client, server) = keys();
    let (_, right) = Initiator::new(VERSION, &client, &server.public(), [3; 32]).expect("our own");
    for initiation in [input.to_vec(), change(&right, input)] {
        match noise::respond(&initiation, &server, [4; 32]) {
            Ok((peer, ..)) => {
                assert!(initiation == right, "a changed initiation was taken");
                assert_eq!((peer.machine, peer.version), (client.public(), VERSION));
            }
            Err(error) => drop(noise::error_frame(&error.to_string())),
        }
    }
}

/// A client meets any answer: only the one to its question opens the channel.
pub fn noise_client(input: &[u8]) {
    let (client, server) = keys();
    for raw in [true, false] {
        let (waiting, initiation) =
            Initiator::new(VERSION, &client, &server.public(), [3; 32]).expect("our own");
        let (_, right, _) = noise::respond(&initiation, &server, [4; 32]).expect("our own");
        let answer = if raw {
            input.to_vec()
        } else {
            change(&right, input)
        };
        let needs = Initiator::needs(&answer);
        assert!((1..1024).contains(&needs));
        assert_eq!(
            waiting.finish(&answer).is_ok(),
            answer == right,
            "only the right answer is taken"
        );
    }
}

pub fn noise_seeds() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![0; 101],
        noise::error_frame("no"),
        vec![1; 101],
        [&[0, 130, 1, 0, 96][..], &[7; 96]].concat(),
        [&[2, 0, 48][..], &[7; 48]].concat(),
    ]
}

/// Both ends of an open channel.
fn channels() -> (Channel, Channel) {
    let (client, server) = keys();
    let (waiting, initiation) =
        Initiator::new(VERSION, &client, &server.public(), [3; 32]).expect("our own");
    let (_, response, far) = noise::respond(&initiation, &server, [4; 32]).expect("our own");
    (waiting.finish(&response).expect("our own"), far)
}

/// Records that arrive in pieces, changed, cut or repeated: what comes out is a beginning of what went in.
pub fn noise_records(input: &[u8]) {
    let mut script = Script::new(input);
    let (mut near, mut far) = channels();
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    let mut arrived = BytesMut::new();
    while !script.is_empty() {
        let mut records = BytesMut::new();
        match script.below(8) {
            0 => arrived.extend_from_slice(script.bytes(255)),
            1 => {
                // Foreign records, long and empty ones.
                let length = script.word();
                arrived.extend_from_slice(&[4, (length >> 8) as u8, length as u8]);
                arrived.extend_from_slice(&vec![script.byte(); usize::from(length.min(5000))]);
            }
            choice => {
                let text = vec![script.byte(); usize::from(script.word()) % 9000];
                near.seal(&text, &mut records).expect("nonces are left");
                sent.extend_from_slice(&text);
                if choice == 2 && !records.is_empty() {
                    let at = usize::from(script.word()) % records.len();
                    records[at] ^= script.byte();
                }
                if choice == 3 {
                    records.truncate(usize::from(script.word()));
                }
            }
        }
        let pieces = records.chunks(usize::from(script.byte()) * 64 + 1);
        for piece in pieces.chain(std::iter::once(&[][..])) {
            arrived.extend_from_slice(piece);
            loop {
                match far.open(&mut arrived) {
                    Ok(Some(plain)) => {
                        assert!(!plain.is_empty() && plain.len() <= noise::MAX_PLAINTEXT);
                        got.extend_from_slice(&plain);
                    }
                    Ok(None) => break,
                    Err(_) => {
                        assert!(sent.starts_with(&got), "what wasn't sent was read");
                        return;
                    }
                }
            }
            assert!(
                arrived.len() <= 5003 + 255,
                "an incomplete record stays small"
            );
        }
        assert!(sent.starts_with(&got), "what wasn't sent was read");
    }
}

pub fn noise_records_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![4, 65, 0, 40, 3, 5, 66, 0, 1, 0],
        vec![2, 65, 10, 0, 5, 0, 1, 9],
        vec![1, 16, 0, 0, 0],
        vec![3, 65, 10, 0, 5, 0, 1, 4, 1, 1, 0, 9],
        vec![0, 3, 4, 0, 15],
        vec![4; 40],
    ]
}

/// What a server says before HTTP/2, cut anywhere.
pub fn noise_early(input: &[u8]) {
    let mut whole = BytesMut::from(input);
    let told = noise::read_early(&mut whole);
    let mut grown = BytesMut::new();
    let mut told_grown = noise::read_early(&mut grown);
    for byte in input {
        if !matches!(told_grown, Ok(Early::Incomplete)) {
            break;
        }
        grown.extend_from_slice(&[*byte]);
        told_grown = noise::read_early(&mut grown);
    }
    if input.is_empty() {
        return;
    }
    assert_eq!(told.as_ref().ok(), told_grown.as_ref().ok());
    if let Ok(Early::Present(Some(challenge))) = told {
        let mut own = BytesMut::from(&noise::early_payload(&challenge)[..]);
        assert_eq!(
            noise::read_early(&mut own).expect("our own"),
            Early::Present(Some(challenge))
        );
    }
}

pub fn noise_early_seeds() -> Vec<Vec<u8>> {
    let own = noise::early_payload(&ChallengePublic::from_bytes([8; 32]));
    vec![
        own.clone(),
        [&own[..], b"PRI * HTTP/2.0"].concat(),
        own[..20].to_vec(),
        b"\xff\xff\xffTS\xff\xff\xff\xff".to_vec(),
        b"\0\0\x06\x04".to_vec(),
        b"\xff\xff\xffTS\0\0\0\x02{}".to_vec(),
    ]
}

/// One message of the map stream by itself.
pub fn parse_map_response(json: &[u8]) -> Option<MapResponse> {
    let (response, malformed) = MapResponse::parse(json).ok()?;
    assert!(malformed.len() <= 32, "what is reported is bounded");
    Some(response)
}
