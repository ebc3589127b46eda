//! The database: one SQLite file in the state directory, loaded whole at start and written behind the state.
//!
//! The state in memory is what counts while the server runs. It marks what changed; a thread of its own writes the marked rows in one
//! transaction at a time, so the async runtime never waits for a disk, and a thousand changes of one node cost one row.

mod load;
mod save;
mod schema;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use lowroad_wire::control::{NodeId, UserId};
use rusqlite::Connection;

pub use load::Loaded;
pub use save::Rows;

use crate::{
    Error,
    model::{KeyId, VersionNumber},
};

const FILE: &str = "coordinator.sqlite";
/// How long to wait for another process that has the file locked, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// Single values beside the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// Private key of the control protocol.
    ControlKey,
    /// Private key of the embedded relay.
    RelayKey,
    /// SHA-256 of the `--policy` file when it was last loaded.
    PolicySeed,
    /// The last address given, so that addresses are given in turn.
    LastAddress,
    /// The last address given out of each pool of the policy.
    PoolTurns,
}

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::ControlKey => "control-key",
            Self::RelayKey => "relay-key",
            Self::PolicySeed => "policy-seed",
            Self::LastAddress => "last-address",
            Self::PoolTurns => "pool-turns",
        }
    }
}

/// What has changed since it was last written. An ID that the state no longer has means a deleted row.
#[derive(Debug, Default)]
pub struct Dirty {
    pub users: BTreeSet<UserId>,
    pub nodes: BTreeSet<NodeId>,
    pub auth_keys: BTreeSet<KeyId>,
    pub policies: BTreeSet<VersionNumber>,
    pub settings: BTreeSet<Setting>,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
            && self.nodes.is_empty()
            && self.auth_keys.is_empty()
            && self.policies.is_empty()
            && self.settings.is_empty()
    }
}

#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the database in `dir`, creating both if needed, and brings its tables up to date.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        private_dir(dir)?;
        let path = dir.join(FILE);
        // SQLite gives its journal files the mode of the database.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o600)))
            .map_err(Error::io(format!("open the database {}", path.display())))?;
        let mut connection = Connection::open(&path).map_err(|source| Error::Database {
            path: path.clone(),
            source,
        })?;
        schema::prepare(&mut connection, &path)?;
        Ok(Self { path, connection })
    }

    fn error(&self) -> impl Fn(rusqlite::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Database {
            path: path.clone(),
            source,
        }
    }
}

/// Makes sure that the directory is there, and closed to others if nobody has put anything there: `--state-dir /tmp` must not lock
/// everybody out, not at the second start either.
pub fn private_dir(dir: &Path) -> Result<(), Error> {
    let prepare = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        if fs::read_dir(dir)?.next().is_none() {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    };
    prepare().map_err(Error::io(format!(
        "prepare the state directory {}",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_that_others_use_stays_open_to_them_at_every_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("theirs"), "").unwrap();
        for _ in 0..2 {
            drop(Store::open(dir.path()).unwrap());
            assert_eq!(mode(dir.path()), 0o755);
            assert_eq!(mode(&dir.path().join(FILE)), 0o600);
        }
    }

    #[test]
    fn an_empty_directory_becomes_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }
}
