//! The committed corpus: `xtask/fuzz/corpus/TARGET/`, bounded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::workspace::root;

/// From the checkout's root.
pub const CORPUS: &str = "xtask/fuzz/corpus";
/// Of one target; 3 MiB for all is what a test allows.
const MOST_BYTES: u64 = 90 << 10;
const MOST_INPUTS: usize = 100;

/// What stayed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Kept {
    pub inputs: usize,
    pub bytes: u64,
}

pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = root().join(CORPUS).join(name);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// libFuzzer names inputs by their hash. What has another name is a seed, or was put there by a person and tells of a bug that was mended.
fn is_named(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !(name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    Ok(files)
}

/// Inputs with names go into a new corpus first.
pub fn copy_named(name: &str, into: &Path) -> Result<()> {
    for (_, path) in files(&folder(name)?)? {
        if is_named(&path) {
            fs::copy(&path, into.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// Makes the corpus equal to `merged`, as far as the bound allows: of more than that, inputs of all lengths.
pub fn replace(name: &str, merged: &Path) -> Result<Kept> {
    let folder = folder(name)?;
    let mut kept = Kept::default();
    let (named, found): (Vec<_>, Vec<_>) = files(merged)?
        .into_iter()
        .partition(|(_, path)| is_named(path));
    for (_, old) in files(&folder)? {
        fs::remove_file(&old).with_context(|| format!("remove {}", old.display()))?;
    }
    let room =
        |kept: &Kept, bytes: u64| kept.inputs < MOST_INPUTS && kept.bytes + bytes <= MOST_BYTES;
    let every = found
        .len()
        .div_ceil(MOST_INPUTS.saturating_sub(named.len()).max(1));
    for (always, every, files) in [(true, 1, named), (false, every.max(1), found)] {
        for (bytes, path) in files.into_iter().step_by(every) {
            if always || room(&kept, bytes) {
                fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
                kept.inputs += 1;
                kept.bytes += bytes;
            }
        }
    }
    Ok(kept)
}
