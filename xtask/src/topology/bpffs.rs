//! `/sys/fs/bpf` as it was before: mounted here if it wasn't, and only then unmounted at the end.

use std::{
    ffi::CString,
    fs, io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};

const FOLDER: &str = "/sys/fs/bpf";
const PINS: &str = "/sys/fs/bpf/lowroad";

static USERS: Mutex<Users> = Mutex::new(Users {
    count: 0,
    mounted_here: false,
});

struct Users {
    count: usize,
    mounted_here: bool,
}

/// As long as one of these exists, the bpffs is mounted.
#[derive(Debug)]
pub struct Bpffs(());

impl Bpffs {
    pub fn mount() -> Result<Self> {
        let mut users = users();
        if users.count == 0 && !is_mounted() {
            mount_bpf().with_context(|| format!("mount a bpffs on {FOLDER}"))?;
            users.mounted_here = true;
        }
        users.count += 1;
        Ok(Self(()))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let mut users = users();
        users.count -= 1;
        if users.count > 0 || !users.mounted_here {
            return;
        }
        users.mounted_here = false;
        // Empty only if nobody else has begun to use it.
        let _ = fs::remove_dir(PINS);
        let empty = fs::read_dir(FOLDER).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            let folder = CString::new(FOLDER).expect("no zero byte");
            // SAFETY: a terminated path that outlives the call.
            unsafe { libc::umount(folder.as_ptr()) };
        }
    }
}

fn users() -> MutexGuard<'static, Users> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_mounted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(FOLDER) && fields.next() == Some("bpf")
    })
}

fn mount_bpf() -> io::Result<()> {
    if !Path::new(FOLDER).exists() {
        return Err(io::Error::other("the kernel has no bpf file system"));
    }
    let kind = CString::new("bpf").expect("no zero byte");
    let folder = CString::new(FOLDER).expect("no zero byte");
    // SAFETY: terminated strings that outlive the call; no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
