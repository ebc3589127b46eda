//! The socket file: a stale one is replaced, a live one is an error.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::net::UnixListener;

const DYING_TRIES: u32 = 5;
const DYING_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another agent answers on {0}: stop it, or give this one its own --socket")]
    Live(PathBuf),
    #[error("{0} exists and is not a socket: remove it, or give another --socket")]
    NotASocket(PathBuf),
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Binds the socket. Everybody may connect: what each may do is decided by credentials.
///
/// # Errors
/// Another agent answers there, something else than a socket has that name, or the directory can't be written.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |what| {
        move |source| SocketError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed("create the directory of"))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) if is_live(path) => {
            return Err(SocketError::Live(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(failed("remove the stale socket"))?,
    }
    let listener = UnixListener::bind(path).map_err(failed("bind the socket"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        .map_err(failed("open the socket"))?;
    Ok(listener)
}

/// True if somebody answers, and goes on to: an agent that has just been killed closes its files one after the other.
fn is_live(path: &Path) -> bool {
    for _ in 0..DYING_TRIES {
        if UnixStream::connect(path).is_err() {
            return false;
        }
        thread::sleep(DYING_PAUSE);
    }
    true
}
