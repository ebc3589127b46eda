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

use super::StateError;
use crate::process::own_user;

const LOCK: &str = "lock";
/// An agent that has just been killed may take this long to vanish.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Writes a new file that only its owner may read, down to the disk.
pub(super) fn write_private(path: &Path, text: &[u8]) -> Result<(), StateError> {
    let mut file = create_private(path)?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(|source| StateError::Io {
            what: "write",
            path: path.to_owned(),
            source,
        })
}

/// A new file, in place of whatever is there.
pub(super) fn create_private(path: &Path) -> Result<File, StateError> {
    let failed = |what| {
        let path = path.to_owned();
        move |source| StateError::Io { what, path, source }
    };
    // A temporary file left by a crash may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove")(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create"))
}

/// Renames, down to the disk.
pub(super) fn put_in_place(temporary: &Path, path: &Path) -> Result<(), StateError> {
    let failed = |what| {
        let path = temporary.to_owned();
        move |source| StateError::Io { what, path, source }
    };
    fs::rename(temporary, path).map_err(failed("rename"))?;
    sync_directory(path).map_err(failed("sync the directory of"))
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
    let failed = |what| {
        move |source| StateError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create the state directory"))?;
    let metadata = fs::metadata(path).map_err(failed("read the state directory"))?;
    if metadata.uid() != own_user() {
        return Err(StateError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
        });
    }
    if metadata.permissions().mode() & 0o777 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(failed("protect the state directory"))?;
    }
    Ok(())
}

/// Held as long as the file is open.
pub(super) fn lock(path: &Path) -> Result<File, StateError> {
    let name = path.join(LOCK);
    let failed = |source| StateError::Io {
        what: "lock",
        path: name.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(failed)?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}
