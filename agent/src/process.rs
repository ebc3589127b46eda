//! This process: who it is, and that its memory stays its own.

use std::io;

use tokio::runtime::{Handle, RuntimeFlavor};

use anyhow::{Context, Result};

/// In bytes. [`give_memory_back`] leaves alone what is free at the end of a thread's share of the heap: each may keep this much there.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// The user that we run as.
pub fn own_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Runs what takes some milliseconds, and lets the other tasks of this worker (the userspace WireGuard's) go elsewhere meanwhile.
pub fn without_stalling<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Large pieces of memory are mapped, and gone when they are freed. Else glibc raises its threshold to the largest that was freed, up to 32 MiB, and each
/// thread's share of the heap keeps twice that at its end (`mallopt(3)`, `M_MMAP_THRESHOLD`).
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers each, before other threads begin.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Gives memory that is free back to the host: after what took much of it. Else each thread's share of the heap keeps what it once needed, and a netmap of ten
/// thousand peers leaves more behind than it takes.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number of bytes to keep, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// No core dump of us is ever written, wherever the host wants them, and no other process of our user may read our memory: it holds private keys.
///
/// From then on our entries in `/proc` belong to root.
pub fn keep_memory_private() -> Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit lives through the call, which only reads it.
    done(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // A core pattern with a pipe is asked for a dump whatever the limit is; only this keeps it from getting one.
    // SAFETY: no pointers.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

fn done(status: libc::c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("cannot switch core dumps off"),
    }
}
