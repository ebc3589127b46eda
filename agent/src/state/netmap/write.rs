//! Writes a whole netmap, beside the engine's loop.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::Path,
    sync::Arc,
};

use lowroad_wire::netmap::NetMap;
use time::OffsetDateTime;
use tracing::{debug, warn};

use super::{Of, TEMPORARY, disk::Disk, header, whole};
use crate::state::files::create_private;

/// A netmap about to be kept. There is one at a time, for there is one temporary file.
#[derive(Debug)]
pub struct NetmapWrite {
    disk: Arc<Disk>,
    generation: u64,
    of: Of,
    map: NetMap,
    too_large: bool,
}

impl NetmapWrite {
    pub(super) fn new(disk: Arc<Disk>, generation: u64, of: Of, map: NetMap) -> Self {
        Self {
            disk,
            generation,
            of,
            map,
            too_large: false,
        }
    }

    /// Blocks. A failure is told in the log: the agent runs as well without.
    pub fn run(mut self, now: OffsetDateTime) {
        let temporary = self.disk.path.with_file_name(TEMPORARY);
        let written = self.write(&temporary, now);
        if !matches!(written, Ok(true))
            && let Err(error) = fs::remove_file(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            debug!(path = %temporary.display(), %error, "a part of a netmap stays until the next is written");
        }
        let path = self.disk.path.display();
        match written {
            Ok(true) => debug!(%path, "netmap kept"),
            Ok(false) => {}
            Err(error) => {
                self.too_large = error.kind() == io::ErrorKind::FileTooLarge;
                warn!(%path, %error, "the netmap cannot be kept for a restart");
            }
        }
    }

    fn write(&self, temporary: &Path, now: OffsetDateTime) -> io::Result<bool> {
        let file = Arc::new(create_private(temporary).map_err(io::Error::other)?);
        // Whoever makes it void empties it, whatever its name is by then.
        self.disk.now().written = Some(file.clone());
        let size = self.put(&file, now)?;
        file.sync_all()?;
        self.disk.put_in_place(&file, temporary, size)
    }

    fn put(&self, file: &File, now: OffsetDateTime) -> io::Result<u64> {
        let write = |out: &mut dyn io::Write| {
            serde_json::to_writer(out, &self.map.to_response()).map_err(io::Error::from)
        };
        let header = header(&self.of, now, self.map.clock_offset, self.generation);
        let (out, size) = whole(BufWriter::new(file), &header, write)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(size)
    }
}

impl Drop for NetmapWrite {
    /// Also of one that never ran: the next one may begin.
    fn drop(&mut self) {
        self.disk.write_ended(self.too_large);
    }
}
