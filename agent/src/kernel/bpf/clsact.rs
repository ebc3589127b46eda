//! Which filters hang on a device's clsact qdisc. aya attaches there but doesn't ask.

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

/// A filter's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub ifindex: u32,
    /// Ingress or egress of clsact.
    pub parent: u32,
    pub priority: u16,
    pub handle: u32,
}

/// Whether there is a filter in this place. A device without clsact has none.
pub(super) fn has_filter(place: &Place) -> io::Result<bool> {
    let protocol = Some(Protocol::from(libc::NETLINK_ROUTE));
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.send(&dump_request(place))?;
    let mut found = false;
    let mut buffer = vec![0; 1 << 15];
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Ok(false),
                libc::RTM_NEWTFILTER => found |= is_at(body, place),
                _ => {}
            }
            rest = next;
        }
    }
}

fn dump_request(place: &Place) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut out = Vec::with_capacity(NLMSG_HEADER + TC_HEADER);
    out.extend(((NLMSG_HEADER + TC_HEADER) as u32).to_ne_bytes());
    out.extend(libc::RTM_GETTFILTER.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([0; 4]);
    out.extend(place.ifindex.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(place.parent.to_ne_bytes());
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

fn is_at(tcmsg: &[u8], place: &Place) -> bool {
    word(tcmsg, 4) == Some(place.ifindex)
        && word(tcmsg, 8) == Some(place.handle)
        && word(tcmsg, 12) == Some(place.parent)
        && word(tcmsg, 16).is_some_and(|info| info >> 16 == u32::from(place.priority))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
