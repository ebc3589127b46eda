//! Short things that the agent reads: raw datagrams of anybody, and words of a control server.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use hyper::{HeaderMap, header::HeaderValue};
use lowroad_agent::{
    control::{c2n, retry_after},
    engine::probe::Probe,
    status::PingKind,
    tls::Verification,
    traversal::packet::{parse_ipv4, parse_udp},
};
use lowroad_wire::control::DerpNode;

/// What a raw socket sees: a packet with its IPv4 header, or a datagram without one.
pub fn raw_datagrams(input: &[u8]) {
    let inside = |payload: &[u8]| {
        assert!(payload.len() + 8 <= input.len());
        assert!(payload.is_empty() || input.as_ptr_range().contains(&payload.as_ptr()));
    };
    if let Some((port, payload)) = parse_udp(input) {
        inside(payload);
        assert_eq!(port.to_be_bytes(), input[..2]);
        let length = u16::from_be_bytes([input[4], input[5]]);
        assert_eq!(usize::from(length), payload.len() + 8);
    }
    if let Some((source, payload)) = parse_ipv4(input) {
        inside(payload);
        let header = usize::from(input[0] & 0x0f).max(5) * 4;
        let (port, same) = parse_udp(&input[header..]).expect("it was found there");
        assert_eq!((source.port(), payload), (port, same));
        assert_eq!(
            source.ip().to_string().parse(),
            Ok(std::net::Ipv4Addr::new(
                input[12], input[13], input[14], input[15]
            ))
        );
    }
    pinged(input);
}

/// What pings through the tunnel see: anything from the peer's address.
fn pinged(input: &[u8]) {
    const PORT_LEN: usize = 2;
    let v4_header = input.first().map_or(0, |first| usize::from(first & 15) * 4);
    for (to, header) in [("100.64.0.2", v4_header), ("fd7a::2", 0)] {
        let probe = probe(to);
        let message = input.get(header..).unwrap_or_default();
        if probe.answered(PingKind::Icmp, input).is_some() {
            assert_eq!(message.len(), 8 + probe.data.len());
            assert!(message.ends_with(&probe.data));
        }
        if let Some(port) = probe.answered(PingKind::Tsmp, input) {
            let (data, rest) = message[1..].split_at(probe.data.len());
            assert_eq!((message[0], data), (b'o', &probe.data[..]));
            let said = port.expect("a pong says which").to_be_bytes();
            assert_eq!(said, rest[..PORT_LEN]);
        }
    }
}

fn probe(to: &str) -> Probe {
    let to: IpAddr = to.parse().expect("an address");
    Probe {
        device: "lowroad0".to_owned(),
        mark: 1,
        from: to,
        to,
        data: *b"abcdefgh",
    }
}

pub fn raw_datagrams_seeds() -> Vec<Vec<u8>> {
    let udp = [
        &40_000_u16.to_be_bytes()[..],
        &41_641_u16.to_be_bytes(),
        &[0, 12, 0, 0],
        b"TS\xf0\x9f",
    ]
    .concat();
    let ip = |first: u8, options: usize| {
        let mut header = vec![
            first, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1,
        ];
        header.extend(vec![1; options]);
        [header, udp.clone()].concat()
    };
    vec![
        udp.clone(),
        ip(0x45, 0),
        ip(0x4f, 40),
        ip(0x40, 0),
        ip(0x46, 4)[..30].to_vec(),
        [&udp[..4], &[0, 7, 0, 0]].concat(),
        b"oabcdefgh\x12\x34".to_vec(),
        [&[0x45; 20][..], b"oabcdefgh\0\0"].concat(),
        [&[0x45; 20][..], b"\0\0\0\0ab\0\x01abcdefgh"].concat(),
        b"\x81\0\0\0ab\0\x01abcdefgh".to_vec(),
    ]
}

/// A control server's words outside of JSON, by the first byte: a request in a ping (c2n), how long to wait, what a relay has to show.
pub fn control_words(input: &[u8]) {
    let Some((kind, words)) = input.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            let answer = c2n(words);
            assert!(answer.starts_with(b"HTTP/1.1 "));
            assert!(
                answer.len() <= words.len() + 100,
                "it says more than it heard"
            );
        }
        1 => {
            let Ok(value) = HeaderValue::from_bytes(words) else {
                return;
            };
            let headers: HeaderMap = [(hyper::header::RETRY_AFTER, value)].into_iter().collect();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
            assert!(retry_after(&headers, now) <= Duration::from_secs(3600));
        }
        _ => {
            let node = DerpNode {
                cert_name: String::from_utf8_lossy(words).into_owned(),
                ..DerpNode::default()
            };
            match Verification::of_relay(&node) {
                Ok(Verification::Roots) => assert!(words.is_empty()),
                Ok(Verification::Nothing) => panic!("nothing in a name asks for that"),
                Ok(Verification::Pin(_)) => {
                    assert!(words.len() == 75 && words.starts_with(b"sha256-raw:"))
                }
                // A pin that is none must be no name either.
                Ok(Verification::Name(_)) => assert!(!words.starts_with(b"sha256-raw:")),
                Err(_) => {}
            }
        }
    }
}

pub fn control_words_seeds() -> Vec<Vec<u8>> {
    let pin = format!("\x02sha256-raw:{}", "ab".repeat(32));
    [
        "\0POST /echo HTTP/1.1\r\nHost: x\r\n\r\nhallo",
        "\0GET /update?x HTTP/1.1\r\n\r\n",
        "\x017",
        "\x0186400",
        "\x01Sun, 06 Nov 1994 08:49:47 GMT",
        "\x02",
        "\x02cert.example",
        "\x02192.0.2.1",
        "\x02sha256-raw:abcd",
        &pin,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
