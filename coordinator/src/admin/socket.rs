//! The administration socket: `admin.sock` in the state directory.

use std::{
    fs::{File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::Error;

const NAME: &str = "admin.sock";
const LOCK: &str = "lock";
/// Longest path that a socket address holds.
const LONGEST_PATH: usize = 107;
/// Commands that may wait to be let in.
const BACKLOG: i32 = 128;

pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(NAME)
}

/// Makes sure that no other server uses the state directory, for as long as the file is held.
pub fn lock(state_dir: &Path) -> Result<File, Error> {
    let path = state_dir.join(LOCK);
    let open = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let file = open.map_err(Error::io(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Setting(format!(
            "another coordinator runs with state directory {}; stop it first, or choose another --state-dir",
            state_dir.display()
        ))),
        Err(TryLockError::Error(source)) => {
            Err(Error::io(format!("lock {}", path.display()))(source))
        }
    }
}

/// Listens, in place of whatever a dead server left. The caller holds the lock.
pub fn listen(state_dir: &Path) -> Result<UnixListener, Error> {
    let path = path(state_dir);
    let doing = || format!("listen on {}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(doing())(error));
        }
        _ => {}
    }
    let reach = Reach::new(&path).map_err(Error::io(doing()))?;
    let listen = || -> io::Result<UnixListener> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(reach.path())?)?;
        // Before it listens: the directory may be open to others.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        UnixListener::from_std(socket.into())
    };
    listen().map_err(Error::io(doing()))
}

pub async fn connect(state_dir: &Path) -> Result<UnixStream, Error> {
    let socket = path(state_dir);
    let connect = async {
        let reach = Reach::new(&socket)?;
        UnixStream::connect(reach.path()).await
    };
    connect.await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::io(format!(
            "open {} (run this as the user who runs the server, or as root)",
            socket.display()
        ))(source),
        _ => Error::NotRunning {
            socket: socket.clone(),
            source,
        },
    })
}

/// A path to the socket that fits into a socket address, however deep the state directory lies.
enum Reach {
    Plain(PathBuf),
    Through { path: PathBuf, _directory: File },
}

impl Reach {
    fn new(path: &Path) -> io::Result<Self> {
        match path
            .parent()
            .filter(|_| path.as_os_str().len() > LONGEST_PATH)
        {
            None => Ok(Self::Plain(path.to_owned())),
            Some(directory) => {
                let directory = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_DIRECTORY)
                    .open(directory)?;
                let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()));
                Ok(Self::Through {
                    path,
                    _directory: directory,
                })
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Plain(path) | Self::Through { path, .. } => path,
        }
    }
}
