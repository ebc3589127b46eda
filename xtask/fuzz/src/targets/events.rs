//! What the kernel's programs report: addresses, ports and a few bytes of peers' packets, and what is answered.

use lowroad_abi::{Direction, DropReason, EventKind, EventRecord};
use lowroad_core::filter::{FilterEvent, FlowTuple, Punt};
use lowroad_wire::tsmp::{Message, Packet, Reason};

const RECORD: usize = size_of::<EventRecord>();
const PEER_API: u16 = 0x1234;

/// Records of the ring one after another: what is answered goes back where the question came from, and says of the packet what the
/// record does; what a peer says in a refusal cannot steer a terminal.
pub fn events(input: &[u8]) {
    for record in input.chunks(RECORD).filter_map(EventRecord::from_bytes) {
        for shields_up in [false, true] {
            let event = FilterEvent::decode(&record, PEER_API, shields_up);
            if let Some(FilterEvent::Punt { tuple, punt, .. }) = event {
                match punt {
                    Punt::Answer(packet) => answered(&packet, &tuple, &record, shields_up),
                    Punt::Rejected { flow, reason } => {
                        assert!(!reason.is_control(), "{reason:?}");
                        let ends = (flow.source.ip(), flow.destination.ip());
                        assert_eq!(ends, (tuple.destination.ip(), tuple.source.ip()));
                    }
                }
            }
        }
    }
}

fn answered(packet: &[u8], asked: &FlowTuple, record: &EventRecord, shields_up: bool) {
    let packet = Packet::parse(packet).expect("what we send is TSMP");
    assert_eq!(
        (packet.source, packet.destination),
        (asked.destination.ip(), asked.source.ip()),
        "it goes elsewhere"
    );
    match packet.message {
        Message::Pong {
            data,
            peer_api_port,
        } => assert_eq!((data, peer_api_port), (record.tsmp, PEER_API)),
        Message::Rejected(refused) => {
            let (source, destination) = (refused.source_port, refused.destination_port);
            assert_eq!(source, asked.source.port());
            assert_eq!(destination, asked.destination.port());
            let reason = if shields_up {
                Reason::ShieldsUp
            } else {
                Reason::Acl
            };
            assert_eq!(refused.reason, reason);
        }
        other => panic!("nobody asked for {other:?}"),
    }
}

/// A record of each kind in both families, and some that no program writes.
pub fn records() -> Vec<Vec<u8>> {
    const REFUSAL: [u8; 8] = *b"\x06A\x0f\xa0\x00\x16ab";
    // A reason that begins a command to the terminal.
    const STEERING: [u8; 8] = *b"\x06\x1b\x0f\xa0\x00\x16ab";
    let kinds = [
        EventKind::Drop,
        EventKind::TsmpPing,
        EventKind::TcpReject,
        EventKind::TsmpRejected,
        EventKind::TsmpDisco,
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for kind in kinds {
        seeds.extend([4, 6].map(|family| bytes(kind as u8, family, REFUSAL)));
    }
    seeds.push(seeds.concat());
    seeds.push(bytes(EventKind::TsmpRejected as u8, 4, STEERING));
    // An unknown family, an unknown kind.
    seeds.push(bytes(EventKind::TsmpPing as u8, 0, REFUSAL));
    seeds.push(bytes(0, 4, REFUSAL));
    seeds
}

/// As the programs lay an [`EventRecord`] out.
fn bytes(kind: u8, family: u8, tsmp: [u8; 8]) -> Vec<u8> {
    const TCP: u8 = 6;
    let address = |last: u8| [&[100, 64, 0, last][..], &[0; 12]].concat();
    let record = [
        &1_u64.to_ne_bytes()[..],
        &[kind, Direction::In as u8, DropReason::Acl as u8, 0],
        &60_u32.to_ne_bytes(),
        &address(2),
        &address(1),
        &4000_u16.to_be_bytes(),
        &22_u16.to_be_bytes(),
        &[family, TCP, 0, 0],
        &tsmp,
    ]
    .concat();
    assert_eq!(record.len(), RECORD);
    record
}
