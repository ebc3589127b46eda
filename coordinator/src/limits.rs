//! Limits of the process.

/// No core dump of us is ever written, wherever the host wants them, and no other process of our user may read our memory:
/// it holds private keys. From then on our entries in `/proc` belong to root.
pub fn keep_memory_private() {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit lives through the call, which only reads it.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    // A core pattern with a pipe is asked for a dump whatever the limit is; only this keeps it from getting one.
    // SAFETY: no pointers.
    let private = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if limited != 0 || private != 0 {
        tracing::warn!("cannot switch core dumps off");
    }
}

/// Every client holds a connection or two, and the usual limit is 1,024 files.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls take a pointer to a limit that lives as long as they run.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if !raised {
        tracing::warn!(
            "cannot raise the limit of open files; the number of clients is bounded by it"
        );
    }
}
