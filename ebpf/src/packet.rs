//! Headers, read as `protocol.md` 5.3 steps 2 and 3 say.

use aya_ebpf::programs::TcContext;
use lowroad_abi::{DISCO_MAGIC, DISCO_MIN_LEN, DropReason, Settings, Tuple};

pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FRAGMENT_HEADER: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const TSMP: u8 = 99;
pub const SCTP: u8 = 132;

/// A later fragment nearer to the packet's begin, in blocks of 8 bytes, could overwrite transport headers.
const MIN_FRAGMENT_BLOCKS: u16 = 10;

/// What the programs know of a packet.
pub struct Packet {
    pub tuple: Tuple,
    /// A fragment other than the first: no transport header.
    pub later_fragment: bool,
    /// First transport bytes: ports, or ICMP type and code.
    pub head: [u8; 4],
    pub tcp_flags: u8,
    /// Where the transport header is, and how many bytes the IP length leaves for it and what follows.
    pub transport: u32,
    pub transport_len: u32,
    /// Bytes of the whole packet.
    pub length: u32,
}

impl Packet {
    #[inline(always)]
    pub fn new(length: u32) -> Self {
        Self {
            tuple: Tuple {
                source: [0; 16],
                destination: [0; 16],
                source_port: [0; 2],
                destination_port: [0; 2],
                family: 0,
                protocol: 0,
            },
            later_fragment: false,
            head: [0; 4],
            tcp_flags: 0,
            transport: 0,
            transport_len: 0,
            length,
        }
    }

    /// Reads the headers. Refused packets leave what was read so far, for the event.
    #[inline(always)]
    pub fn parse(&mut self, ctx: &TcContext) -> Result<(), DropReason> {
        let first: [u8; 20] = ctx.load(0).map_err(|_| DropReason::TooShort)?;
        let fragment = match first[0] >> 4 {
            4 => self.v4(&first)?,
            6 => self.v6(ctx)?,
            _ => return Err(DropReason::UnknownProtocol),
        };
        self.later_fragment = fragment.blocks > 0;
        if self.later_fragment {
            if fragment.blocks < MIN_FRAGMENT_BLOCKS {
                return Err(DropReason::Fragment);
            }
            return Ok(());
        }
        self.transport(ctx)?;
        if self.tuple.protocol == TSMP && fragment.more && self.tuple.family == 4 {
            return Err(DropReason::Fragment);
        }
        Ok(())
    }

    #[inline(always)]
    fn v4(&mut self, h: &[u8; 20]) -> Result<Fragment, DropReason> {
        self.tuple.family = 4;
        self.tuple.protocol = h[9];
        self.tuple.source[..4].copy_from_slice(&h[12..16]);
        self.tuple.destination[..4].copy_from_slice(&h[16..20]);
        let header = (h[0] & 15) as u32 * 4;
        let length = u16::from_be_bytes([h[2], h[3]]) as u32;
        if header < 20 || length > self.length || header > length {
            return Err(DropReason::TooShort);
        }
        self.transport = header;
        self.transport_len = length - header;
        let fragment = u16::from_be_bytes([h[6], h[7]]);
        Ok(Fragment {
            blocks: fragment & 0x1fff,
            more: fragment & 0x2000 != 0,
        })
    }

    #[inline(always)]
    fn v6(&mut self, ctx: &TcContext) -> Result<Fragment, DropReason> {
        let h: [u8; 40] = ctx.load(0).map_err(|_| DropReason::TooShort)?;
        self.tuple.family = 6;
        self.tuple.protocol = h[6];
        self.tuple.source.copy_from_slice(&h[8..24]);
        self.tuple.destination.copy_from_slice(&h[24..40]);
        let payload = u16::from_be_bytes([h[4], h[5]]) as u32;
        if 40 + payload > self.length {
            return Err(DropReason::TooShort);
        }
        self.transport = 40;
        self.transport_len = payload;
        if self.tuple.protocol != FRAGMENT_HEADER {
            return Ok(Fragment {
                blocks: 0,
                more: false,
            });
        }
        if payload < 8 {
            return Err(DropReason::TooShort);
        }
        let f: [u8; 4] = ctx.load(40).map_err(|_| DropReason::TooShort)?;
        self.tuple.protocol = f[0];
        self.transport = 48;
        self.transport_len = payload - 8;
        let fragment = u16::from_be_bytes([f[2], f[3]]);
        Ok(Fragment {
            blocks: fragment >> 3,
            more: fragment & 1 != 0,
        })
    }

    #[inline(always)]
    fn transport(&mut self, ctx: &TcContext) -> Result<(), DropReason> {
        let at = self.transport as usize;
        let (least, ports) = match (self.tuple.protocol, self.tuple.family) {
            (0 | 255, _) => return Err(DropReason::UnknownProtocol),
            (TCP, _) => (20, true),
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
        self.head = ctx.load(at).map_err(|_| DropReason::TooShort)?;
        if ports {
            self.tuple.source_port = [self.head[0], self.head[1]];
            self.tuple.destination_port = [self.head[2], self.head[3]];
        }
        if self.tuple.protocol == TCP {
            self.tcp_flags = ctx.load(at + 13).map_err(|_| DropReason::TooShort)?;
        }
        Ok(())
    }

    /// Step 3. IPv4-mapped IPv6 destinations are judged by their IPv4 address, without the exception for the metadata service.
    #[inline(always)]
    pub fn check_destination(&self) -> Result<(), DropReason> {
        let d = &self.tuple.destination;
        let mut v4 = [d[0], d[1], d[2], d[3]];
        let native = self.tuple.family == 4;
        if !native {
            let mapped = d[0] | d[1] | d[2] | d[3] | d[4] | d[5] | d[6] | d[7] | d[8] | d[9] == 0
                && d[10] & d[11] == 0xff;
            if !mapped {
                return if d[0] == 0xff {
                    Err(DropReason::Multicast)
                } else if d[0] == 0xfe && d[1] & 0xc0 == 0x80 {
                    Err(DropReason::LinkLocalUnicast)
                } else {
                    Ok(())
                };
            }
            v4 = [d[12], d[13], d[14], d[15]];
        }
        if v4[0] & 0xf0 == 0xe0 {
            Err(DropReason::Multicast)
        } else if v4[0] == 169 && v4[1] == 254 && !(native && v4[2] == 169 && v4[3] == 254) {
            Err(DropReason::LinkLocalUnicast)
        } else {
            Ok(())
        }
    }

    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.tuple.protocol == if self.tuple.family == 4 { ICMP } else { ICMPV6 }
    }

    /// SYN without ACK.
    #[inline(always)]
    pub fn is_tcp_syn(&self) -> bool {
        self.tuple.protocol == TCP && self.tcp_flags & 0x12 == 0x02
    }

    /// Answers and errors, which belong to something that we sent.
    #[inline(always)]
    pub fn is_icmp_reply(&self) -> bool {
        let [kind, code, ..] = self.head;
        self.transport_len >= 8
            && if self.tuple.family == 4 {
                (kind == 0 && code == 0) || kind == 3 || kind == 11 || kind == 18
            } else {
                (kind == 129 && code == 0) || (kind >= 1 && kind <= 4)
            }
    }

    /// Our own disco inside the tunnel.
    #[inline(always)]
    pub fn is_own_disco(&self, ctx: &TcContext, settings: &Settings) -> bool {
        if self.tuple.protocol != UDP
            || !settings.has(Settings::DISCO)
            || self.transport_len < 8 + DISCO_MIN_LEN as u32
        {
            return false;
        }
        let payload = self.transport as usize + 8;
        let Ok(magic) = ctx.load::<[u8; 6]>(payload) else {
            return false;
        };
        if magic != DISCO_MAGIC {
            return false;
        }
        let Ok(sender) = ctx.load::<[u64; 4]>(payload + DISCO_MAGIC.len()) else {
            return false;
        };
        sender == words(settings.disco())
    }
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
