//! Who may operate the agent: users and groups by name, and the groups of whoever is on the socket's other end.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Groups that a process may have by default configurations (`NGROUPS_MAX` is far higher); more are asked for again.
const USUAL_GROUPS: usize = 64;

/// The id of a user of `/etc/passwd`, or a number as it is.
pub fn user_id(name: &str) -> Option<u32> {
    id_in("/etc/passwd", name)
}

/// The id of a group of `/etc/group`, or a number as it is.
pub(super) fn group_id(name: &str) -> Option<u32> {
    id_in("/etc/group", name)
}

fn id_in(file: &str, name: &str) -> Option<u32> {
    if let Ok(id) = name.parse() {
        return Some(id);
    }
    find(&fs::read_to_string(file).ok()?, name)
}

/// In both files the third field is the id.
fn find(table: &str, name: &str) -> Option<u32> {
    let mut fields = table
        .lines()
        .map(|line| line.split(':'))
        .find(|fields| fields.clone().next() == Some(name))?;
    fields.nth(2)?.parse().ok()
}

/// The supplementary groups that the process on the other end had when it connected.
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; USUAL_GROUPS];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the pointers are to `groups` and its size in bytes, which live through the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!(find(passwd, "anna"), Some(1000));
        assert_eq!(find(passwd, "ann"), None);
        assert_eq!(find("broken\n", "broken"), None);
        assert_eq!(user_id("1234"), Some(1234));
        assert_eq!(find("lowroad:x:997:anna\n", "lowroad"), Some(997));
    }

    #[test]
    fn our_own_groups_are_those_of_the_other_end() {
        let (one, _other) = UnixStream::pair().unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        let mut own: Vec<u32> = line
            .unwrap()
            .split_whitespace()
            .map(|group| group.parse().unwrap())
            .collect();
        own.sort_unstable();
        let mut seen = peer_groups(one.as_fd()).unwrap();
        seen.sort_unstable();
        assert_eq!(seen, own);
    }
}
