//! The kept netmap's file, between the engine's loop and the threads that write it.
//!
//! The loop waits for no lock that is held across a call to the disk: [`Disk::now`] is held for what memory takes, [`Disk::order`] across writes, and only by
//! threads that may block.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[cfg(test)]
use std::sync::mpsc;

use tokio::sync::Notify;

use super::{FILE, MAX_SIZE, MIN_JOURNAL};
use crate::state::files::sync_directory;

/// So much may change during a write.
const MAX_SINCE: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Disk {
    pub path: PathBuf,
    now: Mutex<Now>,
    order: Mutex<()>,
    /// A write or a removal has ended.
    ended: Notify,
    /// What a test does before a file gets its name.
    #[cfg(test)]
    pub held: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Now {
    /// Counts changes of the netmap.
    pub generation: u64,
    /// The server's clock minus ours, as it was kept last.
    pub clock_offset: Option<time::Duration>,
    pub kept: Option<Kept>,
    /// Changes that the kept file lacks.
    pub pending: Vec<u8>,
    /// A write of a whole netmap is going on.
    pub writing: bool,
    /// What it writes to.
    pub written: Option<Arc<File>>,
    /// What has changed since it began. `None` if there is none, or if it is to come to nothing.
    pub since: Option<Vec<u8>>,
    /// Something that holds no more may be on the disk.
    pub stale: bool,
    /// So many threads take that away.
    pub clearing: u32,
    /// Files that hold no more, and may still be open.
    void: Vec<Arc<File>>,
    /// The netmap is too large to be kept. Its changes are no reason to try again, for each try would write all that there is room for.
    pub too_large: bool,
}

/// The file that holds the netmap, once it has its name on the disk.
#[derive(Debug)]
pub(super) struct Kept {
    file: Arc<File>,
    /// With what is pending.
    size: u64,
    /// Of which so much is the netmap, and the rest was appended.
    whole: u64,
}

impl Now {
    /// A message of `line` has changed the netmap. An error if the kept file has no room for it.
    pub fn append(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if let Some(since) = &mut self.since {
            since.extend(line);
            // A disk that has stopped must not fill the memory.
            if since.len() > MAX_SINCE {
                self.since = None;
            }
        }
        let Some(kept) = &mut self.kept else {
            return Ok(());
        };
        kept.size += line.len() as u64;
        if kept.size > MAX_SIZE as u64 {
            return Err("too much was appended to it");
        }
        self.pending.extend(line);
        Ok(())
    }

    /// Whether the netmap is to be written as a whole: there is no file that holds it, or more was appended to it than it takes itself.
    pub fn wants_write(&self) -> bool {
        let full = |kept: &Kept| kept.size - kept.whole > kept.whole.max(MIN_JOURNAL);
        self.kept.as_ref().is_none_or(full) && self.since.is_none() && !self.too_large
    }

    /// No write can begin: it would be in the way of what is going on, or that in its.
    pub fn is_busy(&self) -> bool {
        self.writing || self.clearing > 0
    }

    /// There is another netmap, or none.
    pub fn begin_anew(&mut self) {
        self.void();
        self.too_large = false;
    }

    /// What is kept holds no more, and what is being written neither.
    pub fn void(&mut self) {
        self.generation += 1;
        let kept = self.kept.take().map(|kept| kept.file);
        self.void
            .extend(kept.into_iter().chain(self.written.clone()));
        self.pending = Vec::new();
        self.since = None;
        self.stale = true;
    }
}

impl Disk {
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
            now: Mutex::default(),
            order: Mutex::default(),
            ended: Notify::new(),
            #[cfg(test)]
            held: Mutex::default(),
        }
    }

    pub fn now(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    /// What is to be appended, taken out, and the file that it is for.
    pub fn take_pending(&self) -> Option<Append> {
        let mut now = self.now();
        let file = now.kept.as_ref()?.file.clone();
        let lines = std::mem::take(&mut now.pending);
        (!lines.is_empty()).then_some(Append { file, lines })
    }

    /// Down to the disk; blocks. While a file is being put in place of the kept one, it waits: what is appended meanwhile is pending for the new one after that.
    pub fn append(&self, append: &Append) -> io::Result<()> {
        let _order = lock(&self.order);
        (&*append.file).write_all(&append.lines)?;
        append.file.sync_data()
    }

    /// Puts what was written in place, with what has changed since, down to the disk; blocks. False if it came to nothing.
    pub fn put_in_place(&self, file: &Arc<File>, temporary: &Path, whole: u64) -> io::Result<bool> {
        let _order = lock(&self.order);
        let mut now = self.now();
        let Some(since) = now.since.take() else {
            return Ok(false);
        };
        // From now on changes are pending for this file, and whoever has to see them on the disk waits for our order. What was pending for the one before is in
        // `since`.
        now.pending = Vec::new();
        now.kept = Some(Kept {
            file: file.clone(),
            size: whole + since.len() as u64,
            whole,
        });
        drop(now);
        let placed = self.complete(file, &since, temporary);
        let mut now = self.now();
        let is_kept = |kept: &Kept| Arc::ptr_eq(&kept.file, file);
        if placed.is_ok() && now.kept.as_ref().is_some_and(is_kept) {
            now.stale = false;
            return Ok(true);
        }
        // It holds no more, or a power cut decides which file there is: then neither may be used.
        now.void();
        now.clearing += 1;
        drop(now);
        self.clear();
        placed.map(|()| false)
    }

    fn complete(&self, file: &File, since: &[u8], temporary: &Path) -> io::Result<()> {
        if !since.is_empty() {
            (&*file).write_all(since)?;
            file.sync_data()?;
        }
        #[cfg(test)]
        if let Some((reached, go_on)) = lock(&self.held).take() {
            let _ = reached.send(());
            let _ = go_on.recv();
        }
        fs::rename(temporary, &self.path).and_then(|()| sync_directory(&self.path))
    }

    /// A removal is to begin: by [`Self::clear`], elsewhere. Not while a netmap is being written: that takes the place of what is stale.
    pub fn begin_clearing(&self) -> bool {
        let mut now = self.now();
        let replaced = now.since.is_some() || now.kept.is_some();
        let begins = now.stale && now.clearing == 0 && !replaced;
        now.clearing += u32::from(begins);
        begins
    }

    /// Takes away what holds no more, down to the disk; blocks, but waits for no other thread that may.
    pub fn clear(&self) {
        let files = std::mem::take(&mut self.now().void);
        let cleared = clear(&self.path, &files);
        let mut now = self.now();
        now.clearing -= 1;
        match cleared {
            Ok(()) => now.stale = false,
            Err(error) => {
                now.void.extend(files);
                tracing::warn!(path = %self.path.display(), %error, "an old netmap stays; trying again");
            }
        }
        drop(now);
        self.ended.notify_one();
    }

    /// A write of a whole netmap has ended.
    pub fn write_ended(&self, too_large: bool) {
        let mut now = self.now();
        // Unless it was of a netmap that holds no more.
        now.too_large |= too_large && now.since.is_some();
        now.since = None;
        now.written = None;
        now.writing = false;
        drop(now);
        self.ended.notify_one();
    }

    /// Returns once nothing is written or removed.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if !self.now().is_busy() {
                return;
            }
            ended.await;
        }
    }

    #[cfg(test)]
    pub fn stand_still(&self) -> MutexGuard<'_, ()> {
        lock(&self.order)
    }
}

/// Lines, and where they go.
#[derive(Debug)]
pub(super) struct Append {
    file: Arc<File>,
    lines: Vec<u8>,
}

/// Empties the file and takes it away. `open` are those of which one may have or get its name: what is emptied holds for nobody, whatever a rename that is under
/// way does. It is gone for whoever reads it before any of that has to be on the disk.
fn clear(path: &Path, open: &[Arc<File>]) -> io::Result<()> {
    let by_name = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let emptied = open
        .iter()
        .map(|file| file.set_len(0))
        .chain(by_name.as_ref().ok().map(|file| file.set_len(0)))
        .fold(Ok(()), Result::and);
    let removed = fs::remove_file(path);
    let on_disk = open
        .iter()
        .map(|file| file.sync_all())
        .chain(by_name.as_ref().ok().map(File::sync_all))
        .fold(emptied, Result::and)
        .and(by_name.map(drop));
    // Either is enough: an empty file is thrown away by whoever finds it.
    found(removed)
        .and_then(|()| sync_directory(path))
        .or_else(|error| on_disk.map_err(|_| error))
}

/// No error if there is nothing.
fn found(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
