//! An auth key on the command line or in the environment is there for every process of the host, or of the user, to read
//! (`/proc/*/cmdline`, `environ`), for as long as `up` waits. So the command starts itself again without it, and hands the key over by a pipe.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    os::unix::process::CommandExt,
    process::Command,
};

use tracing::debug;

/// Where the new process finds its standard input, which is the pipe.
const PIPE: &str = "--auth-key=file:/proc/self/fd/0";
/// A pipe holds 16 pages without anybody reading. Keys have some 60 bytes.
const MAX_KEY: usize = 4096;
const FLAGS: [&str; 2] = ["--auth-key", "--authkey"];
const VARIABLE: &str = "LOWROAD_AUTH_KEY";

/// Returns only if there is nothing to conceal, or if it is not possible: that is no reason to refuse the command.
pub fn from_the_process_list(key: &str) {
    if key.starts_with("file:") || key.len() > MAX_KEY {
        return;
    }
    if let Err(error) = start_again(key) {
        debug!(%error, "the auth key stays visible in the process list");
    }
}

fn start_again(key: &str) -> io::Result<()> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(key.as_bytes())?;
    drop(writer);
    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    Err(command
        .args(without_key(arguments))
        .arg(PIPE)
        .env_remove(VARIABLE)
        .stdin(reader)
        .exec())
}

fn without_key(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if FLAGS.contains(&&*text) {
            // Its value is the next word.
            let _ = arguments.next();
        } else if !FLAGS.iter().any(|flag| {
            text.strip_prefix(flag)
                .is_some_and(|rest| rest.starts_with('='))
        }) {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_leaves_the_command_line() {
        for line in [
            "--socket /s up --auth-key=k --timeout=40s",
            "--socket /s up --auth-key k --timeout=40s",
            "--socket /s up --authkey=k --timeout=40s --authkey k",
            "--socket /s up --timeout=40s",
        ] {
            let kept = without_key(line.split(' ').map(OsString::from));
            assert_eq!(kept, ["--socket", "/s", "up", "--timeout=40s"], "{line}");
        }
    }
}
