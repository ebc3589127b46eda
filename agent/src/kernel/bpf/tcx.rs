//! Which programs hang on a device by TCX. aya asks, too, but looks each program up by its number, which takes CAP_SYS_ADMIN.

use lowroad_core::filter::Direction;

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Of all users of the device. Far more than anybody attaches.
const PROGRAMS: usize = 64;

/// The members of `union bpf_attr` for this command.
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// Their numbers; none on a device that is gone, or without TCX.
pub(super) fn programs(ifindex: u32, direction: Direction) -> Vec<u32> {
    let mut ids = [0u32; PROGRAMS];
    let mut query = Query {
        ifindex,
        attach_type: match direction {
            Direction::In => BPF_TCX_INGRESS,
            Direction::Out => BPF_TCX_EGRESS,
        },
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: PROGRAMS as u32,
        padding: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: `query` and the array that it points to, with its length, live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result < 0 {
        return Vec::new();
    }
    let count = PROGRAMS.min(query.count as usize);
    ids[..count].to_vec()
}
