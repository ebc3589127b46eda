//! The userspace device's port, which anybody can send to.

use bytes::Bytes;
use lowroad_agent::kernel::arrivals::{Arrivals, ForWireGuard};
use lowroad_wire::{Kind, classify};

use crate::script::Script;

/// Of a datagram: longer than a packet buffer.
const LONGEST: usize = 5000;
/// What a packet buffer of gotatun's holds.
const FITS: usize = 4096;
/// Datagrams of one call; `BATCH` in `agent/src/kernel/userspace/mmsg.rs`.
const AT_ONCE: usize = 64;

/// Batches of datagrams, one after another into the same buffers: each comes whole and by itself to the one it is for, in its order,
/// with its sender, and nothing of what was in the buffer before.
pub fn userspace_datagrams(input: &[u8]) {
    let mut script = Script::new(input);
    let mut arrivals = Arrivals::default();
    for _ in 0..8 {
        if script.is_empty() {
            break;
        }
        let (by_relay, count) = (script.flag(), script.below(AT_ONCE + 2));
        let datagrams: Vec<_> = (0..count)
            .map_while(|_| (!script.is_empty()).then(|| (script.address(), datagram(&mut script))))
            .collect();
        let fits = datagrams.iter().filter(|(_, bytes)| bytes.len() <= FITS);
        if by_relay {
            let kept = arrivals.inject(datagrams.clone());
            same(&kept, fits);
        } else {
            let read = datagrams.len().min(AT_ONCE);
            let sorted = arrivals.receive(&datagrams);
            let fits = datagrams[..read]
                .iter()
                .filter(|(_, bytes)| bytes.len() <= FITS);
            let (engine, wireguard): (Vec<_>, Vec<_>) =
                fits.partition(|(_, bytes)| matches!(classify(bytes), Kind::Disco | Kind::Stun));
            same(&sorted.wireguard, wireguard.into_iter());
            for taken in &sorted.engine {
                assert!(
                    !matches!(taken.bytes[..], [1..=4, 0, 0, 0, ..]),
                    "it is WireGuard's"
                );
            }
            let taken = sorted.engine.iter().map(|taken| (taken.from, &taken.bytes));
            assert!(taken.eq(engine.into_iter().map(|(from, bytes)| (*from, bytes))));
        }
    }
}

fn same<'a>(
    kept: &[ForWireGuard],
    expected: impl Iterator<Item = &'a (std::net::SocketAddr, Bytes)>,
) {
    let got = kept.iter().map(|one| (one.from, &one.bytes));
    assert!(got.eq(expected.map(|(from, bytes)| (*from, bytes))));
    for one in kept {
        // gotatun looks at the type and the length only, and WireGuard's messages have zeros between.
        assert!(!one.is_message || matches!(one.bytes[..], [1..=4, ..]));
    }
}

/// Bytes as they are, with a beginning that says what they are, or one that is too long or just not.
fn datagram(script: &mut Script) -> Bytes {
    let begin: &[u8] = match script.below(8) {
        0 => "TS💬".as_bytes(),
        1 => &[1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42],
        2 => &[1, 0, 0, 0],
        3 => &[2, 0, 0, 0],
        4 => &[4, 0, 0, 0],
        _ => &[],
    };
    let mut bytes = [begin, script.bytes(255)].concat();
    let length = match script.byte() {
        0 => 148,
        1 => 92,
        2 => 64,
        3 => 32,
        4 => FITS,
        5 => FITS + 1,
        6 => LONGEST,
        7 => 0,
        _ => bytes.len(),
    };
    bytes.resize(length, 0x55);
    bytes.into()
}

pub fn userspace_datagrams_seeds() -> Vec<Vec<u8>> {
    let one = |kind: u8, payload: &[u8], length: u8| {
        let address = [0, 1];
        [
            &address[..],
            &[kind, payload.len() as u8],
            payload,
            &[length],
        ]
        .concat()
    };
    let kinds: Vec<Vec<u8>> = (0..8)
        .flat_map(|kind| {
            [
                one(kind, &[7; 90], 9),
                one(kind, b"", 0),
                one(kind, b"x", 9),
            ]
        })
        .collect();
    let lengths: Vec<Vec<u8>> = (0..9).map(|length| one(2, b"abc", length)).collect();
    let batch = |by_relay: u8, datagrams: &[Vec<u8>]| {
        [&[by_relay, datagrams.len() as u8][..], &datagrams.concat()].concat()
    };
    let many = vec![one(5, b"", 9); AT_ONCE + 1];
    vec![
        batch(0, &kinds),
        batch(1, &kinds),
        batch(0, &lengths),
        batch(1, &lengths),
        [batch(0, &lengths), batch(0, &kinds), batch(1, &lengths)].concat(),
        batch(0, &many),
    ]
}
