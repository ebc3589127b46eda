//! Headers, read as `protocol.md` 5.3 steps 2 and 3 say.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{DISCO_MAGIC, DISCO_MIN_LEN, DropReason, Settings, Tuple};

use crate::{rules::bytes, unknown};

pub const ICMP: u32 = 1;
pub const IGMP: u32 = 2;
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;
pub const FRAGMENT_HEADER: u32 = 44;
pub const ICMPV6: u32 = 58;
pub const TSMP: u32 = 99;
pub const SCTP: u32 = 132;

/// A later fragment nearer to the packet's begin, in blocks of 8 bytes, could overwrite transport headers.
const MIN_FRAGMENT_BLOCKS: u16 = 10;

/// Length of the longest IPv4 header, and of the longest before a transport header in IPv6 that is read.
const MAX_TRANSPORT: u32 = 60;
/// Bits of it, for the verifier.
const OFFSET_BITS: u32 = 63;
const _: () = assert!(MAX_TRANSPORT <= OFFSET_BITS);

/// What the programs know of a packet, in words: smaller fields are cleared by a call, and make the verifier follow more ways. Addresses and `head` are as in the packet.
pub struct Packet {
    /// IPv4 addresses in the first word, the rest zero.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// 4 or 6; 0 where the packet was too short to tell.
    pub family: u32,
    pub protocol: u32,
    /// One if the transport header begins with ports, and was read.
    has_ports: u32,
    /// One for a fragment other than the first: no transport header.
    later_fragment: u32,
    pub tcp_flags: u32,
    /// First transport bytes: ports, or ICMP type and code.
    pub head: u32,
    /// Where the transport header is, and how many bytes the IP length leaves for it and what follows.
    pub transport: u32,
    pub transport_len: u32,
    /// Bytes of the whole packet.
    pub length: u32,
}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        // Known zeroes would become a call.
        let zero = unknown::zero(ctx);
        Self {
            source: [zero; 4],
            destination: [zero; 4],
            family: zero,
            protocol: zero,
            has_ports: zero,
            later_fragment: zero,
            tcp_flags: zero,
            head: zero,
            transport: zero,
            transport_len: zero,
            length: ctx.len(),
        }
    }

    /// Reads the headers. Refused packets leave what was read so far, for the event.
    #[inline(always)]
    pub fn parse(&mut self, ctx: &TcContext) -> Result<(), DropReason> {
        let first: [u32; 5] = read(ctx, 0).ok_or(DropReason::TooShort)?;
        let [b, ..] = first[0].to_ne_bytes();
        let fragment = match b >> 4 {
            4 => self.v4(first)?,
            6 => self.v6(ctx)?,
            _ => return Err(DropReason::UnknownProtocol),
        };
        if fragment.blocks > 0 {
            self.later_fragment = 1;
            if fragment.blocks < MIN_FRAGMENT_BLOCKS {
                return Err(DropReason::Fragment);
            }
            return Ok(());
        }
        self.transport(ctx)?;
        if self.protocol == TSMP && fragment.more && self.family == 4 {
            return Err(DropReason::Fragment);
        }
        Ok(())
    }

    /// Has the verifier forget which way the headers were read: what is constant on some ways is unknown afterwards, as the rest is anyway.
    #[inline(always)]
    pub fn forget(&mut self, zero: u32) {
        self.family ^= zero;
        self.protocol ^= zero;
        self.has_ports ^= zero;
        self.later_fragment ^= zero;
        self.transport ^= zero;
        // Read from the packet or from where a call put it: the verifier tells these two apart.
        self.source[0] ^= zero;
        self.destination[0] ^= zero;
    }

    #[inline(always)]
    fn v4(&mut self, h: [u32; 5]) -> Result<Fragment, DropReason> {
        let [version, _, length_0, length_1] = h[0].to_ne_bytes();
        let [_, _, fragment_0, fragment_1] = h[1].to_ne_bytes();
        let [_, protocol, ..] = h[2].to_ne_bytes();
        self.family = 4;
        self.protocol = protocol as u32;
        self.source[0] = h[3];
        self.destination[0] = h[4];
        let header = (version & 15) as u32 * 4;
        let length = u16::from_be_bytes([length_0, length_1]) as u32;
        if header < 20 || length > self.length || header > length {
            return Err(DropReason::TooShort);
        }
        self.transport = header;
        self.transport_len = length - header;
        let fragment = u16::from_be_bytes([fragment_0, fragment_1]);
        Ok(Fragment {
            blocks: fragment & 0x1fff,
            more: fragment & 0x2000 != 0,
        })
    }

    #[inline(always)]
    fn v6(&mut self, ctx: &TcContext) -> Result<Fragment, DropReason> {
        let h: [u32; 10] = read(ctx, 0).ok_or(DropReason::TooShort)?;
        let [payload_0, payload_1, protocol, _] = h[1].to_ne_bytes();
        self.family = 6;
        self.protocol = protocol as u32;
        self.source = [h[2], h[3], h[4], h[5]];
        self.destination = [h[6], h[7], h[8], h[9]];
        let payload = u16::from_be_bytes([payload_0, payload_1]) as u32;
        if 40 + payload > self.length {
            return Err(DropReason::TooShort);
        }
        self.transport = 40;
        self.transport_len = payload;
        if self.protocol != FRAGMENT_HEADER {
            return Ok(Fragment {
                blocks: 0,
                more: false,
            });
        }
        if payload < 8 {
            return Err(DropReason::TooShort);
        }
        let f: u32 = read(ctx, 40).ok_or(DropReason::TooShort)?;
        let [protocol, _, fragment_0, fragment_1] = f.to_ne_bytes();
        self.protocol = protocol as u32;
        self.transport = 48;
        self.transport_len = payload - 8;
        let fragment = u16::from_be_bytes([fragment_0, fragment_1]);
        Ok(Fragment {
            blocks: fragment >> 3,
            more: fragment & 1 != 0,
        })
    }

    #[inline(always)]
    fn transport(&mut self, ctx: &TcContext) -> Result<(), DropReason> {
        let at = self.transport;
        let (least, ports) = match (self.protocol, self.family) {
            (0 | 255, _) => return Err(DropReason::UnknownProtocol),
            (TCP, _) => {
                if self.transport_len < 20 {
                    return Err(DropReason::TooShort);
                }
                let h: [u32; 4] = read(ctx, at).ok_or(DropReason::TooShort)?;
                let [_, flags, ..] = h[3].to_ne_bytes();
                self.head = h[0];
                self.has_ports = 1;
                self.tcp_flags = flags as u32;
                return Ok(());
            }
            (UDP, _) => (8, true),
            (SCTP, _) => (12, true),
            (TSMP, _) => (7, false),
            (ICMP, 4) | (ICMPV6, 6) => (4, false),
            (IGMP, 4) => (8, false),
            _ => return Ok(()),
        };
        if self.transport_len < least {
            return Err(DropReason::TooShort);
        }
        self.head = read(ctx, at).ok_or(DropReason::TooShort)?;
        self.has_ports = ports as u32;
        Ok(())
    }

    #[inline(always)]
    pub fn source_port_bytes(&self) -> [u8; 2] {
        let [a, b, ..] = self.head.to_ne_bytes();
        [a, b]
    }
    #[inline(always)]
    pub fn destination_port_bytes(&self) -> [u8; 2] {
        let [.., a, b] = self.head.to_ne_bytes();
        [a, b]
    }
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        u16::from_be_bytes(self.destination_port_bytes())
    }

    /// For the agent.
    #[inline(always)]
    pub fn tuple(&self) -> Tuple {
        let ports = |bytes| if self.has_ports != 0 { bytes } else { [0; 2] };
        Tuple {
            source: bytes(self.source),
            destination: bytes(self.destination),
            source_port: ports(self.source_port_bytes()),
            destination_port: ports(self.destination_port_bytes()),
            family: self.family as u8,
            protocol: self.protocol as u8,
        }
    }

    /// Step 3. IPv4-mapped IPv6 destinations are judged by their IPv4 address, without the exception for the metadata service.
    #[inline(always)]
    pub fn check_destination(&self) -> Result<(), DropReason> {
        let native = self.family == 4;
        let [mut a, mut b, mut c, mut d] = self.destination[0].to_ne_bytes();
        if !native {
            let mapped = self.destination[0] | self.destination[1] == 0
                && self.destination[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
            if !mapped {
                return if a == 0xff {
                    Err(DropReason::Multicast)
                } else if a == 0xfe && b & 0xc0 == 0x80 {
                    Err(DropReason::LinkLocalUnicast)
                } else {
                    Ok(())
                };
            }
            [a, b, c, d] = self.destination[3].to_ne_bytes();
        }
        if a & 0xf0 == 0xe0 {
            Err(DropReason::Multicast)
        } else if a == 169 && b == 254 && !(native && c == 169 && d == 254) {
            Err(DropReason::LinkLocalUnicast)
        } else {
            Ok(())
        }
    }

    /// One other than the first.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.later_fragment != 0
    }

    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.family == 4 { ICMP } else { ICMPV6 }
    }

    /// SYN without ACK.
    #[inline(always)]
    pub fn is_tcp_syn(&self) -> bool {
        self.protocol == TCP && self.tcp_flags & 0x12 == 0x02
    }

    /// Answers and errors, which belong to something that we sent.
    #[inline(always)]
    pub fn is_icmp_reply(&self) -> bool {
        let [kind, code, ..] = self.head.to_ne_bytes();
        self.transport_len >= 8
            && if self.family == 4 {
                (kind == 0 && code == 0) || kind == 3 || kind == 11 || kind == 18
            } else {
                (kind == 129 && code == 0) || (kind >= 1 && kind <= 4)
            }
    }

    /// Our own disco inside the tunnel.
    #[inline(always)]
    pub fn is_own_disco(&self, ctx: &TcContext, settings: &Settings) -> bool {
        if self.protocol != UDP
            || !settings.has(Settings::DISCO)
            || self.transport_len < 8 + DISCO_MIN_LEN as u32
        {
            return false;
        }
        // The verifier does not know any more that the offset is small.
        let payload = (self.transport & OFFSET_BITS) + 8;
        let Some([first, then]) = read::<[u32; 2]>(ctx, payload) else {
            return false;
        };
        let [a, b, c, d, e, f] = DISCO_MAGIC;
        // As integers: comparing byte arrays becomes a call to `memcmp`.
        if first != u32::from_ne_bytes([a, b, c, d])
            || then & u32::from_ne_bytes([0xff, 0xff, 0, 0]) != u32::from_ne_bytes([e, f, 0, 0])
        {
            return false;
        }
        let Some(sender) = read::<[u64; 4]>(ctx, payload + DISCO_MAGIC.len() as u32) else {
            return false;
        };
        let [a, b, c, d] = words(settings.disco());
        // Not `==`, which becomes a call too.
        (sender[0] ^ a) | (sender[1] ^ b) | (sender[2] ^ c) | (sender[3] ^ d) == 0
    }
}

/// Reads whole words of the packet: directly where they are in its linear part, as headers are but for odd senders, which costs next to nothing; else by a call, which costs
/// as much as half a verdict. Nothing is pulled into the linear part: that copies the header of every segment that TCP keeps for sending it again.
#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, at: u32) -> Option<T> {
    let begin = ctx.data() + at as usize;
    if begin + size_of::<T>() > ctx.data_end() {
        return ctx.load(at as usize).ok();
    }
    // SAFETY: inside the packet by the line above, which the verifier checks. BPF loads need no alignment, and any bytes are a valid value.
    Some(unsafe { *(begin as *const T) })
}

struct Fragment {
    /// Offset in blocks of 8 bytes.
    blocks: u16,
    more: bool,
}

/// As integers: comparing byte arrays becomes a call to `memcmp`, which there is none of.
#[inline(always)]
fn words(b: &[u8; 32]) -> [u64; 4] {
    let word = |n: usize| {
        u64::from_ne_bytes([
            b[n],
            b[n + 1],
            b[n + 2],
            b[n + 3],
            b[n + 4],
            b[n + 5],
            b[n + 6],
            b[n + 7],
        ])
    };
    [word(0), word(8), word(16), word(24)]
}
