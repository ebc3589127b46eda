use proptest::prelude::*;

use super::*;

/// A stream's packet as tests write it down.
#[derive(Clone, Debug)]
struct Tcp {
    v6: bool,
    /// Port and address of the sender.
    from: u8,
    sequence: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Tcp {
    fn data(sequence: u32, payload: &[u8]) -> Self {
        Self {
            v6: false,
            from: 1,
            sequence,
            flags: ACK,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let ip = if self.v6 { 40 } else { 20 };
        let mut bytes = vec![0; ip + 20];
        bytes.extend(&self.options);
        let head = bytes.len();
        bytes.extend(&self.payload);
        if self.v6 {
            bytes[..8].copy_from_slice(&[0x60, 0, 0, 9, 0, 0, TCP, 64]);
            bytes[8..40].copy_from_slice(&[0xfd; 32]);
            bytes[23] = self.from;
        } else {
            bytes[..12].copy_from_slice(&[0x45, 2, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
            bytes[12..20].copy_from_slice(&[100, 64, 0, self.from, 100, 64, 0, 9]);
        }
        let whole = bytes.len();
        set_length(&mut bytes, whole);
        bytes[ip..ip + 4].copy_from_slice(&[0x10, self.from, 0, 80]);
        put32(&mut bytes, ip + 4, self.sequence);
        put32(&mut bytes, ip + 8, 77);
        bytes[ip + 12] = ((head - ip) / 4 * 16) as u8;
        bytes[ip + 13] = self.flags;
        put16(&mut bytes, ip + 14, 500);
        let tail = checksum::pseudo_tail(TCP, whole - ip);
        let sum = checksum::of(&[checksum::addresses(&bytes), &tail, &bytes[ip..]]);
        bytes[ip + TCP_CHECKSUM..][..2].copy_from_slice(&sum);
        bytes
    }
}

/// What the kernel would be given, as it would read it.
fn written(packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>)> {
    let mut batch = packets.to_vec();
    let mut coalescer = Coalescer::default();
    coalescer.coalesce(&mut batch);
    let whole = |frame: &Frame| {
        let mut bytes = batch[frame.first].clone();
        for &member in coalescer.members(frame) {
            bytes.extend(&batch[member][frame.head..]);
        }
        (frame.vnet, bytes)
    };
    coalescer.frames().iter().map(whole).collect()
}

fn taken_apart(written: Vec<(Vnet, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (vnet, mut bytes) in written {
        split(vnet, &mut bytes, |head, payload| {
            packets.push([head, payload].concat());
        })
        .unwrap();
    }
    packets
}

/// IPv4's identification, and the checksum that goes with it, are the kernel's to choose.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet.first().is_some_and(|first| first >> 4 == 4) && packet.len() >= 20 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn what_follows_on_each_other_becomes_one_packet() {
    for v6 in [false, true] {
        let stream = |sequence, payload: &[u8], flags| Tcp {
            v6,
            flags,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            ..Tcp::data(sequence, payload)
        };
        let packets = [
            stream(u32::MAX - 1, b"abcd", ACK).bytes(),
            stream(2, b"efgh", ACK).bytes(),
            stream(6, b"ij", ACK | PSH).bytes(),
            stream(8, b"klmn", ACK).bytes(),
        ];
        let written = written(&packets);
        assert_eq!(written.len(), 2, "PSH ends the first");
        let (vnet, bytes) = &written[0];
        let head = if v6 { 72 } else { 52 };
        assert_eq!(&bytes[head..], b"abcdefghij");
        assert_eq!((vnet.gso_size, usize::from(vnet.hdr_len)), (4, head));
        assert_eq!(vnet.gso_type, if v6 { GSO_TCPV6 } else { GSO_TCPV4 });
        assert_eq!(written[1], (Vnet::default(), packets[3].clone()));
        let again = taken_apart(written);
        let ids = |packets: &[Vec<u8>]| packets.iter().cloned().map(without_id).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&packets));
    }
}

#[test]
fn what_is_not_alike_stays_alone_and_in_its_place() {
    let first = Tcp::data(0, b"abcd");
    let next = Tcp::data(4, b"efgh");
    let gap = Tcp::data(5, b"efgh");
    let longer = Tcp::data(4, b"efghi");
    let mut fin = next.clone();
    fin.flags |= FIN;
    let mut options = next.clone();
    options.options = vec![1, 1, 1, 1];
    let other = Tcp {
        from: 2,
        ..next.clone()
    };
    for second in [gap, longer, fin, options, other] {
        let packets = [first.bytes(), second.bytes()];
        let expected = packets.clone().map(|bytes| (Vnet::default(), bytes));
        assert_eq!(written(&packets), expected);
    }
    let mut wrong = next.bytes();
    *wrong.last_mut().unwrap() ^= 1;
    let after = Tcp::data(8, b"ijkl").bytes();
    let packets = [first.bytes(), wrong, after];
    assert_eq!(taken_apart(written(&packets)), packets, "a wrong checksum");
    let mut fragment = next.bytes();
    fragment[6] |= 0x20;
    let packets = [first.bytes(), fragment, next.bytes()];
    assert_eq!(written(&packets).len(), 3, "nothing overtakes a fragment");
}

#[test]
fn two_streams_at_once_are_two_packets() {
    let packets: Vec<_> = (0..20)
        .map(|number| {
            Tcp {
                from: (number % 2) as u8,
                ..Tcp::data(number / 2 * 4, b"abcd")
            }
            .bytes()
        })
        .collect();
    assert_eq!(written(&packets).len(), 2);
}

#[test]
fn a_packet_grows_no_longer_than_ip_can_say() {
    let payload = vec![7; 1400];
    let packets: Vec<_> = (0..60)
        .map(|number| Tcp::data(number * 1400, &payload).bytes())
        .collect();
    let written = written(&packets);
    assert_eq!(written.len(), 2);
    assert!(written.iter().all(|(_, bytes)| bytes.len() <= MAX_PACKET));
    assert_eq!(taken_apart(written).len(), 60);
}

#[test]
fn segments_of_the_kernel_are_numbered_and_only_the_last_ends_the_stream() {
    let mut whole = Tcp {
        flags: ACK | PSH | FIN | CWR,
        ..Tcp::data(u32::MAX, b"abcdefg")
    }
    .bytes();
    put16(&mut whole, 4, 0xffff);
    let vnet = Vnet {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4 | GSO_ECN,
        gso_size: 3,
        csum_start: 20,
        csum_offset: 16,
        hdr_len: 40,
    };
    let packets = taken_apart(vec![(vnet, whole)]);
    let fields = |packet: &Vec<u8>| (get16(packet, 4), get32(packet, 24), packet[33]);
    let expected = [
        (0xffff, u32::MAX, ACK | CWR),
        (0, 2, ACK),
        (1, 5, ACK | PSH | FIN),
    ];
    assert_eq!(packets.iter().map(fields).collect::<Vec<_>>(), expected);
    for packet in &packets {
        let tail = checksum::pseudo_tail(TCP, packet.len() - 20);
        assert!(checksum::is_right(&[&packet[..20]]));
        assert!(checksum::is_right(&[
            checksum::addresses(packet),
            &tail,
            &packet[20..]
        ]));
    }
}

#[test]
fn a_checksum_left_to_the_device_is_completed() {
    let right = Tcp::data(1, b"abc").bytes();
    let mut left = right.clone();
    let tail = checksum::pseudo_tail(TCP, left.len() - 20);
    let sum = checksum::partial(&[checksum::addresses(&left), &tail]);
    left[36..38].copy_from_slice(&sum);
    let vnet = Vnet {
        flags: NEEDS_CSUM,
        csum_start: 20,
        csum_offset: 16,
        ..Vnet::default()
    };
    assert_eq!(taken_apart(vec![(vnet, left)]), [right]);
}

fn stream_packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let packet = (
        any::<bool>(),
        0..3u8,
        prop_oneof![Just(ACK), Just(ACK | PSH), any::<u8>()],
        prop_oneof![Just(0usize), Just(12)],
        prop_oneof![4 => Just(8usize), 1 => 0..9usize],
        prop_oneof![8 => Just(None), 1 => any::<(usize, u8)>().prop_map(Some)],
    );
    prop::collection::vec(packet, 0..40).prop_map(|packets| {
        let mut next = [u32::MAX - 20; 6];
        let mut bytes = |(v6, from, flags, options, payload, damage)| {
            let sequence = &mut next[usize::from(from) * 2 + usize::from(v6)];
            let tcp = Tcp {
                v6,
                from,
                sequence: *sequence,
                flags,
                options: vec![1; options],
                payload: vec![from; payload],
            };
            *sequence = sequence.wrapping_add(payload as u32);
            let mut bytes = tcp.bytes();
            if let Some((at, value)) = damage {
                let at: usize = at;
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes
        };
        packets.into_iter().map(&mut bytes).collect()
    })
}

/// Version, protocol, addresses and ports, wherever they are. A damaged version makes a short packet of IPv4 one of IPv6.
fn lane(packet: &[u8]) -> (u8, u8, Vec<u8>) {
    match packet[0] >> 4 {
        6 => (6, packet[6], packet[8..packet.len().min(44)].to_vec()),
        version => (version, packet[9], packet[12..24].to_vec()),
    }
}

proptest! {
    #[test]
    fn taking_apart_gives_every_packet_back_and_no_connection_is_out_of_order(
        packets in stream_packets()
    ) {
        let again = taken_apart(written(&packets));
        let sorted = |packets: &[Vec<u8>]| {
            let mut packets: Vec<_> = packets.iter().cloned().map(without_id).collect();
            // Stable: within a connection the order counts.
            packets.sort_by_key(|packet| lane(packet));
            packets
        };
        prop_assert_eq!(sorted(&again), sorted(&packets));
    }

    #[test]
    fn nothing_panics_on_bytes_of_any_kind(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..8),
        vnet in any::<[u8; Vnet::LEN]>(),
    ) {
        let mut lengths = 0;
        for (_, bytes) in written(&packets) {
            lengths += bytes.len();
        }
        prop_assert_eq!(lengths, packets.iter().map(Vec::len).sum::<usize>());
        for mut packet in packets {
            let _ = split(Vnet::from_bytes(vnet), &mut packet, |_, _| {});
        }
    }

    #[test]
    fn the_header_of_the_device_is_read_as_written(bytes in any::<[u8; Vnet::LEN]>()) {
        prop_assert_eq!(Vnet::from_bytes(bytes).to_bytes(), bytes);
    }
}
