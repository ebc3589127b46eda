//! Where commands take a policy from: a file, or standard input.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{Error, refused::RefusedPolicy};

/// What stands for standard input.
const STANDARD_INPUT: &str = "-";

/// A policy's text, and what it is called in messages.
pub(super) struct Source {
    pub(super) name: PathBuf,
    pub(super) text: String,
}

impl Source {
    /// `-` is standard input.
    pub(super) fn read(file: &Path) -> Result<Self, Error> {
        if file != Path::new(STANDARD_INPUT) {
            return Self::read_file(file);
        }
        let mut bytes = Vec::new();
        let read = std::io::stdin().read_to_end(&mut bytes);
        read.map_err(Error::io("read the policy from standard input"))?;
        Self::decode(bytes, Path::new("standard input"))
    }

    /// Whatever it is called.
    pub(super) fn read_file(file: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(file);
        Self::decode(
            bytes.map_err(Error::io(format!("read {}", file.display())))?,
            file,
        )
    }

    fn decode(bytes: Vec<u8>, name: &Path) -> Result<Self, Error> {
        Ok(Self {
            text: RefusedPolicy::decode(bytes, name)?,
            name: name.to_owned(),
        })
    }
}
