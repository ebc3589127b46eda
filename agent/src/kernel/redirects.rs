//! A setting of the host that WireGuard changes behind our back.
//!
//! Whenever a device of the kernel's WireGuard goes up, the kernel sets `net.ipv4.conf.all.send_redirects` to 0 for the whole network namespace (`wg_open` in
//! drivers/net/wireguard/device.c), and nothing ever sets it back: a router that we run on would send no redirects to its LAN any more, even after `down`.
//! The device's own setting stays 0.
//!
//! What it was is in a file of the state directory meanwhile: an agent that is killed in between leaves it to whoever comes next.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const SETTING: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";
const NOTE: &str = "send_redirects";
/// What WireGuard sets.
const OFF: &str = "0";

#[derive(Debug)]
pub(super) struct Redirects {
    setting: PathBuf,
    note: PathBuf,
    /// The boot and the network namespace that the setting belongs to.
    place: String,
}

/// The setting as it was, unless it was [`OFF`]: then nothing changes.
#[derive(Debug, Default)]
pub(super) struct Before(Option<String>);

impl Redirects {
    /// Of the calling thread's network namespace.
    pub fn here(state_dir: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
        Self {
            setting: SETTING.into(),
            note: state_dir.join(NOTE),
            place: format!("{} {}", boot.trim(), namespace.display()),
        }
    }

    /// To be called before a device goes up.
    pub fn remember(&self) -> Before {
        let Ok(before) = fs::read_to_string(&self.setting) else {
            return Before(None);
        };
        let before = before.trim();
        if before == OFF {
            return Before(None);
        }
        let note = format!("{before}\n{}\n", self.place);
        if let Err(error) = fs::write(&self.note, note) {
            tracing::warn!(file = %self.note.display(), %error, "an agent that is killed while its device comes up will leave this host without redirects");
        }
        Before(Some(before.to_owned()))
    }

    /// To be called when it is up, or couldn't be brought up.
    pub fn keep(&self, Before(before): Before) {
        if let Some(before) = before {
            self.put_back(&before);
        }
    }

    /// What an agent had no time for that was killed while its device came up. Says whether there was anything.
    pub fn restore(&self) -> bool {
        let Ok(note) = fs::read_to_string(&self.note) else {
            return false;
        };
        match note.split_once('\n') {
            Some((before, place)) if place.trim() == self.place => self.put_back(before),
            // Of another boot, or of a namespace that may be gone.
            _ => {
                self.forget();
                false
            }
        }
    }

    /// Only in the place of what WireGuard sets. Says whether it did.
    fn put_back(&self, before: &str) -> bool {
        let is_off = fs::read_to_string(&self.setting).is_ok_and(|now| now.trim() == OFF);
        if is_off && let Err(error) = fs::write(&self.setting, before) {
            tracing::warn!(setting = %self.setting.display(), before, %error, "WireGuard has changed a setting of this host, and it cannot be put back");
            return false;
        }
        self.forget();
        is_off
    }

    fn forget(&self) {
        match fs::remove_file(&self.note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.note.display(), %error, "cannot remove it");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A setting that reads so, and a state directory.
    fn host(setting: &str) -> (tempfile::TempDir, Redirects) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("setting"), setting).unwrap();
        let redirects = Redirects {
            setting: dir.path().join("setting"),
            note: dir.path().join(NOTE),
            place: "boot net:[1]".into(),
        };
        (dir, redirects)
    }

    fn wireguard_sets(redirects: &Redirects) {
        fs::write(&redirects.setting, "0\n").unwrap();
    }

    fn is(redirects: &Redirects) -> String {
        let setting = fs::read_to_string(&redirects.setting).unwrap();
        setting.trim().to_owned()
    }

    #[test]
    fn what_wireguard_changes_is_put_back_and_no_note_is_left() {
        let (_dir, redirects) = host("1\n");
        let before = redirects.remember();
        wireguard_sets(&redirects);
        redirects.keep(before);
        assert_eq!(is(&redirects), "1");
        assert!(!redirects.note.exists());
    }

    #[test]
    fn what_a_killed_agent_could_not_put_back_the_next_one_does() {
        let (_dir, redirects) = host("1\n");
        drop(redirects.remember());
        wireguard_sets(&redirects);
        assert!(redirects.restore());
        assert_eq!(is(&redirects), "1");
        assert!(!redirects.restore(), "and once only");
        wireguard_sets(&redirects);
        assert!(!redirects.restore());
        assert_eq!(is(&redirects), "0", "somebody else's 0 stays");
    }

    #[test]
    fn a_setting_that_was_off_or_has_been_changed_since_stays() {
        let (_dir, redirects) = host("0\n");
        redirects.keep(redirects.remember());
        assert!(!redirects.note.exists());
        fs::write(&redirects.setting, "1\n").unwrap();
        drop(redirects.remember());
        fs::write(&redirects.setting, "2\n").unwrap();
        assert!(!redirects.restore());
        assert_eq!(is(&redirects), "2");
        assert!(!redirects.note.exists());
    }

    #[test]
    fn a_note_of_another_boot_or_namespace_is_thrown_away() {
        let (_dir, mut redirects) = host("1\n");
        drop(redirects.remember());
        wireguard_sets(&redirects);
        redirects.place = "boot net:[2]".into();
        assert!(!redirects.restore());
        assert_eq!(is(&redirects), "0");
        assert!(!redirects.note.exists());
        fs::write(&redirects.note, "garbage").unwrap();
        assert!(!redirects.restore());
        assert!(!redirects.note.exists());
    }
}
