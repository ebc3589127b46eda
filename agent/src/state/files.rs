//! Files that only their owner may read, replaced as a whole, down to the disk.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{FILE, LOCK, StateError, TEMPORARY};
use crate::process::own_user;

/// An agent that has just been killed may take this long to vanish.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Writes a new file that only its owner may read, down to the disk.
pub(super) fn write_private(path: &Path, text: &[u8]) -> Result<(), StateError> {
    let mut file = create_private(path)?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", path))
}

/// A new file, in place of whatever is there.
pub(super) fn create_private(path: &Path) -> Result<File, StateError> {
    // A temporary file left by a crash may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create", path))
}

/// Renames, down to the disk.
pub(super) fn put_in_place(temporary: &Path, path: &Path) -> Result<(), StateError> {
    fs::rename(temporary, path).map_err(failed("rename", temporary))?;
    sync_directory(path).map_err(failed("sync the directory of", temporary))
}

/// Of what has been renamed or removed.
pub(super) fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Only our own user may have anything to do with it.
pub(super) fn make_private_directory(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create the state directory", path))?;
    protect(path)
}

/// Closes a directory to other users, unless somebody else's files are there, too: then it is refused.
pub(super) fn protect(path: &Path) -> Result<(), StateError> {
    let metadata = fs::metadata(path).map_err(failed("read the state directory", path))?;
    if metadata.uid() != own_user() {
        return Err(StateError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
        });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o777 == 0o700 {
        return Ok(());
    }
    if !is_ours(path).map_err(failed("read the state directory", path))? {
        return Err(StateError::Shared {
            path: path.to_owned(),
            mode,
        });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(failed("protect the state directory", path))
}

/// Whether it holds a state, or nothing but what a first start that was interrupted left.
fn is_ours(path: &Path) -> io::Result<bool> {
    let mut others = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let is_file = entry.file_type()?.is_file();
        let is_named = |name: &str| is_file && entry.file_name() == name;
        if is_named(FILE) {
            return Ok(true);
        }
        others |= !is_named(TEMPORARY) && !is_named(LOCK);
    }
    Ok(!others)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Held as long as the file is open.
pub(super) fn lock(path: &Path) -> Result<File, StateError> {
    let name = path.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(failed("lock", &name))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &name)(source)),
        }
    }
}
