//! The state directory: one versioned JSON file with identity and preferences.
//!
//! The directory is 0700, the file 0600. A file is replaced by writing a temporary one, fsync, rename, fsync of the directory: a crash leaves the old
//! or the new file, never a part of one. A file that cannot be read as this version is an error that names it; nothing is overwritten then.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::info;

mod files;
mod identity;
mod keys;
pub mod netmap;

use self::files::{lock, make_private_directory, protect, put_in_place, write_private};
pub use self::{
    identity::State,
    keys::LeftKey,
    netmap::{CachedNetmap, NetmapCache, NetmapWrite, Of},
};

const VERSION: u64 = 1;
const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.new";
const LOCK: &str = "lock";

/// What cannot be done with the state directory, and what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the state file {path} is damaged ({why}): restore it from a backup, or move it away to start as a new node; it was left as it is"
    )]
    Damaged { path: PathBuf, why: String },
    #[error(
        "the state file {path} has version {found}, this lowroad reads version {VERSION}: run the lowroad that wrote it, or move the file away to start as a new node; it was left as it is"
    )]
    OtherVersion { path: PathBuf, found: String },
    #[error(
        "another lowroad agent uses the state directory {0}: stop it, or give this one its own --state-dir"
    )]
    InUse(PathBuf),
    #[error(
        "{path} belongs to user {owner}, not to the user lowroad runs as: use a --state-dir of its own"
    )]
    Foreign { path: PathBuf, owner: u32 },
    #[error(
        "{path} holds files that are not lowroad's, and other users may look into it (mode {mode:o}): use a --state-dir of its own, such as {}; it was left as it is",
        path.join("lowroad").display()
    )]
    Shared { path: PathBuf, mode: u32 },
}

/// An open state directory, locked against a second agent.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Arc<File>,
}

impl StateDir {
    /// Opens or makes the directory and reads the state; a directory without a state file gets a new identity, which is written at once.
    ///
    /// `random` fills a buffer with random bytes.
    pub fn open(
        path: &Path,
        mut random: impl FnMut(&mut [u8]),
    ) -> Result<(Self, State), StateError> {
        make_private_directory(path)?;
        let dir = Self::locked(path)?;
        if let Some(state) = dir.load(&mut random)? {
            return Ok((dir, state));
        }
        let state = State::new(&mut random);
        dir.save(&state)?;
        info!(directory = %path.display(), "made a new identity");
        Ok((dir, state))
    }

    /// Opens a directory that holds a state. `None` if there is none, and then nothing is made.
    pub fn open_existing(
        path: &Path,
        mut random: impl FnMut(&mut [u8]),
    ) -> Result<Option<(Self, State)>, StateError> {
        let file = path.join(FILE);
        let there = file.try_exists().map_err(|source| StateError::Io {
            what: "read",
            path: file,
            source,
        })?;
        if !there {
            return Ok(None);
        }
        protect(path)?;
        let dir = Self::locked(path)?;
        let state = dir.load(&mut random)?;
        Ok(state.map(|state| (dir, state)))
    }

    fn locked(path: &Path) -> Result<Self, StateError> {
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            lock: Arc::new(lock),
        })
    }

    /// Keeps the lock until the process has ended, and with it what it still writes: not only until this is dropped.
    pub fn stay_locked(&self) {
        std::mem::forget(self.lock.clone());
    }

    /// Replaces the state file.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let text = zeroize::Zeroizing::new(
            serde_json::to_vec_pretty(&state.to_stored())
                .expect("strings and maps always serialise"),
        );
        let temporary = self.path.join(TEMPORARY);
        write_private(&temporary, &text)?;
        put_in_place(&temporary, &self.path.join(FILE))
    }

    /// Where the last netmap is kept.
    pub fn netmap_cache(&self) -> NetmapCache {
        NetmapCache::new(&self.path)
    }

    fn load(&self, random: &mut impl FnMut(&mut [u8])) -> Result<Option<State>, StateError> {
        let path = self.path.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => zeroize::Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    what: "read",
                    path,
                    source,
                });
            }
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(|source| {
            StateError::Io {
                what: "protect",
                path: path.clone(),
                source,
            }
        })?;
        let (state, complete) = State::parse(&text, &path, random)?;
        if !complete {
            self.save(&state)?;
        }
        Ok(Some(state))
    }
}

#[cfg(test)]
mod tests;
