//! Packets on their way into the device: what follows on each other in a TCP stream goes in as one.
//!
//! As the kernel's own GRO does it, and stricter: only segments that differ in nothing but position, so that taking them apart again gives
//! the same bytes (but for IPv4's identification). Packets of one connection stay in their order. A wrong checksum keeps a packet out: the
//! kernel trusts what comes as one, and has to see the wrong ones itself.

use std::ops::Range;

use lowroad_wire::checksum;

use super::{
    ACK, GSO_TCPV4, GSO_TCPV6, MAX_PACKET, NEEDS_CSUM, PSH, TCP, TCP_CHECKSUM, Vnet, get16, get32,
    set_length,
};

/// Segments in one packet; the kernel takes more, in one `writev`, than ever fit.
const MAX_SEGMENTS: usize = 64;

/// One write: some packets of the batch.
#[derive(Debug)]
pub struct Frame {
    pub vnet: Vnet,
    /// The packet whose head it has.
    pub first: usize,
    /// The packets whose payload follows, and where it begins in each.
    pub more: Range<usize>,
    pub head: usize,
}

/// A segment that others may follow, and where it ends up.
#[derive(Clone, Copy, Debug)]
struct Segment {
    transport: usize,
    head: usize,
    payload: usize,
    sequence: u32,
    pushes: bool,
}

#[derive(Debug)]
struct Open {
    first: usize,
    segment: Segment,
    members: Vec<usize>,
    length: usize,
    /// Nothing follows a short segment, or one that pushes.
    closed: bool,
    pushes: bool,
}

/// Keeps its memory from batch to batch.
#[derive(Debug, Default)]
pub struct Coalescer {
    open: Vec<Open>,
    spare: Vec<Vec<usize>>,
    frames: Vec<Frame>,
    /// What `Frame::more` points into.
    members: Vec<usize>,
}

/// What a packet is to the streams of the batch.
enum Sort {
    Segment(Segment),
    /// Of a TCP connection, but has to stay as it is.
    Alone,
    /// TCP that hides its ports: nothing may overtake it.
    Barrier,
    Other,
}

impl Coalescer {
    /// Heads of packets that lead others are changed. The order of frames is that of the packets they begin with.
    pub fn coalesce<P: AsMut<[u8]>>(&mut self, packets: &mut [P]) {
        self.frames.clear();
        self.members.clear();
        for number in 0..packets.len() {
            let (before, rest) = packets.split_at_mut(number);
            let packet = &*rest[0].as_mut();
            match sort(packet) {
                Sort::Segment(segment) => {
                    let last = self.last_of(before, packet);
                    let follows = last.is_some_and(|at| {
                        let open = &self.open[at];
                        open.takes(before[open.first].as_mut(), packet, &segment)
                    });
                    match last {
                        Some(at) if follows => self.open[at].add(number, &segment),
                        _ => {
                            last.into_iter().for_each(|at| self.open[at].closed = true);
                            self.begin(number, segment);
                        }
                    }
                }
                Sort::Alone => {
                    let last = self.last_of(before, packet);
                    last.into_iter().for_each(|at| self.open[at].closed = true);
                    self.alone(number, packet.len());
                }
                Sort::Barrier => {
                    self.open.iter_mut().for_each(|open| open.closed = true);
                    self.alone(number, packet.len());
                }
                Sort::Other => self.alone(number, packet.len()),
            }
        }
        self.finish(packets);
    }

    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    pub fn members(&self, frame: &Frame) -> &[usize] {
        &self.members[frame.more.clone()]
    }

    /// The newest packet of the same connection that others may follow.
    fn last_of<P: AsMut<[u8]>>(&self, before: &mut [P], packet: &[u8]) -> Option<usize> {
        let connection = connection(packet);
        self.open
            .iter()
            .rposition(|open| connection == self::connection(before[open.first].as_mut()))
    }

    fn begin(&mut self, number: usize, segment: Segment) {
        self.open.push(Open {
            first: number,
            members: self.spare.pop().unwrap_or_default(),
            length: segment.head + segment.payload,
            closed: segment.pushes,
            pushes: segment.pushes,
            segment,
        });
    }

    fn alone(&mut self, number: usize, length: usize) {
        self.frames.push(Frame {
            vnet: Vnet::default(),
            first: number,
            more: 0..0,
            head: length,
        });
    }

    fn finish<P: AsMut<[u8]>>(&mut self, packets: &mut [P]) {
        for mut open in self.open.drain(..) {
            let packet = packets[open.first].as_mut();
            let from = self.members.len();
            self.members.append(&mut open.members);
            self.spare.push(open.members);
            let more = from..self.members.len();
            let vnet = match more.is_empty() {
                true => Vnet::default(),
                false => lead(
                    &mut packet[..open.segment.head],
                    &open.segment,
                    open.length,
                    open.pushes,
                ),
            };
            self.frames.push(Frame {
                vnet,
                first: open.first,
                more,
                head: open.segment.head,
            });
        }
        self.frames.sort_unstable_by_key(|frame| frame.first);
    }
}

impl Open {
    fn takes(&self, first: &[u8], packet: &[u8], segment: &Segment) -> bool {
        let own = &self.segment;
        let next = own.sequence.wrapping_add((self.length - own.head) as u32);
        !self.closed
            && segment.sequence == next
            && segment.head == own.head
            && segment.payload <= own.payload
            && self.length + segment.payload <= MAX_PACKET
            && self.members.len() + 1 < MAX_SEGMENTS
            && same_head(&first[..own.head], &packet[..own.head], own.transport)
    }

    fn add(&mut self, number: usize, segment: &Segment) {
        self.members.push(number);
        self.length += segment.payload;
        self.pushes = segment.pushes;
        self.closed = segment.pushes || segment.payload < self.segment.payload;
    }
}

/// But for lengths, checksums, IPv4's identification, the sequence number and PSH.
fn same_head(one: &[u8], other: &[u8], transport: usize) -> bool {
    let same = |range: Range<usize>| one[range.clone()] == other[range];
    let ip = match one[0] >> 4 {
        6 => same(0..4) && same(6..transport),
        _ => same(0..2) && same(6..10) && same(12..transport),
    };
    let tcp = transport;
    let flags = (one[tcp + 13] ^ other[tcp + 13]) & !PSH;
    ip && same(tcp..tcp + 4)
        && same(tcp + 8..tcp + 13)
        && flags == 0
        && same(tcp + 14..tcp + TCP_CHECKSUM)
        && same(tcp + 18..one.len())
}

/// Addresses and ports: of TCP without anything between the headers, which is all that is ever asked.
fn connection(packet: &[u8]) -> (&[u8], &[u8]) {
    match packet[0] >> 4 {
        6 => (&packet[8..40], &packet[40..44]),
        _ => (&packet[12..20], &packet[20..24]),
    }
}

fn sort(packet: &[u8]) -> Sort {
    let Some(first) = packet.first() else {
        return Sort::Other;
    };
    let (transport, protocol, length, plain) = match first >> 4 {
        4 if packet.len() >= 20 => (
            20,
            packet[9],
            usize::from(get16(packet, 2)),
            // No options, and no fragment: neither "more" nor an offset.
            first & 15 == 5 && get16(packet, 6) & 0x3fff == 0,
        ),
        6 if packet.len() >= 40 => (40, packet[6], 40 + usize::from(get16(packet, 4)), true),
        _ => return Sort::Other,
    };
    if protocol != TCP {
        // Behind IPv6's extension headers anything may hide.
        return match first >> 4 == 6 && matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135) {
            true => Sort::Barrier,
            false => Sort::Other,
        };
    }
    if !plain || packet.len() < transport + 20 {
        return Sort::Barrier;
    }
    match segment(packet, transport, length) {
        Some(segment) => Sort::Segment(segment),
        None => Sort::Alone,
    }
}

fn segment(packet: &[u8], transport: usize, length: usize) -> Option<Segment> {
    let head = transport + usize::from(packet[transport + 12] >> 4) * 4;
    let flags = packet[transport + 13];
    if head < transport + 20 || length != packet.len() || length <= head {
        return None;
    }
    if flags & !PSH != ACK || !has_right_checksums(packet, transport) {
        return None;
    }
    Some(Segment {
        transport,
        head,
        payload: length - head,
        sequence: get32(packet, transport + 4),
        pushes: flags & PSH != 0,
    })
}

fn has_right_checksums(packet: &[u8], transport: usize) -> bool {
    let tail = checksum::pseudo_tail(TCP, packet.len() - transport);
    (transport != 20 || checksum::is_right(&[&packet[..20]]))
        && checksum::is_right(&[checksum::addresses(packet), &tail, &packet[transport..]])
}

/// Makes `head` that of the whole.
fn lead(head: &mut [u8], segment: &Segment, length: usize, pushes: bool) -> Vnet {
    let tcp = segment.transport;
    set_length(head, length);
    if pushes {
        head[tcp + 13] |= PSH;
    }
    let tail = checksum::pseudo_tail(TCP, length - tcp);
    let sum = checksum::partial(&[checksum::addresses(head), &tail]);
    head[tcp + TCP_CHECKSUM..][..2].copy_from_slice(&sum);
    Vnet {
        flags: NEEDS_CSUM,
        gso_type: match head[0] >> 4 {
            6 => GSO_TCPV6,
            _ => GSO_TCPV4,
        },
        hdr_len: segment.head as u16,
        gso_size: segment.payload as u16,
        csum_start: tcp as u16,
        csum_offset: TCP_CHECKSUM as u16,
    }
}
