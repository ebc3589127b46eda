//! One network namespace: entered by `setns`, which leaves `/sys` (and the bpffs there) as it is, unlike `ip netns exec`.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use crate::{process, shell::find_program};

const FOLDER: &str = "/run/netns";
/// Each of these takes milliseconds; in the emulated VM up to a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Deletes the namespace when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
    /// What programs inside see as `/etc`, if not this machine's.
    etc: Option<Arc<CString>>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
    /// Made by us, and to be deleted.
    made: bool,
}

impl Namespace {
    /// The one that we are in ourselves.
    pub fn ours() -> Result<Self> {
        Ok(Self::of(Inner {
            name: "the host".to_owned(),
            file: File::open("/proc/self/ns/net")?,
            made: false,
        }))
    }

    pub fn create(name: &str) -> Result<Self> {
        ip_command(&["netns", "add", name])?;
        let path = Path::new(FOLDER).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let namespace = Self::of(Inner {
            name: name.to_owned(),
            file,
            made: true,
        });
        // Addresses are usable at once: nobody else can have them here.
        for interfaces in ["all", "default"] {
            let key = format!("net/ipv6/conf/{interfaces}/accept_dad");
            namespace.sysctl(&key, "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn of(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
            etc: None,
        }
    }

    /// The same, for programs that see this folder as `/etc` and may change what is in it.
    pub fn with_etc(&self, folder: &Path) -> Result<Self> {
        let folder = CString::new(folder.as_os_str().as_bytes())?;
        Ok(Self {
            inner: Arc::clone(&self.inner),
            etc: Some(Arc::new(folder)),
        })
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A program that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let descriptor = self.inner.file.as_raw_fd();
        let etc = self.etc.clone();
        // SAFETY: setns, unshare and mount are async-signal-safe; the descriptor is open in the child, which shares our table until
        // exec, and `self` outlives the spawn, because callers hold the namespace while they spawn.
        unsafe {
            command.pre_exec(move || {
                set_namespace(descriptor)?;
                etc.as_deref().map_or(Ok(()), |folder| see_as_etc(folder))
            })
        };
        command
    }

    /// Runs `work` on a thread inside; sockets that it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let descriptor = self.inner.file.as_raw_fd();
        thread::scope(|scope| {
            let worker = scope.spawn(move || set_namespace(descriptor).map(|()| work()));
            match worker.join() {
                Ok(result) => result.with_context(|| format!("enter {}", self.name())),
                Err(_) => Err(anyhow!("a thread in {} panicked", self.name())),
            }
        })
    }

    /// Runs lines of `ip` commands inside.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut command = ip()?;
        command.args(["-n", self.name(), "-batch", "-"]);
        process::run(&mut command, &format!("{lines}\n"), LIMIT)?
            .ok(&format!("ip -n {} {lines}", self.name()))
            .map(drop)
    }

    /// Loads nftables rules inside.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let nft = find_program("nft").context("there is no nft: run `cargo xtask setup`")?;
        process::run(self.command(nft).args(["-f", "-"]), rules, LIMIT)?
            .ok("nft")
            .map(drop)
    }

    /// STUN servers inside hear nothing, until [`Self::hear_stun`].
    pub fn deaf_to_stun(&self) -> Result<()> {
        self.drop_stun("input", "")
    }

    /// A router lets nothing through to the STUN server at this address, until [`Self::hear_stun`].
    pub fn keep_from_stun(&self, server: &str) -> Result<()> {
        self.drop_stun("forward", &format!("ip daddr {server}"))
    }

    fn drop_stun(&self, hook: &str, to: &str) -> Result<()> {
        self.nft(&format!(
            "table inet deaf_to_stun {{ chain {hook} {{ type filter hook {hook} priority 0; {to} udp dport 3478 drop; }}; }}"
        ))
    }

    /// STUN servers hear and are heard again, also where they were.
    pub fn hear_stun(&self) -> Result<()> {
        self.nft("add table inet deaf_to_stun\ndelete table inet deaf_to_stun")
    }

    /// How many packets the first counter of this table has seen.
    pub fn nft_counter(&self, table: &str) -> Result<u64> {
        let nft = find_program("nft").context("there is no nft: run `cargo xtask setup`")?;
        let mut command = self.command(nft);
        command.args(["list", "table", "inet", table]);
        let text = process::run(&mut command, "", LIMIT)?
            .ok("nft list")?
            .stdout;
        let (_, rest) = text.split_once("counter packets ").context("no counter")?;
        let number = rest.split(' ').next().unwrap_or_default();
        Ok(number.parse()?)
    }

    /// Writes `/proc/sys/<key>`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("write {}", path.display()))
    }

    /// Whether a network device of this name exists inside.
    pub fn has_device(&self, device: &str) -> Result<bool> {
        let name = std::ffi::CString::new(device)?;
        // SAFETY: the string is terminated and outlives the call.
        self.enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        if let Err(error) = ip_command(&["netns", "del", &self.name]) {
            eprintln!("   {error:#}");
        }
    }
}

/// Namespaces left by a run that was killed with SIGKILL.
pub fn remove_those_of_dead_processes() {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("lr")
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            eprintln!("   removing {name}, left by a run that was killed");
            let _ = ip_command(&["netns", "del", &name]);
        }
    }
}

fn set_namespace(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; a wrong descriptor is an error, not undefined behaviour.
    if unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// From now on, and nobody else.
fn see_as_etc(folder: &CStr) -> io::Result<()> {
    let check = |result| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let none = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the strings are terminated and outlive the calls; what is null may be.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
        check(libc::mount(
            folder.as_ptr(),
            c"/etc".as_ptr(),
            none,
            libc::MS_BIND,
            none.cast(),
        ))
    }
}

fn ip() -> Result<Command> {
    let program = find_program("ip").context("there is no ip: run `cargo xtask setup`")?;
    Ok(Command::new(program))
}

/// Not by `process::run`, which refuses to start anything after Ctrl-C: cleaning up must go on then.
fn ip_command(arguments: &[&str]) -> Result<()> {
    crate::shell::output(ip()?.args(arguments)).map(drop)
}
