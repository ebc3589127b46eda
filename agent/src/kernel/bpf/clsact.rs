//! Which filters hang on a device's clsact qdisc, and whose. aya attaches there but doesn't ask.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// The kernel answers at once; this only bounds a surprise.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

const NLMSG_HEADER: usize = 16;
/// `struct tcmsg`.
const TC_HEADER: usize = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Attributes of a filter, and of one of kind `bpf` within its options.
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
/// Flags of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A filter on ingress or egress of clsact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub priority: u16,
    pub handle: u32,
    /// Of its program, if it is of kind `bpf`.
    pub name: Option<Vec<u8>>,
}

/// The filters there. A device without clsact has none.
pub(super) fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let protocol = Some(Protocol::from(libc::NETLINK_ROUTE));
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.send(&dump_request(ifindex, parent))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 15];
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Ok(Vec::new()),
                libc::RTM_NEWTFILTER => found.extend(filter(body, ifindex, parent)),
                _ => {}
            }
            rest = next;
        }
    }
}

fn dump_request(ifindex: u32, parent: u32) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut out = Vec::with_capacity(NLMSG_HEADER + TC_HEADER);
    out.extend(((NLMSG_HEADER + TC_HEADER) as u32).to_ne_bytes());
    out.extend(libc::RTM_GETTFILTER.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([0; 4]);
    out.extend(ifindex.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(parent.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out
}

/// Type and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(NLMSG_HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

/// A filter from its message; those of other devices and places, and a priority's own message (it has no handle), are none.
fn filter(tcmsg: &[u8], ifindex: u32, parent: u32) -> Option<Filter> {
    let (there, handle) = (word(tcmsg, 4)?, word(tcmsg, 8)?);
    if there != ifindex || word(tcmsg, 12)? != parent || handle == 0 {
        return None;
    }
    let options = attribute(tcmsg.get(TC_HEADER..)?, TCA_OPTIONS);
    let name = options.and_then(|options| attribute(options, TCA_BPF_NAME));
    Some(Filter {
        priority: (word(tcmsg, 16)? >> 16) as u16,
        handle,
        name: name.map(|name| name.strip_suffix(&[0]).unwrap_or(name).to_vec()),
    })
}

/// The value of the first attribute of this type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    const HEADER: usize = 4;
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)? & NLA_TYPE_MASK);
        let value = bytes.get(HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
