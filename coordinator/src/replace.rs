//! Files of administrators, replaced as a whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use crate::{Error, hub::random};

/// Gives a file that there is another text: a crash leaves the old one or the new one. Mode and owner stay; of a symbolic
/// link, the file is replaced that it leads to.
///
/// # Errors
/// As of the file system, with nothing changed; also where the owner cannot be kept, or for what is no regular file.
pub fn replace(path: &Path, text: &str) -> Result<(), Error> {
    write_beside(path, text).map_err(Error::io(format!("replace {}", path.display())))
}

fn write_beside(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let old = fs::metadata(&path)?;
    let (true, Some(directory), Some(name)) = (old.is_file(), path.parent(), path.file_name())
    else {
        let why = "it is no regular file; use standard input and output";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", hex::encode(random::<8>())));
    let temporary = directory.join(beside);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let done = fill(&file, &old, text).and_then(|()| fs::rename(&temporary, &path));
    if done.is_err() {
        // What it failed for is more important than what is left.
        let _ = fs::remove_file(&temporary);
    }
    done?;
    File::open(directory)?.sync_all()
}

fn fill(mut file: &File, like: &fs::Metadata, text: &str) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (like.uid(), like.gid()) {
        fchown(file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(like.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn a_replaced_file_keeps_mode_and_owner_and_its_links_lead_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("p"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        if chown(&file, Some(1234), Some(4321)).is_err() {
            eprintln!("without root, the owner is the only one there is");
        }
        let owner = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
        };
        let before = owner(&file);
        symlink("p", &link).unwrap();
        replace(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(owner(&file), before);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_replaced_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("missing"), dir.path().to_owned()] {
            let error = replace(&path, "new").unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
