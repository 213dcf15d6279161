//! Memory that leaves no trace in core dumps, swap or other processes.

#![expect(unsafe_code, reason = "memory is mapped, locked and advised")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};

use nix::errno::Errno;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

mod lock;

pub(crate) use lock::unlock;
pub use lock::{lock_all, lock_what_fits};

/// No core dumps of this process and all that it starts: RLIMIT_CORE is 1 byte, soft and hard.
///
/// Not 0: where `/proc/sys/kernel/core_pattern` pipes to a program, as systemd-coredump and apport
/// have it, the kernel takes no notice of the limit and hands over the whole dump, for the program to
/// throw away. Only a limit of exactly 1 keeps it from being made (`do_coredump` in the kernel's
/// fs/coredump.c, where it marks the program's own crash). For files both are below the least that is
/// written.
///
/// # Errors
///
/// EPERM never: where the hard limit is 0 already, it stays 0.
pub fn forbid_core_dumps() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    let most = hard.min(1);
    setrlimit(Resource::RLIMIT_CORE, most, most)?;
    Ok(())
}

/// Makes this process undumpable: others of its uid cannot ptrace it or read its `/proc/PID/mem`.
///
/// The kernel resets this on exec, so a launcher cannot give it to what it starts.
///
/// # Errors
///
/// None that Linux documents; see PR_SET_DUMPABLE(2const).
pub fn forbid_reading_by_others() -> io::Result<()> {
    set_dumpable(false)?;
    Ok(())
}

/// What stands behind a [`Region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// memfd_secret(2): outside the kernel's own mapping, so that neither a kernel bug that reads
    /// memory, nor `/proc/PID/mem`, nor ptrace, nor hibernation reaches it.
    Secret,
    /// Anonymous memory, locked against swap and left out of core dumps.
    Locked,
}

/// A few bytes, such as a root key, in pages of their own: never in swap, in a core dump, or in a
/// forked child. Zeroed when dropped. It has no `Debug` and no `Clone`.
pub struct Region {
    start: NonNull<u8>,
    mapped: usize,
    length: usize,
    backing: Backing,
}

// SAFETY: the pages belong to this value alone and are reached only through `&self` and
// `&mut self`, as with a `Box<[u8]>`.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` only reads.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `length` zero bytes, behind memfd_secret if the kernel has it.
    ///
    /// # Errors
    ///
    /// EAGAIN or ENOMEM if RLIMIT_MEMLOCK does not allow the pages: unlocked memory is never
    /// given. EINVAL if `length` is 0.
    pub fn new(length: usize) -> io::Result<Self> {
        match Self::secret(length) {
            Ok(region) => Ok(region),
            Err(_) => Self::locked(length),
        }
    }

    fn secret(length: usize) -> io::Result<Self> {
        // SAFETY: a new descriptor, owned by the file from here on. nix and std lack the call.
        let file = unsafe {
            let answer = libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC);
            File::from_raw_fd(Errno::result(answer)? as i32)
        };
        file.set_len(pages(length) as u64)?;
        // Secret memory is locked and left out of dumps by its kind, and only as a shared mapping.
        Self::map(length, libc::MAP_SHARED, file.as_raw_fd(), Backing::Secret)
    }

    fn locked(length: usize) -> io::Result<Self> {
        let region = Self::map(
            length,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            Backing::Locked,
        )?;
        // SAFETY: the range is the region's own mapping.
        unsafe {
            let start = region.start.as_ptr().cast();
            Errno::result(libc::mlock2(start, region.mapped, 0))?;
            Errno::result(libc::madvise(start, region.mapped, libc::MADV_DONTDUMP))?;
        }
        Ok(region)
    }

    fn map(length: usize, flags: i32, file: i32, backing: Backing) -> io::Result<Self> {
        let mapped = pages(length);
        // SAFETY: a new mapping at an address of the kernel's choice; the region owns it and
        // unmaps it once. Safe wrappers exist only in crates that we do not have.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(null_mut(), mapped, access, flags, file, 0);
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            start
        };
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let region = Self {
            start,
            mapped,
            length,
            backing,
        };
        // SAFETY: the range is the region's own mapping. A forked child does not get it.
        unsafe {
            let start = region.start.as_ptr().cast();
            Errno::result(libc::madvise(start, mapped, libc::MADV_DONTFORK))?;
        }
        Ok(region)
    }

    /// Which kind of memory this got.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The bytes, of the length that was asked for.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, readable, at least this long, initialized (to zero by the kernel), and
        // not written while `&self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The bytes, to be filled in place, so that no copy lies anywhere else.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`; writable, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is the region's own, writable, and not used after this.
        unsafe {
            libc::explicit_bzero(self.start.as_ptr().cast(), self.length);
            libc::munmap(self.start.as_ptr().cast(), self.mapped);
        }
    }
}

/// Whole pages that hold `length` bytes.
fn pages(length: usize) -> usize {
    // SAFETY: asks for a number. Linux always has one; 4096 is its least.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    length.next_multiple_of(usize::try_from(size).unwrap_or(0).max(4096))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_backings_hold_bytes() {
        for region in [Region::secret(32), Region::locked(32)] {
            let mut region = region.unwrap();
            assert_eq!(region.bytes(), [0; 32]);
            region.bytes_mut().copy_from_slice(&[7; 32]);
            assert_eq!(region.bytes(), [7; 32]);
        }
        assert!(Region::new(0).is_err());
        assert_eq!(Region::new(1).unwrap().backing(), Backing::Secret);
    }

    #[test]
    fn secret_memory_cannot_be_read_from_outside() {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut found = [0; 32];
        let region = Region::secret(32).unwrap();
        let at = region.start.as_ptr() as u64;
        let error = memory.read_exact_at(&mut found, at).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn locked_memory_is_locked_and_left_out_of_dumps_and_forks() {
        let region = Region::locked(32).unwrap();
        let at = format!("{:x}-", region.start.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry = maps.split(&at).nth(1).unwrap();
        let flags = entry
            .split("VmFlags:")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        for flag in [" lo", " dd", " dc"] {
            assert!(flags.contains(flag), "no{flag} in{flags}");
        }
    }

    #[test]
    fn without_secret_memory_it_falls_back_and_says_so() {
        // A limit of no locked memory at all, for one without capabilities, refuses both.
        let refused = in_child(|| {
            setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
            Region::new(32).is_err() && lock_all().is_err()
        });
        assert!(refused);
        // No descriptor left: memfd_secret fails, locked memory does not need one.
        let fell_back = in_child(|| {
            setrlimit(Resource::RLIMIT_NOFILE, 0, 0).unwrap();
            Region::new(32).unwrap().backing() == Backing::Locked
        });
        assert!(fell_back);
    }

    #[test]
    fn nothing_dumps() {
        let held = in_child(|| {
            forbid_core_dumps().unwrap();
            forbid_reading_by_others().unwrap();
            getrlimit(Resource::RLIMIT_CORE).unwrap() == (1, 1)
                && !nix::sys::prctl::get_dumpable().unwrap()
        });
        assert!(held);
        let stays = in_child(|| {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
            forbid_core_dumps().unwrap();
            getrlimit(Resource::RLIMIT_CORE).unwrap() == (0, 0)
        });
        assert!(stays);
    }
}
