//! Names of the host's accounts.

use std::{ffi::CStr, mem::MaybeUninit, ptr};

/// Where looking for room for an entry ends: the longest lists of groups take some KiB.
const LONGEST_ENTRY: usize = 1 << 20;

/// The name of an account, or `uid 1000` for one that has none. May ask the network, where the host's accounts are kept there.
pub fn name(uid: u32) -> String {
    look_up(uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn look_up(uid: u32) -> Option<String> {
    let mut buffer = vec![0_u8; 1024];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all pointers are to memory that lives as long as the call, and the length is the buffer's.
        let status = unsafe {
            libc::getpwuid_r(
                uid,
                entry.as_mut_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut found,
            )
        };
        if status == libc::ERANGE && buffer.len() < LONGEST_ENTRY {
            buffer.resize(2 * buffer.len(), 0);
            continue;
        }
        if status != 0 || found.is_null() {
            return None;
        }
        // SAFETY: on success `found` is `entry`, filled in, whose name is a C string in `buffer`; both still live.
        let name = unsafe { CStr::from_ptr((*found).pw_name) };
        return Some(name.to_string_lossy().into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_without_a_name_goes_by_its_number() {
        assert_eq!(name(0), "root");
        assert_eq!(name(3_999_999_999), "uid 3999999999");
    }
}
