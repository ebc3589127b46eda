//! The state directory: one versioned JSON file with identity and preferences.
//!
//! The directory is 0700, the file 0600. A file is replaced by writing a temporary one, fsync, rename, fsync of the directory: a crash leaves the old
//! or the new file, never a part of one. A file that cannot be read as this version is an error that names it; nothing is overwritten then.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lowroad_wire::key::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate};
use serde::{Deserialize, Serialize};
use tracing::info;

pub mod netmap;

pub use self::netmap::{CachedNetmap, NetmapCache, NetmapWrite, Of};
use crate::{prefs::Prefs, process::own_user};

const VERSION: u64 = 1;
const FILE: &str = "state.json";
const TEMPORARY: &str = "state.json.new";
const LOCK: &str = "lock";
/// An agent that has just been killed may take this long to vanish.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);
const LOCK_RETRY: Duration = Duration::from_millis(20);

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
}

/// Identity and preferences. Its `Debug` shows no key, because the key types' doesn't.
#[derive(Debug, Clone)]
pub struct State {
    /// Names this installation's pinned kernel objects; 16 hex digits.
    pub id: String,
    pub machine_key: MachinePrivate,
    /// Peers know this node's path discovery by it. It outlives the agent, so that a new one is understood also while nobody could tell them another key.
    pub disco_key: DiscoPrivate,
    /// `None` until the first login and after a logout.
    pub node_key: Option<NodePrivate>,
    /// The key in use before a rotation, until the server has accepted the new one.
    pub old_node_key: Option<NodePrivate>,
    /// URL of the server that has accepted the node key.
    pub registered_at: Option<String>,
    /// Each server's Noise key as first seen, by URL.
    pub server_keys: BTreeMap<String, MachinePublic>,
    pub prefs: Prefs,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    id: String,
    machine_key: String,
    /// Not in files of the first versions.
    #[serde(default)]
    disco_key: Option<String>,
    #[serde(default)]
    node_key: Option<String>,
    #[serde(default)]
    old_node_key: Option<String>,
    #[serde(default)]
    registered_at: Option<String>,
    #[serde(default)]
    server_keys: BTreeMap<String, MachinePublic>,
    #[serde(default)]
    prefs: Prefs,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: serde_json::Value,
}

/// An open state directory, locked against a second agent.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
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
        let lock = lock(path)?;
        let dir = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        if let Some(state) = dir.load(&mut random)? {
            return Ok((dir, state));
        }
        let state = State::new(&mut random);
        dir.save(&state)?;
        info!(directory = %path.display(), "made a new identity");
        Ok((dir, state))
    }

    /// Replaces the state file.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let text = zeroize::Zeroizing::new(
            serde_json::to_vec_pretty(&state.to_stored())
                .expect("strings and maps always serialise"),
        );
        let temporary = self.path.join(TEMPORARY);
        write_private(&temporary, &[&text])?;
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

impl State {
    fn new(random: &mut impl FnMut(&mut [u8])) -> Self {
        let mut id = [0; 8];
        random(&mut id);
        let mut machine = zeroize::Zeroizing::new([0; 32]);
        random(&mut *machine);
        Self {
            id: hex::encode(id),
            machine_key: MachinePrivate::from_random(*machine),
            disco_key: new_disco_key(random),
            node_key: None,
            old_node_key: None,
            registered_at: None,
            server_keys: BTreeMap::new(),
            prefs: Prefs::default(),
        }
    }

    /// What the file says, and whether it said everything. Errors name `path`, and quote nothing of what they found.
    pub fn parse(
        text: &[u8],
        path: &Path,
        random: &mut impl FnMut(&mut [u8]),
    ) -> Result<(Self, bool), StateError> {
        // serde's messages may quote the text they stumble over, which may be a key: say only where.
        let damaged = |why: String| StateError::Damaged {
            path: path.to_owned(),
            why,
        };
        let at = |error: serde_json::Error| {
            damaged(format!("line {}, column {}", error.line(), error.column()))
        };
        let version: VersionOnly = serde_json::from_slice(text).map_err(at)?;
        if version.version != VERSION {
            return Err(StateError::OtherVersion {
                path: path.to_owned(),
                // Anything but a number could be anything, a key as well.
                found: version
                    .version
                    .as_u64()
                    .map_or_else(|| "unknown".to_owned(), |number| number.to_string()),
            });
        }
        let stored: Stored = serde_json::from_slice(text).map_err(at)?;
        let node = |text: Option<String>, name: &str| {
            text.map(|text| zeroize::Zeroizing::new(text).parse::<NodePrivate>())
                .transpose()
                .map_err(|_| damaged(format!("{name} is not a key")))
        };
        let machine_key = zeroize::Zeroizing::new(stored.machine_key)
            .parse()
            .map_err(|_| damaged("machine_key is not a key".into()))?;
        let disco = stored
            .disco_key
            .map(|text| zeroize::Zeroizing::new(text).parse())
            .transpose()
            .map_err(|_| damaged("disco_key is not a key".into()))?;
        let complete = disco.is_some();
        let state = Self {
            disco_key: disco.unwrap_or_else(|| new_disco_key(random)),
            machine_key,
            node_key: node(stored.node_key, "node_key")?,
            old_node_key: node(stored.old_node_key, "old_node_key")?,
            id: if valid_id(&stored.id) {
                stored.id
            } else {
                return Err(damaged("id is not 16 hex digits".into()));
            },
            registered_at: stored.registered_at,
            server_keys: stored.server_keys,
            prefs: stored.prefs,
        };
        Ok((state, complete))
    }

    fn to_stored(&self) -> Stored {
        Stored {
            version: VERSION,
            id: self.id.clone(),
            machine_key: self.machine_key.to_text().to_string(),
            disco_key: Some(self.disco_key.to_text().to_string()),
            node_key: self.node_key.as_ref().map(|key| key.to_text().to_string()),
            old_node_key: self
                .old_node_key
                .as_ref()
                .map(|key| key.to_text().to_string()),
            registered_at: self.registered_at.clone(),
            server_keys: self.server_keys.clone(),
            prefs: self.prefs.clone(),
        }
    }
}

fn new_disco_key(random: &mut impl FnMut(&mut [u8])) -> DiscoPrivate {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    random(&mut *bytes);
    DiscoPrivate::from_random(*bytes)
}

/// Writes a new file that only its owner may read, down to the disk.
fn write_private(path: &Path, parts: &[&[u8]]) -> Result<(), StateError> {
    let mut file = create_private(path)?;
    parts
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| file.sync_all())
        .map_err(|source| StateError::Io {
            what: "write",
            path: path.to_owned(),
            source,
        })
}

/// A new file, in place of whatever is there.
fn create_private(path: &Path) -> Result<File, StateError> {
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
fn put_in_place(temporary: &Path, path: &Path) -> Result<(), StateError> {
    let failed = |what| {
        let path = temporary.to_owned();
        move |source| StateError::Io { what, path, source }
    };
    fs::rename(temporary, path).map_err(failed("rename"))?;
    sync_directory(path).map_err(failed("sync the directory of"))
}

fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// It becomes a directory name below the bpffs.
fn valid_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

fn make_private_directory(path: &Path) -> Result<(), StateError> {
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

fn lock(path: &Path) -> Result<File, StateError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut n = 0u8;
        move |bytes| {
            for byte in bytes {
                n = n.wrapping_add(1);
                *byte = n;
            }
        }
    }

    #[test]
    fn a_new_directory_gets_an_identity_that_a_second_start_finds_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let (dir, mut state) = StateDir::open(&path, counting()).unwrap();
        state.node_key = Some(NodePrivate::from_random([7; 32]));
        state.prefs.hostname = "gate".into();
        dir.save(&state).unwrap();
        drop(dir);
        let (_dir, again) =
            StateDir::open(&path, |_| panic!("a known node needs no new key")).unwrap();
        assert_eq!(again.id, state.id);
        assert_eq!(again.machine_key.public(), state.machine_key.public());
        assert_eq!(
            again.node_key.unwrap().public(),
            state.node_key.unwrap().public()
        );
        assert_eq!(again.prefs, state.prefs);
    }

    #[test]
    fn directory_and_file_are_readable_by_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("s");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join(TEMPORARY), "left by a crash").unwrap();
        fs::set_permissions(path.join(TEMPORARY), fs::Permissions::from_mode(0o644)).unwrap();
        let _open = StateDir::open(&path, counting()).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(
            fs::metadata(path.join(FILE)).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_truncated_file_is_an_error_that_names_it_and_leaves_it_alone() {
        let parent = tempfile::tempdir().unwrap();
        drop(StateDir::open(parent.path(), counting()).unwrap());
        let file = parent.path().join(FILE);
        let whole = fs::read(&file).unwrap();
        for length in [0, 1, 20, whole.len() / 2, whole.len() - 2] {
            fs::write(&file, &whole[..length]).unwrap();
            let error = StateDir::open(parent.path(), counting())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&file.display().to_string()) && error.contains("damaged"),
                "{error}"
            );
            assert!(!error.contains("privkey"), "{error}");
            assert_eq!(fs::read(&file).unwrap(), &whole[..length]);
        }
    }

    #[test]
    fn a_file_of_another_version_is_refused_and_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join(FILE);
        fs::write(&file, r#"{"version": 2, "id": []}"#).unwrap();
        let error = StateDir::open(parent.path(), counting())
            .unwrap_err()
            .to_string();
        assert!(error.contains("has version 2"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), br#"{"version": 2, "id": []}"#);
        fs::write(&file, r#"{"version": "privkey:00"}"#).unwrap();
        let error = StateDir::open(parent.path(), counting())
            .unwrap_err()
            .to_string();
        assert!(error.contains("has version unknown"), "{error}");
    }

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let _first = StateDir::open(parent.path(), counting()).unwrap();
        assert!(matches!(
            StateDir::open(parent.path(), counting()),
            Err(StateError::InUse(_))
        ));
    }

    #[test]
    fn a_damaged_key_is_reported_without_showing_it() {
        let parent = tempfile::tempdir().unwrap();
        drop(StateDir::open(parent.path(), counting()).unwrap());
        let file = parent.path().join(FILE);
        let text = fs::read_to_string(&file)
            .unwrap()
            .replace("privkey:", "privkey:zz");
        fs::write(&file, &text).unwrap();
        let error = format!(
            "{:?}",
            StateDir::open(parent.path(), counting()).unwrap_err()
        );
        assert!(error.contains("machine_key"), "{error}");
        assert!(!error.contains("privkey:zz"), "{error}");
    }
}
