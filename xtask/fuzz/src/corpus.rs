//! Inputs that are kept: `corpus/TARGET/NAME`, one file each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Target;

/// How the files of seeds begin; a number follows.
const SEED: &str = "seed-";

/// Where the inputs of all targets are.
pub fn folder() -> PathBuf {
    // Tests are also run from elsewhere, with this variable saying where.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.join("corpus")
}

/// The captures and vectors beside the checkout, if they are there.
pub fn shared_samples() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/samples");
    let folder = std::env::var_os("LOWROAD_SAMPLES").map_or(beside, PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// A target's seeds by the names of their files.
pub fn seeds(target: &Target) -> impl Iterator<Item = (String, Vec<u8>)> {
    let seeds = (target.seeds)().into_iter().enumerate();
    seeds.map(|(number, seed)| (format!("{SEED}{number:02}"), seed))
}

/// Whether a file is called as a seed's is.
pub fn is_seed(name: &str) -> bool {
    name.starts_with(SEED)
}

/// The inputs of one target, by name.
#[derive(Clone, Debug)]
pub struct Corpus {
    pub inputs: Vec<(String, Vec<u8>)>,
}

impl Corpus {
    /// Reads the folder of `target`.
    ///
    /// # Errors
    /// The folder or one of its files cannot be read.
    pub fn read(target: &Target) -> io::Result<Self> {
        let mut inputs = Vec::new();
        for entry in fs::read_dir(folder().join(target.name))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            inputs.push((name.into_owned(), fs::read(&path)?));
        }
        inputs.sort();
        Ok(Self { inputs })
    }
}
