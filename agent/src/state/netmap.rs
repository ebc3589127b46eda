//! The last netmap, kept so that an agent that starts while the server is out of reach goes on with what it knew.
//!
//! A file of its own in the state directory, 0600: a line that says what it is, with a checksum, then the netmap as the server would send it. It holds no private
//! key. It is a copy that may be lost at any time: whatever is wrong with it, it is thrown away and the agent starts without.
//!
//! It is never older than what the kernel holds. A message that begins a netmap takes the file away *before* the netmap is programmed, and it comes back with
//! the new one. Each later message that changes the netmap is appended to the file, and on the disk, before what it says is programmed: that costs what the
//! message is long, however large the netmap is. When more has been appended than the netmap takes, the file is written anew. So a new agent cannot put an older
//! policy in force than the one that the last agent left.

mod journal;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lowroad_wire::{control::MapResponse, key::NodePublic, netmap::NetMap};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tracing::{debug, info, warn};

pub use self::journal::record;
use self::journal::{Hashing, Record};
use super::{create_private, sync_directory};

const VERSION: u64 = 2;
const FILE: &str = "netmap.cache";
const TEMPORARY: &str = "netmap.cache.new";
/// A netmap of ten thousand peers takes about 10 MB. A larger one is not kept.
const MAX_NETMAP: usize = 64 << 20;
/// With what was appended, of which there may be as much as of the netmap before it is written anew.
const MAX_SIZE: usize = 2 * MAX_NETMAP;
/// What may be appended before the file is written anew, even if the netmap takes less.
const MIN_JOURNAL: u64 = 256 << 10;
/// Between two writes of a whole netmap, for each thousand peers or less: it is the large ones that cost something. After one that begins sooner there is no file
/// until then.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// Whose netmap it is; another one's is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    pub node_key: NodePublic,
    /// URL of the server.
    pub server: String,
}

/// What a file says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    version: u64,
    #[serde(flatten)]
    of: Of,
    /// Seconds since the epoch, by our clock.
    saved: i64,
    /// The server's clock minus ours, in seconds.
    clock_offset: Option<i64>,
    /// Which change of the netmap was the last one. Those that are appended count on from there.
    generation: u64,
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
    shared: Arc<Mutex<Shared>>,
    /// When the next write may begin.
    next: Option<Instant>,
    due: Option<Instant>,
}

/// With a write that is going on elsewhere.
#[derive(Debug, Default)]
struct Shared {
    /// Counts netmaps: the write of one that is void comes to nothing.
    epoch: u64,
    /// Counts changes.
    generation: u64,
    /// At its end, where there is a file that holds the netmap.
    file: Option<File>,
    size: u64,
    /// Of which so much is the netmap, and the rest was appended.
    whole: u64,
    /// Something was appended that may not be on the disk yet.
    unsynced: bool,
    /// What was appended since the write began that is going on.
    since: Option<Vec<u8>>,
    /// The netmap is too large to be kept. Its changes are no reason to try again, for each try would write all that there is room for.
    too_large: bool,
}

impl NetmapCache {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
            shared: Arc::default(),
            next: None,
            due: None,
        }
    }

    /// There is a new netmap: what is kept holds no more, and is to be written again.
    pub fn replaced(&mut self, now: Instant) {
        self.remove();
        self.write_again(now);
    }

    /// There is no netmap any more.
    pub fn forget(&mut self) {
        self.remove();
        self.due = None;
    }

    fn write_again(&mut self, now: Instant) {
        self.due = Some(self.next.map_or(now, |next| next.max(now)));
    }

    fn remove(&self) {
        remove(&mut lock(&self.shared), &self.path);
    }

    /// A message has changed the netmap. To be called before what it says is programmed, and [`Self::sync`] after it.
    pub fn append(
        &mut self,
        now: Instant,
        message: &[u8],
        clock_offset: Option<time::Duration>,
        clock: OffsetDateTime,
    ) {
        let mut shared = lock(&self.shared);
        shared.generation += 1;
        let line = record(shared.generation, message, clock_offset, clock);
        let kept = shared.append(&line);
        if let Err(error) = &kept {
            warn!(path = %self.path.display(), %error, "a change of the netmap cannot be kept for a restart");
            remove(&mut shared, &self.path);
        }
        let full = shared.size - shared.whole > shared.whole.max(MIN_JOURNAL);
        let missing = shared.file.is_none();
        let may_write = shared.since.is_none() && !shared.too_large;
        drop(shared);
        if (full || missing) && may_write && self.due.is_none() {
            self.write_again(now);
        }
    }

    /// Brings to the disk what was appended: a power cut must not bring an older netmap back.
    pub async fn sync(&mut self) {
        let (shared, path) = (self.shared.clone(), self.path.clone());
        if !lock(&shared).unsynced {
            return;
        }
        let sync = move || {
            let mut shared = lock(&shared);
            shared.unsynced = false;
            if let Some(Err(error)) = shared.file.as_ref().map(File::sync_data) {
                warn!(path = %path.display(), %error, "the netmap cannot be kept for a restart");
                remove(&mut shared, &path);
            }
        };
        if tokio::task::spawn_blocking(sync).await.is_err() {
            self.remove();
        }
    }

    /// When [`Self::begin`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether there is a file that holds the netmap.
    pub fn is_kept(&self) -> bool {
        lock(&self.shared).file.is_some()
    }

    /// Begins a write, which may be done elsewhere: it takes some ms for each thousand peers.
    pub fn begin(&mut self, now: Instant, of: Of, map: &NetMap) -> NetmapWrite {
        self.due = None;
        let thousands = map.peers.len().div_ceil(1000).max(1);
        self.next = Some(now + WRITE_PAUSE * u32::try_from(thousands).unwrap_or(u32::MAX));
        let mut shared = lock(&self.shared);
        shared.since = Some(Vec::new());
        NetmapWrite {
            path: self.path.clone(),
            epoch: shared.epoch,
            generation: shared.generation,
            shared: self.shared.clone(),
            of,
            map: map.clone(),
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
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    let mut line = || lines.next().and_then(|line| line.strip_suffix(b"\n"));
    let (header, body, checksum) = (line(), line(), line());
    let cut = "damaged: it ends too early";
    let (header, body) = (header.ok_or(cut)?, body.ok_or(cut)?);
    let mut hash = Sha256::new();
    [header, b"\n", body, b"\n"]
        .iter()
        .for_each(|part| hash.update(part));
    if checksum.ok_or(cut)? != hex::encode(hash.finalize()).as_bytes() {
        return Err("damaged, or of another version: its checksum differs".to_owned());
    }
    // serde's messages quote what they stumble over: only the place is told.
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| format!("damaged at column {}", error.column()))?;
    if header.version != VERSION {
        return Err(format!("of version {}, not {VERSION}", header.version));
    }
    if header.of != *of {
        return Err("of another node key or server".to_owned());
    }
    let (mut map, mut at) = (NetMap::default(), (header.saved, header.clock_offset));
    apply(&mut map, body, header.saved)?;
    let mut generation = header.generation;
    for line in lines {
        let record = Record::read(line).ok_or("damaged in what was appended")?;
        generation += 1;
        if record.generation != generation {
            return Err("damaged: something that was appended is missing".to_owned());
        }
        apply(&mut map, record.message.get().as_bytes(), record.saved)?;
        at = (record.saved, record.clock_offset);
    }
    let saved = time_of(at.0)?;
    map.clock_offset = clock_offset(at.1, saved, now);
    Ok(CachedNetmap { map, saved })
}

impl Shared {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(since) = &mut self.since {
            since.extend(line);
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.size + line.len() as u64 > MAX_SIZE as u64 {
            return Err(io::Error::other("too much of it"));
        }
        file.write_all(line)?;
        self.size += line.len() as u64;
        self.unsynced = true;
        Ok(())
    }
}

/// What is kept holds no more, and what is being written neither.
fn remove(shared: &mut Shared, path: &Path) {
    shared.epoch += 1;
    shared.generation += 1;
    shared.since = None;
    shared.file = None;
    (shared.size, shared.whole) = (0, 0);
    shared.unsynced = false;
    shared.too_large = false;
    match fs::remove_file(path) {
        // Down to the disk: a power cut must not bring it back.
        Ok(()) => drop(sync_directory(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(path = %path.display(), %error, "an old netmap stays"),
    }
}

fn time_of(seconds: i64) -> Result<OffsetDateTime, String> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| "damaged: saved at no time".to_owned())
}

fn apply(map: &mut NetMap, message: &[u8], saved: i64) -> Result<(), String> {
    let (response, malformed) =
        MapResponse::parse(message).map_err(|_| "damaged: not a netmap".to_owned())?;
    if !malformed.is_empty() {
        return Err(format!("{} of its parts are malformed", malformed.len()));
    }
    map.apply(response, time_of(saved)?);
    Ok(())
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
    epoch: u64,
    generation: u64,
    shared: Arc<Mutex<Shared>>,
    of: Of,
    map: NetMap,
}

impl NetmapWrite {
    /// Blocks. A failure is told in the log: the agent runs as well without.
    pub fn run(self, now: OffsetDateTime) {
        let written = self.write(now);
        let mut shared = lock(&self.shared);
        if shared.epoch == self.epoch {
            shared.since = None;
            shared.too_large =
                matches!(&written, Err(error) if error.kind() == io::ErrorKind::FileTooLarge);
        }
        match written {
            Ok(true) => debug!(path = %self.path.display(), "netmap kept"),
            Ok(false) => {}
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the netmap cannot be kept for a restart")
            }
        }
    }

    fn write(&self, now: OffsetDateTime) -> io::Result<bool> {
        let temporary = self.path.with_file_name(TEMPORARY);
        let written = self.write_to(&temporary, now);
        if !matches!(written, Ok(true)) {
            // It may take the room for which another file is waiting.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    fn write_to(&self, temporary: &Path, now: OffsetDateTime) -> io::Result<bool> {
        let file = create_private(temporary).map_err(io::Error::other)?;
        let (mut file, size) = self.put(file, now)?;
        file.sync_all()?;
        let mut shared = lock(&self.shared);
        if shared.epoch != self.epoch {
            return Ok(false);
        }
        let since = shared.since.take().unwrap_or_default();
        if !since.is_empty() {
            file.write_all(&since)?;
            file.sync_data()?;
        }
        fs::rename(temporary, &self.path)?;
        shared.file = Some(file);
        (shared.size, shared.whole) = (size + since.len() as u64, size);
        shared.unsynced = false;
        drop(shared);
        sync_directory(&self.path)?;
        Ok(true)
    }

    fn put(&self, file: File, now: OffsetDateTime) -> io::Result<(File, u64)> {
        let write = |out: &mut dyn io::Write| {
            serde_json::to_writer(out, &self.map.to_response()).map_err(io::Error::from)
        };
        let header = header(&self.of, now, self.map.clock_offset, self.generation);
        let (out, size) = whole(BufWriter::new(file), &header, write)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, size))
    }
}

/// The first line of a file.
pub fn header(
    of: &Of,
    saved: OffsetDateTime,
    clock_offset: Option<time::Duration>,
    generation: u64,
) -> Header {
    Header {
        version: VERSION,
        of: of.clone(),
        saved: saved.unix_timestamp(),
        clock_offset: clock_offset.map(time::Duration::whole_seconds),
        generation,
    }
}

/// Writes a file with nothing appended, and returns its length; an error of the kind `FileTooLarge` if there is more of it than is kept. `netmap` writes JSON on one line; piece by piece, for a second copy of the netmap in memory would
/// be the agent's largest part.
pub fn whole<W: io::Write>(
    to: W,
    header: &Header,
    netmap: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<(W, u64)> {
    let mut out = Hashing::new(to);
    serde_json::to_writer(&mut out, header)?;
    out.write_all(b"\n")?;
    netmap(&mut out)?;
    out.write_all(b"\n")?;
    let (mut out, hash, size) = out.finish();
    let end = format!("{}\n", hex::encode(hash));
    out.write_all(end.as_bytes())?;
    Ok((out, size + end.len() as u64))
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
