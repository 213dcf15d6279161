//! Kernel keyrings: how to leave them, and what an attacker does with them.
//!
//! Mayfly keeps nothing in a keyring: the keyrings of a uid are shared by all containers of that
//! uid, and outlive them. It only gives a process a session keyring of its own, before the calls
//! are taken away ([`crate::seccomp`]). The other calls are for the tests that attack.

#![expect(unsafe_code, reason = "nix and libc have no keyring calls")]

use std::ffi::CStr;
use std::io;
use std::ptr::null;

use nix::errno::Errno;

/// The serial number of a key or keyring; negative for the special ones of keyctl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub i32);

impl Key {
    /// `@s`: the session keyring of the caller.
    pub const SESSION: Self = Self(-3);
    /// `@u`: the keyring that all processes of the uid share.
    pub const USER: Self = Self(-4);
    /// `@us`: the default session keyring of the uid, also shared.
    pub const USER_SESSION: Self = Self(-5);
}

// linux/keyctl.h, which libc does not carry.
const KEYCTL_JOIN_SESSION_KEYRING: i64 = 1;
const KEYCTL_LINK: i64 = 8;
const KEYCTL_SEARCH: i64 = 10;
const KEYCTL_READ: i64 = 11;

/// Leaves the inherited session keyring for a new, empty one without a name, which is freed with
/// the last process that holds it.
///
/// # Errors
///
/// EPERM or ENOSYS where a seccomp filter already denies keyctl, EDQUOT if the uid has too many
/// keys (`/proc/sys/kernel/keys/maxkeys`). See keyctl_join_session_keyring(3).
pub fn join_anonymous_session() -> io::Result<Key> {
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    key(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, null::<u8>()) })
}

/// Adds a key of type `user` to a keyring. See add_key(2) for the errors.
pub fn add(description: &CStr, payload: &[u8], ring: Key) -> io::Result<Key> {
    // SAFETY: both strings end with NUL, the payload has the length given; the kernel only reads.
    key(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            ring.0,
        )
    })
}

/// Finds a key of type `user` in the caller's keyrings, and links it to `ring`. Never asks user
/// space to make it. See request_key(2) for the errors.
pub fn request(description: &CStr, ring: Key) -> io::Result<Key> {
    // SAFETY: both strings end with NUL; a null callout makes the kernel only search.
    key(unsafe {
        libc::syscall(
            libc::SYS_request_key,
            c"user".as_ptr(),
            description.as_ptr(),
            null::<u8>(),
            ring.0,
        )
    })
}

/// Finds a key of type `user` in one keyring and those below it. See keyctl_search(3).
pub fn search(ring: Key, description: &CStr) -> io::Result<Key> {
    // SAFETY: both strings end with NUL; the kernel only reads.
    key(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            ring.0,
            c"user".as_ptr(),
            description.as_ptr(),
            0,
        )
    })
}

/// Links a key or keyring to another keyring. See keyctl_link(3).
pub fn link(linked: Key, ring: Key) -> io::Result<()> {
    // SAFETY: plain numbers; no memory is passed.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_LINK, linked.0, ring.0) };
    Errno::result(answer)?;
    Ok(())
}

/// Reads a key's payload of at most `limit` bytes.
///
/// # Errors
///
/// EMSGSIZE if the payload is longer; see keyctl_read(3) for the others.
pub fn read(from: Key, limit: usize) -> io::Result<Vec<u8>> {
    let mut payload = vec![0_u8; limit];
    // SAFETY: the kernel writes at most `limit` bytes, which the vector owns.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_READ,
            from.0,
            payload.as_mut_ptr(),
            payload.len(),
        )
    };
    // The kernel tells the whole length, and writes nothing if that is more than it may.
    let length = Errno::result(length)? as usize;
    if length > limit {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    payload.truncate(length);
    Ok(payload)
}

fn key(answer: i64) -> io::Result<Key> {
    Ok(Key(Errno::result(answer)? as i32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;

    /// Without the filter the calls work; if they did not, the attacks that use them would prove
    /// nothing.
    #[test]
    fn the_calls_of_the_attacks_work() {
        let held = in_child(|| {
            join_anonymous_session().unwrap();
            let added = add(c"mayfly-test", b"payload", Key::SESSION).unwrap();
            let ring = Key::SESSION;
            link(Key::USER, ring).unwrap();
            search(ring, c"mayfly-test").unwrap() == added
                && request(c"mayfly-test", ring).unwrap() == added
                && read(added, 64).unwrap() == b"payload"
                && read(added, 3).is_err()
        });
        assert!(held);
    }

    #[test]
    fn a_new_session_does_not_have_the_keys_of_the_old_one() {
        let held = in_child(|| {
            join_anonymous_session().unwrap();
            add(c"mayfly-old", b"payload", Key::SESSION).unwrap();
            join_anonymous_session().unwrap();
            search(Key::SESSION, c"mayfly-old")
                .unwrap_err()
                .raw_os_error()
                == Some(libc::ENOKEY)
        });
        assert!(held);
    }
}
