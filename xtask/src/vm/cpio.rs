//! The archive format of an initramfs: cpio "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes entries; folders on the way to a file are made when first needed.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 1,
            written: BTreeSet::new(),
        }
    }

    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if self.written.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, FOLDER, (0, 0), &[])
    }

    /// An executable file. One that is there already stays as it is.
    pub fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.with_mode(path, PROGRAM, content)
    }

    /// As [`Self::program`], not executable.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.with_mode(path, FILE, content)
    }

    fn with_mode(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if self.written.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, mode, (0, 0), content)
    }

    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if self.written.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, LINK, (0, 0), target.as_bytes())
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    pub fn contains(&self, path: &str) -> bool {
        self.written.contains(path.trim_start_matches('/'))
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let folders: Vec<String> = path
            .match_indices('/')
            .map(|(at, _)| path[..at].to_owned())
            .collect();
        for folder in folders {
            if !self.written.contains(&folder) {
                self.entry(&folder, FOLDER, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| io::Error::other("file over 4 GiB"))?;
        let name_size = path.len() as u32 + 1;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())?;
        self.inode += 1;
        self.written.insert(path.to_owned());
        Ok(())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..(4 - length % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_everything_is_aligned_to_four() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", b"hello").unwrap();
        archive.file("/a/b/d", b"").unwrap();
        assert!(archive.contains("a/b"));
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let magics = bytes.windows(6).filter(|window| window == b"070701");
        assert_eq!(magics.count(), 5, "a, a/b, two files, the trailer");
    }
}
