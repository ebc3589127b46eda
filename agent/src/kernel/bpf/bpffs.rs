//! Where pins go, and whether they would outlive the agent there.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::FilterError;

/// Magic number of a bpffs, in `statfs`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// As the source of a mount (a bpffs has none): who mounted it.
const MOUNTED_BY_US: &CStr = c"lowroad";

/// `<bpffs>/lowroad/<state id>/`: links, and a directory of maps per version of their layout.
#[derive(Clone, Debug)]
pub(super) struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// The directory, if pins there outlive this process: `None` if the bpffs is one of a mount namespace of our own, or cannot be had.
    pub fn lasting(bpffs: &Path, state_id: &str) -> Result<Option<Self>, FilterError> {
        let dir = Self::existing(bpffs, state_id);
        match lasts(bpffs) {
            Ok(()) => Ok(Some(dir)),
            Err(why) => {
                tracing::warn!(bpffs = %bpffs.display(), why, "no pins: the filter hangs on the device itself, its counters end with the agent");
                Ok(None)
            }
        }
    }

    /// The directory, whatever is there.
    pub fn existing(bpffs: &Path, state_id: &str) -> Self {
        // A bpffs refuses names with dots.
        Self {
            root: bpffs.join("lowroad").join(state_id.replace('.', "_")),
        }
    }

    /// An agent that leaves just then takes the directory along that it shared with us, if it was the last: then once more.
    pub fn create(&self) -> Result<(), FilterError> {
        const TRIES: usize = 10;
        let maps = self.maps();
        // What was there when it was to be made may be gone when that is looked at.
        const GONE: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::AlreadyExists];
        let is_gone =
            |result: &io::Result<()>| matches!(result, Err(error) if GONE.contains(&error.kind()));
        let mut created = fs::create_dir_all(&maps);
        for _ in 1..TRIES {
            if !is_gone(&created) {
                break;
            }
            created = fs::create_dir_all(&maps);
        }
        created.map_err(|e| FilterError::kernel(format!("creating {}", maps.display()), e))
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn link(&self, program: &str) -> PathBuf {
        self.root.join(format!("{program}_link"))
    }

    fn maps(&self) -> PathBuf {
        self.root.join(format!("v{}", lowroad_abi::VERSION))
    }

    /// Removes maps of other versions, which no program uses any more.
    pub fn remove_other_versions(&self) {
        let ours = self.maps();
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for path in entries
            .map(|e| e.path())
            .filter(|p| p.is_dir() && *p != ours)
        {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "old maps stay pinned");
            }
        }
    }

    /// Says whether there was anything.
    pub fn remove(&self) -> Result<bool, FilterError> {
        let there = self.root.exists();
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FilterError::kernel(
                format!("removing {}", self.root.display()),
                error,
            )),
            _ => {
                if let Some(parent) = self.root.parent() {
                    remove_if_empty(parent)?;
                    parent.parent().map_or(Ok(()), unmount_ours)?;
                }
                Ok(there)
            }
        }
    }
}

/// It must stay while another state directory has pins in it.
fn remove_if_empty(folder: &Path) -> Result<(), FilterError> {
    // Of what isn't there a read-only file system says that it is read-only.
    if !folder.exists() {
        return Ok(());
    }
    match fs::remove_dir(folder) {
        Err(error) if stays_empty(folder, &error) => Err(FilterError::kernel(
            format!("removing {}", folder.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Whether a folder that could not be removed is one that should have been. Rights are looked at first, so a refusal says nothing of what is in it.
fn stays_empty(folder: &Path, why: &io::Error) -> bool {
    match why.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound => false,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => is_empty(folder),
        _ => true,
    }
}

/// `false` as well if that cannot be seen.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether pins under this path outlive us; mounts a bpffs there if there is none and it would.
fn lasts(bpffs: &Path) -> Result<(), String> {
    let shared = shares_mounts_with_init();
    if is_bpffs(bpffs) {
        if shared || init_has(bpffs) {
            return Ok(());
        }
        return Err("it is mounted only in the agent's own mount namespace".to_owned());
    }
    if !shared {
        return Err("none is mounted, and the agent has a mount namespace of its own".to_owned());
    }
    mount(bpffs).map_err(|e| format!("mounting it: {e}"))?;
    tracing::info!(path = %bpffs.display(), "mounted a bpffs");
    Ok(())
}

/// Takes the bpffs away if an agent mounted it and nobody has come to use it since: the host is left as it was.
fn unmount_ours(bpffs: &Path) -> Result<(), FilterError> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let is_ours = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4).map(Path::new) == Some(bpffs))
        .and_then(|line| line.split_once(" - "))
        .is_some_and(|(_, kind)| kind.starts_with("bpf lowroad "));
    if !is_ours || !is_empty(bpffs) {
        return Ok(());
    }
    let failed = |e| FilterError::kernel(format!("unmounting {}", bpffs.display()), e);
    let path = c_path(bpffs).map_err(failed)?;
    // SAFETY: a nul-terminated path that lives during the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Somebody uses it by now, or an agent without CAP_SYS_ADMIN cleans up after one with it: empty, it harms nobody.
        error if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => {
            tracing::info!(path = %bpffs.display(), %error, "the empty bpffs stays mounted");
            Ok(())
        }
        error => Err(failed(error)),
    }
}

/// Whether this thread has the mount namespace of process 1. Mounts have numbers, which every namespace's copy gets anew;
/// unlike `/proc/1/ns/mnt`, they can be read everywhere.
fn shares_mounts_with_init() -> bool {
    let root = |whose: &str| {
        let mounts = fs::read_to_string(format!("/proc/{whose}/mountinfo")).ok()?;
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"))?;
        line.split(' ').next().map(str::to_owned)
    };
    root("1").is_some_and(|init| root("thread-self") == Some(init))
}

/// Whether process 1 has the same file system mounted somewhere.
fn init_has(bpffs: &Path) -> bool {
    let Ok(meta) = fs::metadata(bpffs) else {
        return false;
    };
    let device = format!("{}:{}", libc::major(meta.dev()), libc::minor(meta.dev()));
    let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(&device))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    // SAFETY: zeroes are a valid `statfs`, which is plain integers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a nul-terminated path and a struct of ours, both alive during the call.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    result == 0 && stat.f_type == BPF_FS_MAGIC
}

fn mount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: all pointers are nul-terminated strings that live during the call.
    let result = unsafe {
        libc::mount(
            MOUNTED_BY_US.as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_while_another_agent_leaves() {
        let there = tempfile::tempdir().unwrap();
        let come_and_go = |name: &str| {
            let dir = PinDir::existing(there.path(), name);
            for _ in 0..2_000 {
                dir.create().unwrap();
                assert!(dir.remove().unwrap());
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| come_and_go("one"));
            come_and_go("other");
        });
    }

    #[test]
    fn a_folder_is_removed_if_it_is_there_and_empty() {
        let there = tempfile::tempdir().unwrap();
        let folder = there.path().join("lowroad");
        remove_if_empty(&folder).unwrap();
        fs::create_dir_all(folder.join("other")).unwrap();
        remove_if_empty(&folder).unwrap();
        assert!(folder.join("other").exists());
        fs::remove_dir(folder.join("other")).unwrap();
        remove_if_empty(&folder).unwrap();
        assert!(!folder.exists());
        fs::write(&folder, "").unwrap();
        let why = remove_if_empty(&folder).unwrap_err().to_string();
        assert!(why.contains("removing"), "{why}");
    }

    #[test]
    fn a_refused_removal_is_an_error_only_of_an_empty_folder() {
        let there = tempfile::tempdir().unwrap();
        let (full, absent) = (there.path().join("full"), there.path().join("absent"));
        let empty = full.join("empty");
        fs::create_dir_all(&empty).unwrap();
        for refused in [libc::EPERM, libc::EACCES, libc::EROFS] {
            let why = io::Error::from_raw_os_error(refused);
            assert!(stays_empty(&empty, &why), "{why}");
            assert!(!stays_empty(&full, &why), "{why}");
            assert!(!stays_empty(&absent, &why), "{why}");
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        assert!(stays_empty(&full, &busy));
    }
}
