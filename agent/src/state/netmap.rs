//! The last netmap, kept so that an agent that starts while the server is out of reach goes on with what it knew.
//!
//! A file of its own in the state directory, 0600: a line that says what it is, with a checksum, then the netmap as the server would send it. It holds no private
//! key. It is a copy that may be lost at any time: whatever is wrong with it, it is thrown away and the agent starts without.
//!
//! It is never older than what the kernel holds. A message that begins a netmap takes the file away *before* the netmap is programmed, and it comes back with
//! the new one. Each later message that changes the netmap is appended to the file, and on the disk, before what it says is programmed: that costs what the
//! message is long, however large the netmap is. When more has been appended than the netmap takes, the file is written anew. So a new agent cannot put an older
//! policy in force than the one that the last agent left.
//!
//! A revocation must not wait for a slow disk, however: after [`SETTLE_PATIENCE`] the file is void, and what has changed is programmed. Whoever reads the file finds
//! it empty or gone by then: that much needs no disk, only memory. A system that takes no change of a file even in memory (one that is frozen, say) also keeps
//! the dying agent's calls, and with them its process and the lock of the state directory, from ending: no other agent starts before they have. What is left is a host that loses
//! its power before the disk has taken the removal: it can come up with the netmap of then, until the server answers.

mod disk;
mod journal;
mod write;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lowroad_wire::{
    control::MapResponse,
    key::NodePublic,
    netmap::{MIN_CLOCK_SKEW, NetMap},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::{
    task::spawn_blocking,
    time::{timeout, timeout_at},
};
use tracing::{info, warn};

use self::{
    disk::Disk,
    journal::{Hashing, Record},
};
pub use self::{journal::record, write::NetmapWrite};

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

/// A message that changes nothing.
const NO_CHANGE: &[u8] = b"{}";

/// How long what has changed waits for the disk before it is programmed; with the last part of it for the removal of the file, if that is what it takes.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);
const CLEAR_PATIENCE: Duration = Duration::from_millis(250);
/// A disk that was too slow is left alone for so long: every file that is kept there can hold up a change again.
const SLOW_PAUSE: Duration = Duration::from_secs(60);

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
    disk: Arc<Disk>,
    /// When the next write may begin.
    next: Option<Instant>,
    due: Option<Instant>,
}

impl NetmapCache {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            disk: Arc::new(Disk::new(directory)),
            next: None,
            due: None,
        }
    }

    /// There is a new netmap: what is kept holds no more, and is to be written again.
    pub async fn replaced(&mut self, now: Instant) {
        self.void().await;
        self.write_again(now);
    }

    /// There is no netmap any more.
    pub async fn forget(&mut self) {
        self.void().await;
        self.due = None;
    }

    /// Nothing is to be written, and what is kept stays.
    pub fn put_off(&mut self) {
        self.due = None;
    }

    fn write_again(&mut self, now: Instant) {
        self.due = Some(self.next.map_or(now, |next| next.max(now)));
    }

    async fn void(&mut self) {
        self.disk.now().begin_anew();
        self.settle().await;
    }

    /// A message has changed the netmap. To be called before what it says is programmed, and [`Self::settle`] after it.
    pub fn append(
        &mut self,
        now: Instant,
        message: &[u8],
        clock_offset: Option<time::Duration>,
        clock: OffsetDateTime,
    ) {
        let mut shared = self.disk.now();
        shared.generation += 1;
        shared.clock_offset = clock_offset;
        let line = record(shared.generation, message, clock_offset, clock);
        if let Err(why) = shared.append(&line) {
            warn!(path = %self.disk.path.display(), why, "the kept netmap holds no more");
            shared.void();
        }
        let wants_write = shared.wants_write();
        drop(shared);
        if wants_write && self.due.is_none() {
            self.write_again(now);
        }
    }

    /// What the server's clock says, which changes nothing else. It is kept once it says something else than what is kept: it decides which keys have expired. True if it
    /// has moved so far.
    pub fn note_clock(
        &mut self,
        now: Instant,
        clock_offset: Option<time::Duration>,
        clock: OffsetDateTime,
    ) -> bool {
        let kept = self.disk.now().clock_offset;
        let moved = clock_offset.unwrap_or_default() - kept.unwrap_or_default();
        let far = moved.abs() > MIN_CLOCK_SKEW;
        if far {
            self.append(now, NO_CHANGE, clock_offset, clock);
        }
        far
    }

    /// Brings to the disk what was appended or removed: neither an agent that dies after that nor a power cut brings an older netmap back. To be called before what
    /// has changed is programmed. If the disk doesn't take it in time, the file is void.
    pub async fn settle(&mut self) {
        let until = tokio::time::Instant::now() + SETTLE_PATIENCE;
        while let Some(append) = self.disk.take_pending() {
            let disk = self.disk.clone();
            let appended = spawn_blocking(move || disk.append(&append));
            let why = match timeout_at(until - CLEAR_PATIENCE, appended).await {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(died)) => died.to_string(),
                Err(_late) => {
                    self.next = Some(Instant::now() + SLOW_PAUSE);
                    "the disk is slow".to_owned()
                }
            };
            warn!(path = %self.disk.path.display(), why, "the netmap cannot be kept for a restart");
            self.disk.now().void();
            self.write_again(Instant::now());
        }
        if self.disk.begin_clearing() {
            let disk = self.disk.clone();
            if timeout_at(until, spawn_blocking(move || disk.clear()))
                .await
                .is_err()
            {
                self.next = Some(Instant::now() + SLOW_PAUSE);
                if self.due.is_some() {
                    self.write_again(Instant::now());
                }
                warn!(path = %self.disk.path.display(), "the disk is slow: an old netmap may be on it until it has done what it was told");
            }
        }
    }

    /// When [`Self::begin`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether there is a file that holds the netmap.
    pub fn is_kept(&self) -> bool {
        self.disk.now().kept.is_some()
    }

    /// Begins a write, which may be done elsewhere: it takes some ms for each thousand peers. If the one before goes on still, it is put off.
    pub fn begin(&mut self, now: Instant, of: Of, map: &NetMap) -> Option<NetmapWrite> {
        let mut shared = self.disk.now();
        if shared.is_busy() {
            self.due = Some(now + WRITE_PAUSE);
            return None;
        }
        self.due = None;
        let thousands = map.peers.len().div_ceil(1000).max(1);
        self.next = Some(now + WRITE_PAUSE * u32::try_from(thousands).unwrap_or(u32::MAX));
        shared.clock_offset = map.clock_offset;
        shared.writing = true;
        shared.since = Some(Vec::new());
        Some(NetmapWrite::new(
            self.disk.clone(),
            shared.generation,
            of,
            map.clone(),
        ))
    }

    /// Waits until nothing is being written, for as long as `patience`.
    pub async fn idle(&self, patience: Duration) {
        // Late or not, whoever ends goes on.
        let _ = timeout(patience, self.disk.idle()).await;
    }

    /// What was kept of this node at this server. Anything else is thrown away, with one line in the log.
    pub async fn load(&mut self, of: &Of, now: OffsetDateTime) -> Option<CachedNetmap> {
        match read(&self.disk.path, of, now) {
            Ok(found) => found,
            Err(why) => {
                info!(path = %self.disk.path.display(), why, "the kept netmap is of no use, and is thrown away");
                self.void().await;
                None
            }
        }
    }
}

fn read(path: &Path, of: &Of, now: OffsetDateTime) -> Result<Option<CachedNetmap>, String> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_file() || metadata.size() > MAX_SIZE as u64 {
        return Err("not a file of a netmap's size".to_owned());
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    parse(&text, of, now).map(Some)
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

#[cfg(test)]
mod tests;
