//! Somebody else's eBPF program on a device by TCX (kernels from 6.6): it counts packets, and lets them go on to the next program.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use super::Namespace;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    // BPF_TCX_INGRESS and BPF_TCX_EGRESS.
    In = 46,
    Out = 47,
}

/// Where the program sits among those of the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    // BPF_F_BEFORE and BPF_F_AFTER, of all.
    First = 1 << 3,
    Last = 1 << 4,
}

/// Hangs there until dropped, or until the device goes.
#[derive(Debug)]
pub struct Counter {
    map: OwnedFd,
    link: OwnedFd,
}

// Commands, types and sizes of <linux/bpf.h>.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const OBJ_GET_INFO: libc::c_int = 15;
const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;

impl Counter {
    pub fn attach(host: &Namespace, device: &str, way: Way, place: Place) -> Result<Self> {
        let name = std::ffi::CString::new(device)?;
        // A device's number means the device of the namespace that one is in.
        host.enter(|| {
            // SAFETY: a terminated string that outlives the call.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            let map = made(MAP_CREATE, &words(&[ARRAY, 4, 8, 1]))?;
            let program = load(&map)?;
            let at = [program.as_raw_fd() as u32, index, way as u32, place as u32];
            let link = made(LINK_CREATE, &words(&at))?;
            Ok::<_, io::Error>(Self { map, link })
        })?
        .with_context(|| format!("attach a program to {device} by TCX"))
    }

    /// How many packets it has seen.
    pub fn packets(&self) -> Result<u64> {
        let (key, mut value) = (0u32, 0u64);
        let mut attributes = words(&[self.map.as_raw_fd() as u32, 0]);
        attributes.extend((&raw const key as u64).to_ne_bytes());
        attributes.extend((&raw mut value as u64).to_ne_bytes());
        bpf(MAP_LOOKUP, &attributes).context("read the program's counter")?;
        Ok(value)
    }

    /// The number of the device that it hangs on; 0 once that is gone, or the program was taken off.
    pub fn device(&self) -> Result<u32> {
        // `struct bpf_link_info`: type, id, program, padding, then of TCX the device.
        let mut info = [0u32; 16];
        let mut attributes = words(&[self.link.as_raw_fd() as u32, size_of_val(&info) as u32]);
        attributes.extend((info.as_mut_ptr() as u64).to_ne_bytes());
        bpf(OBJ_GET_INFO, &attributes).context("ask for the link")?;
        Ok(info[4])
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// One instruction: code, registers (source, destination), offset, immediate.
fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut out = [0; 8];
    out[0] = code;
    out[1] = registers;
    out[2..4].copy_from_slice(&offset.to_ne_bytes());
    out[4..].copy_from_slice(&immediate.to_ne_bytes());
    out
}

fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    const LOOKUP: i32 = 1;
    const TCX_NEXT: i32 = -1;
    let program = [
        // *(u32 *)(r10 - 4) = 0; r2 = r10 - 4; r1 = map
        instruction(0x62, 0x0a, -4, 0),
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 0x02, 0, -4),
        instruction(0x18, 0x11, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0),
        // r0 = lookup(r1, r2); if it is there, add 1 to it, atomically
        instruction(0x85, 0, 0, LOOKUP),
        instruction(0x15, 0x00, 2, 0),
        instruction(0xb7, 0x01, 0, 1),
        instruction(0xdb, 0x10, 0, 0),
        instruction(0xb7, 0x00, 0, TCX_NEXT),
        instruction(0x95, 0, 0, 0),
    ]
    .concat();
    let mut attributes = words(&[SCHED_CLS, (program.len() / 8) as u32]);
    attributes.extend((program.as_ptr() as u64).to_ne_bytes());
    attributes.extend((c"GPL".as_ptr() as u64).to_ne_bytes());
    made(PROG_LOAD, &attributes)
}

fn made(command: libc::c_int, attributes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: a descriptor that the call has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

fn bpf(command: libc::c_int, attributes: &[u8]) -> io::Result<libc::c_long> {
    // The rest of `union bpf_attr` is zero; its 64-bit members want their alignment.
    let mut union = [0u64; 16];
    for (at, byte) in attributes.iter().enumerate() {
        union[at / 8] |= u64::from(*byte) << (at % 8 * 8);
    }
    // SAFETY: the attributes, and what they point to in the callers, live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            union.as_mut_ptr(),
            size_of_val(&union),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
