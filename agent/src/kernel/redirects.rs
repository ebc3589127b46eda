//! A setting of the host that WireGuard changes behind our back.
//!
//! Whenever a device of the kernel's WireGuard goes up, the kernel sets `net.ipv4.conf.all.send_redirects` to 0 for the whole network namespace (`wg_open` in
//! drivers/net/wireguard/device.c), and nothing ever sets it back: a router that we run on would send no redirects to its LAN any more, even after `down`.
//! The device's own setting stays 0.

use std::fs;

const SETTING: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

/// The setting as it was.
#[derive(Debug)]
pub(super) struct Redirects(Option<String>);

impl Redirects {
    pub fn read() -> Self {
        Self(fs::read_to_string(SETTING).ok())
    }

    /// Puts it back if it has changed.
    pub fn keep(&self) {
        let Some(before) = &self.0 else { return };
        if fs::read_to_string(SETTING).is_ok_and(|now| now == *before) {
            return;
        }
        if let Err(error) = fs::write(SETTING, before) {
            tracing::warn!(setting = SETTING, before = before.trim(), %error, "WireGuard has changed a setting of this host, and it cannot be put back");
        }
    }
}
