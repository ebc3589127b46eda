//! What the kernel says about eBPF, by bpf(2): which objects exist, and what hangs on a device.

use std::io;

use anyhow::{Result, bail};

const PROG_QUERY: libc::c_int = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Commands that walk the ids of a kind of object.
const NEXT_ID: &[(libc::c_int, &str)] = &[(11, "program"), (12, "map"), (31, "link")];

/// Part of `union bpf_attr`, as large as all kernels that we meet take it (what lies beyond their own must be zero).
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes([u32; 16]);

fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes live through the call; none of the commands here is given a pointer in them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many objects of each kind there are on this machine. Objects that were let go of vanish a moment later.
pub fn objects() -> Result<String> {
    let mut out = String::new();
    for (command, kind) in NEXT_ID {
        let mut id = 0;
        let mut ids = 0;
        loop {
            let mut attributes = Attributes::default();
            attributes.0[0] = id;
            match call(*command, &mut attributes) {
                Ok(()) => id = attributes.0[1],
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => bail!("listing eBPF {kind}s: {error}"),
            }
            ids += 1;
        }
        out.push_str(&format!("{ids} {kind}s\n"));
    }
    Ok(out)
}

/// Whether a program hangs on both sides of the device. False, too, on kernels without TCX.
pub fn has_tcx_programs(index: u32) -> bool {
    [TCX_INGRESS, TCX_EGRESS].into_iter().all(|side| {
        let mut attributes = Attributes::default();
        attributes.0[0] = index;
        attributes.0[1] = side;
        // `count` follows flags and a pointer, which is null: only the number is asked.
        call(PROG_QUERY, &mut attributes).is_ok() && attributes.0[6] > 0
    })
}
