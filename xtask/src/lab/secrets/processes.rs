//! What processes show to each other: their command lines, and to others of the same user their environments.

use std::{fs, io};

use anyhow::{Context, Result, ensure};

use super::Secrets;

/// Command line and environment of a process.
pub struct Visible {
    pub text: String,
    /// Its environment is none of it: it lets nobody look, not even root without CAP_SYS_PTRACE.
    hides: bool,
}

pub fn visible(pid: u32) -> Result<Visible> {
    let mut text = shown(pid, "cmdline").context("a command line")?;
    let environment = shown(pid, "environ");
    let hides =
        matches!(&environment, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    if !hides {
        text.push_str(&environment.context("an environment")?);
    }
    Ok(Visible { text, hides })
}

/// Searches what all processes of this machine show, for a secret may have got into one that nobody thinks of. None is left out: the command that a key was
/// given to must have put it away by then, and the lab, which gave it, has it only in its memory. Says how many there were.
///
/// # Errors
/// A secret is found; or one of those that must be among them is not.
pub fn search(secrets: &Secrets, among: &[u32]) -> Result<String> {
    let entries = fs::read_dir("/proc")?.flatten();
    let names = entries.map(|entry| entry.file_name());
    let (mut searched, mut hidden) = (Vec::new(), 0);
    for pid in names.filter_map(|name| name.to_str()?.parse::<u32>().ok()) {
        // It may have ended, or be one of the kernel's own.
        let Ok(Visible { text, hides }) = visible(pid) else {
            continue;
        };
        secrets.search(&format!("the process list, of process {pid}"), &text)?;
        searched.push(pid);
        hidden += usize::from(hides);
    }
    for pid in among {
        ensure!(searched.contains(pid), "process {pid} was not to be seen");
    }
    let searched = searched.len();
    Ok(format!(
        "{searched} processes, of which {hidden} hid their environment"
    ))
}

fn shown(pid: u32, file: &str) -> io::Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}"))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\0', "\n") + "\n")
}
