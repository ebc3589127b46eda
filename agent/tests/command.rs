//! The built program, by its command lines.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{
    fs,
    io::{ErrorKind, Read as _},
    os::unix::{
        fs::MetadataExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const KEY: &str = "hskey-auth-of-a-test";
/// Nothing that is waited for takes longer, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// An `up` that was started.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Up {
    fn start(socket: &Path, flag: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowroad"));
        command.arg("--socket").arg(socket).args(["up", flag]);
        command.stdin(Stdio::null()).env_remove("LOWROAD_AUTH_KEY");
        Self(command.spawn().unwrap())
    }

    /// Until it has sent its request; the agent's end of the connection.
    fn request(&mut self, agent: &UnixListener) -> UnixStream {
        agent.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        let mut stream = loop {
            match agent.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "it does not come");
            assert_eq!(self.0.try_wait().unwrap(), None, "it has ended");
            sleep(Duration::from_millis(10));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(KEY) {
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).unwrap();
            assert_ne!(length, 0, "it sends the key: {heard:?}");
            heard.extend_from_slice(&piece[..length]);
        }
        stream
    }
}

#[test]
fn an_up_that_waits_with_an_auth_key_dumps_no_core() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("socket"), dir.path().join("key"));
    let agent = UnixListener::bind(&socket).unwrap();
    fs::write(&file, KEY).unwrap();
    let flags = [
        format!("--auth-key={KEY}"),
        format!("--auth-key=file:{}", file.display()),
    ];
    for flag in flags {
        let mut up = Up::start(&socket, &flag);
        let _unanswered = up.request(&agent);
        let process = format!("/proc/{}", up.0.id());
        let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
        let mut lines = limits.lines();
        let core = lines.find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{flag}");
        // What nobody may look into is root's; as root, all is.
        let owner = fs::metadata(format!("{process}/environ")).unwrap().uid();
        assert_eq!(owner, 0, "{flag}");
    }
}
