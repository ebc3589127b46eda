//! Agents that are replaced by another program: of another version, or with maps of another layout.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{Case, LIMIT, installs};
use crate::{lab::Lab, tailnet::binaries, vm::OTHER_VERSION, wait};

/// What agents are replaced by.
#[derive(Debug)]
pub struct Other {
    program: PathBuf,
    /// Ours, with another version written into it. Another build may say the same version of itself.
    is_ours: bool,
}

impl Other {
    /// The build that `LOWROAD_OTHER_VERSION` names; without it `ours`, which [`another_version`] made.
    pub fn or(ours: &Path) -> Result<Self> {
        let Some(named) = env::var_os(OTHER_VERSION) else {
            return Ok(Self {
                program: ours.to_owned(),
                is_ours: true,
            });
        };
        let program = PathBuf::from(named);
        let same = read(&program)? == read(&binaries().join("lowroad"))?;
        ensure!(!same, "{OTHER_VERSION} names the program that is tested");
        Ok(Self {
            program,
            is_ours: false,
        })
    }
}

fn read(program: &Path) -> Result<Vec<u8>> {
    fs::read(program).with_context(|| format!("read {}", program.display()))
}

/// To another version and back, with SIGTERM as a service manager does it.
pub fn to_another_version(lab: &Lab, case: &mut Case, other: &Other) -> Result<()> {
    let (ours, pins) = (case.node.program.clone(), pins(case)?);
    for program in [&other.program, &ours, &other.program] {
        let maps = versions_of_maps(&pins)?;
        case.node.stop_agent_gracefully()?;
        case.node.program.clone_from(program);
        case.start_agent()?;
        // Another build's may have another layout: they take over once they hold the policy, and count anew.
        if versions_of_maps(&pins)? != maps {
            case.load.counter_kept = false;
            wait::wait_for("the end of the maps before", LIMIT, || {
                Ok((versions_of_maps(&pins)?.len() == 1).then_some(()))
            })?;
        }
    }
    ensure!(
        case.load.counter_kept || !other.is_ours,
        "the same program has other maps"
    );
    let versions = versions(&case.node.log())?;
    ensure!(
        versions.len() == 4
            && versions[0] == versions[2]
            && (versions[0] != versions[1] || !other.is_ours),
        "the versions that ran: {versions:?}"
    );
    lab.note(&format!("upgrade: {}", versions.join(" → ")));
    Ok(())
}

/// Where the maps of a node's filter are pinned, in a folder for each layout.
fn pins(case: &Case) -> Result<PathBuf> {
    Ok(Path::new("/sys/fs/bpf/lowroad").join(case.node.state_id()?))
}

/// To a version whose maps have another layout: it finds the programs on the device, and pins of maps that it doesn't know.
pub fn to_other_maps(case: &mut Case, program: &Path) -> Result<()> {
    let pins = pins(case)?;
    let [ours] = &versions_of_maps(&pins)?[..] else {
        anyhow::bail!("not one folder of maps in {}", pins.display());
    };
    case.node.stop_agent_gracefully()?;
    fs::rename(ours, pins.join("v0")).context("rename the folder of pinned maps")?;
    case.load.counter_kept = false;
    case.node.program = program.to_owned();
    let known = installs(&case.node.log())?;
    case.start_agent()?;
    case.settles(known)?;
    wait::wait_for("the end of the old maps", LIMIT, || {
        Ok((versions_of_maps(&pins)? == [ours.clone()]).then_some(()))
    })
    .map(drop)
}

fn versions_of_maps(pins: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pins).with_context(|| format!("read {}", pins.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

fn versions(log: &Path) -> Result<Vec<String>> {
    let log = fs::read_to_string(log)?;
    let version = |line: &str| {
        let (_, rest) = line.split_once(" lowroad agent version=")?;
        rest.split(' ').next().map(str::to_owned)
    };
    Ok(log.lines().filter_map(version).collect())
}

/// A copy of `lowroad` that says of itself that it is another version.
pub fn another_version(lab: &Lab) -> Result<PathBuf> {
    const MARK: &[u8] = b"lowroad version ";
    let mut program = fs::read(binaries().join("lowroad"))?;
    let places = places_of(MARK, &program);
    ensure!(!places.is_empty(), "the binary doesn't name its version");
    for at in places.into_iter().map(|at| at + MARK.len()) {
        program[at] = if program[at] == b'9' { b'8' } else { b'9' };
    }
    let folder = lab.net.folder().join("other-version");
    fs::create_dir_all(&folder)?;
    let path = folder.join("lowroad");
    fs::write(&path, program)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// By the C library: a debug build of our own search takes minutes on an emulated CPU.
fn places_of(needle: &[u8], hay: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut from = 0;
    loop {
        let rest = &hay[from..];
        // SAFETY: both pointers come with the lengths of the slices that they are of, which outlive the call.
        let found = unsafe {
            libc::memmem(
                rest.as_ptr().cast(),
                rest.len(),
                needle.as_ptr().cast(),
                needle.len(),
            )
        };
        if found.is_null() {
            return places;
        }
        from += found as usize - rest.as_ptr() as usize;
        places.push(from);
        from += needle.len();
    }
}
