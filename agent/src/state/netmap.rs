//! The last netmap, kept so that an agent that starts while the server is out of reach goes on with what it knew.
//!
//! A file of its own in the state directory, 0600: a line that says what it is, with a checksum, then the netmap as the server would send it. It holds no private
//! key. It is a copy that may be lost at any time: whatever is wrong with it, it is thrown away and the agent starts without.
//!
//! It is never older than what the kernel holds: the file goes *before* a newer netmap is programmed, and comes back with the new one. So a new agent cannot put
//! an older policy in force than the one that the last agent left.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lowroad_wire::{control::MapResponse, key::NodePublic, netmap::NetMap};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::{debug, info, warn};

use super::{sync_directory, write_private};

const VERSION: u64 = 1;
const FILE: &str = "netmap.cache";
const TEMPORARY: &str = "netmap.cache.new";
/// A netmap of ten thousand peers takes about 10 MB.
const MAX_SIZE: usize = 64 << 20;
/// Between two writes, for each thousand peers or less: it is the large netmaps that cost something. Changes that come sooner leave no file until then.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// Whose netmap it is; another one's is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    pub node_key: NodePublic,
    /// URL of the server.
    pub server: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u64,
    #[serde(flatten)]
    of: Of,
    /// Seconds since the epoch, by our clock.
    saved: i64,
    /// The server's clock minus ours, in seconds.
    clock_offset: Option<i64>,
    /// SHA-256 of this line, with nothing here, and of what follows.
    checksum: String,
}

impl Header {
    fn checksum(&self, body: &[u8]) -> Result<String, serde_json::Error> {
        let bare = Self {
            checksum: String::new(),
            of: self.of.clone(),
            ..*self
        };
        let hash = Sha256::new()
            .chain_update(serde_json::to_vec(&bare)?)
            .chain_update(body);
        Ok(hex::encode(hash.finalize()))
    }
}

/// A netmap that was kept.
#[derive(Debug)]
pub struct CachedNetmap {
    pub map: NetMap,
    pub saved: OffsetDateTime,
}

/// The file, and when to write it next.
#[derive(Debug)]
pub struct NetmapCache {
    path: PathBuf,
    /// Counts invalidations: a write that was begun before one comes to nothing.
    generation: Arc<Mutex<u64>>,
    /// When the next write may begin.
    next: Option<Instant>,
    due: Option<Instant>,
}

impl NetmapCache {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
            generation: Arc::default(),
            next: None,
            due: None,
        }
    }

    /// The netmap has changed: what is kept holds no more, and is to be written again.
    pub fn changed(&mut self, now: Instant) {
        self.remove();
        self.due = Some(self.next.map_or(now, |next| next.max(now)));
    }

    /// There is no netmap any more.
    pub fn forget(&mut self) {
        self.remove();
        self.due = None;
    }

    fn remove(&self) {
        let mut generation = lock(&self.generation);
        *generation += 1;
        match fs::remove_file(&self.path) {
            // Down to the disk: a power cut must not bring it back.
            Ok(()) => drop(sync_directory(&self.path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %self.path.display(), %error, "an old netmap stays"),
        }
    }

    /// When [`Self::begin`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a write, which may be done elsewhere: it takes some ms for each thousand peers.
    pub fn begin(&mut self, now: Instant, of: Of, map: &NetMap) -> NetmapWrite {
        self.due = None;
        let thousands = map.peers.len().div_ceil(1000).max(1);
        self.next = Some(now + WRITE_PAUSE * u32::try_from(thousands).unwrap_or(u32::MAX));
        NetmapWrite {
            path: self.path.clone(),
            generation: *lock(&self.generation),
            current: self.generation.clone(),
            of,
            response: map.to_response(),
            clock_offset: map.clock_offset,
        }
    }

    /// What was kept of this node at this server. Anything else is thrown away, with one line in the log.
    pub fn load(&self, of: &Of, now: OffsetDateTime) -> Option<CachedNetmap> {
        match self.read(of, now) {
            Ok(found) => found,
            Err(why) => {
                info!(path = %self.path.display(), why, "the kept netmap is of no use, and is thrown away");
                self.remove();
                None
            }
        }
    }

    fn read(&self, of: &Of, now: OffsetDateTime) -> Result<Option<CachedNetmap>, String> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if !metadata.is_file() || metadata.size() > MAX_SIZE as u64 {
            return Err("not a file of a netmap's size".to_owned());
        }
        let text = fs::read(&self.path).map_err(|error| error.to_string())?;
        parse(&text, of, now).map(Some)
    }
}

/// What a kept netmap's file says to the node it is of. What is wrong with it is told without quoting it.
pub fn parse(text: &[u8], of: &Of, now: OffsetDateTime) -> Result<CachedNetmap, String> {
    let newline = text.iter().position(|byte| *byte == b'\n');
    let (header, body) = text.split_at(newline.ok_or("damaged: it ends in its first line")?);
    let body = &body[1..];
    // serde's messages quote what they stumble over: only the place is told.
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| format!("damaged at column {}", error.column()))?;
    if header.version != VERSION {
        return Err(format!("of version {}, not {VERSION}", header.version));
    }
    if header.checksum(body).ok().as_ref() != Some(&header.checksum) {
        return Err("damaged: its checksum differs".to_owned());
    }
    if header.of != *of {
        return Err("of another node key or server".to_owned());
    }
    let saved = OffsetDateTime::from_unix_timestamp(header.saved)
        .map_err(|_| "damaged: saved at no time".to_owned())?;
    let (response, malformed) =
        MapResponse::parse(body).map_err(|_| "damaged: not a netmap".to_owned())?;
    if !malformed.is_empty() {
        return Err(format!("{} of its parts are malformed", malformed.len()));
    }
    let mut map = NetMap::default();
    map.apply(response, now);
    map.clock_offset = clock_offset(header.clock_offset, saved, now);
    Ok(CachedNetmap { map, saved })
}

/// The header's line for this body.
pub fn header(
    of: &Of,
    saved: OffsetDateTime,
    clock_offset: Option<time::Duration>,
    body: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    let mut header = Header {
        version: VERSION,
        of: of.clone(),
        saved: saved.unix_timestamp(),
        clock_offset: clock_offset.map(time::Duration::whole_seconds),
        checksum: String::new(),
    };
    header.checksum = header.checksum(body)?;
    let mut line = serde_json::to_vec(&header)?;
    line.push(b'\n');
    Ok(line)
}

/// The server's clock minus ours. A clock that has been set back since, or starts anew at every boot, brings no expired key back to life: the server's time is
/// at least what it was.
fn clock_offset(
    kept: Option<i64>,
    saved: OffsetDateTime,
    now: OffsetDateTime,
) -> Option<time::Duration> {
    let kept = kept.map(time::Duration::seconds);
    match saved - now {
        back if back.is_positive() => Some(kept.unwrap_or_default().saturating_add(back)),
        _ => kept,
    }
}

/// A netmap about to be kept.
#[derive(Debug)]
pub struct NetmapWrite {
    path: PathBuf,
    generation: u64,
    current: Arc<Mutex<u64>>,
    of: Of,
    response: MapResponse,
    clock_offset: Option<time::Duration>,
}

impl NetmapWrite {
    /// Blocks. A failure is told in the log: the agent runs as well without.
    pub fn run(self, now: OffsetDateTime) {
        match self.write(now) {
            Ok(true) => debug!(path = %self.path.display(), "netmap kept"),
            Ok(false) => {}
            Err(why) => {
                warn!(path = %self.path.display(), why, "the netmap cannot be kept for a restart")
            }
        }
    }

    fn write(&self, now: OffsetDateTime) -> Result<bool, String> {
        let body = serde_json::to_vec(&self.response).map_err(|error| error.to_string())?;
        let first =
            header(&self.of, now, self.clock_offset, &body).map_err(|error| error.to_string())?;
        if first.len() + body.len() > MAX_SIZE {
            return Err(format!("it is larger than {} MB", MAX_SIZE >> 20));
        }
        let temporary = self.path.with_file_name(TEMPORARY);
        write_private(&temporary, &[&first, &body]).map_err(|error| error.to_string())?;
        let current = lock(&self.current);
        if *current != self.generation {
            drop(fs::remove_file(&temporary));
            return Ok(false);
        }
        fs::rename(&temporary, &self.path).map_err(|error| error.to_string())?;
        drop(current);
        sync_directory(&self.path).map_err(|error| error.to_string())?;
        Ok(true)
    }
}

fn lock(generation: &Mutex<u64>) -> std::sync::MutexGuard<'_, u64> {
    generation.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
