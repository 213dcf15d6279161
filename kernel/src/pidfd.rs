//! A handle on a process that stays that process's, whatever happens to its pid.
//!
//! See pidfd_open(2). PIDFD_GET_*_NAMESPACE is Linux 6.11, PIDFD_GET_INFO 6.13.

#![expect(unsafe_code, reason = "neither std nor nix has pidfds on stable")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::ns::{Kind, Namespace};

/// An open pidfd.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

/// What PIDFD_GET_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Id of the process's cgroup in the v2 hierarchy. 1 is the root of it, where processes are whose
    /// runtime does not use v2.
    pub cgroup_id: u64,
    /// Thread group id in the caller's pid namespace; 0 if the process is not seen from there.
    pub pid: u32,
    /// Effective user id, in the caller's user namespace.
    pub uid: u32,
    /// Effective group id, likewise.
    pub gid: u32,
}

/// The first version of `struct pidfd_info` (linux/pidfd.h): 64 bytes.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B;
const INFO_PID: u64 = 1;
const INFO_CREDS: u64 = 2;
const INFO_CGROUPID: u64 = 4;

impl Pidfd {
    /// Opens the process that has this pid now, in the caller's pid namespace.
    ///
    /// # Errors
    ///
    /// ESRCH if there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: two numbers; the kernel touches no memory of ours.
        let number = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number as i32) }))
    }

    /// Opens the process that connected this unix socket (SO_PEERPIDFD, Linux 6.5).
    ///
    /// # Errors
    ///
    /// ENOPROTOOPT on a kernel without it; EINVAL or ESRCH for a process that is gone, on a kernel
    /// that makes no pidfd for one.
    pub fn peer(socket: impl AsFd) -> io::Result<Self> {
        let mut number: libc::c_int = -1;
        let mut length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes one int.
        Errno::result(unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERPIDFD,
                (&raw mut number).cast(),
                &raw mut length,
            )
        })?;
        if number < 0 {
            return Err(Errno::ESRCH.into());
        }
        // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Asks the kernel about the process (PIDFD_GET_INFO).
    ///
    /// # Errors
    ///
    /// ESRCH if it is gone, or dead and not all can be told any more; ENOTTY or EINVAL on a kernel
    /// without it.
    pub fn info(&self) -> io::Result<Info> {
        let wanted = INFO_PID | INFO_CREDS | INFO_CGROUPID;
        let mut raw = RawInfo {
            mask: wanted,
            ..RawInfo::default()
        };
        // SAFETY: the request's number carries the size of the struct, and the kernel writes no more.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut raw) })?;
        if raw.mask & wanted != wanted {
            return Err(Errno::ESRCH.into());
        }
        Ok(Info {
            cgroup_id: raw.cgroup_id,
            pid: raw.tgid,
            uid: raw.euid,
            gid: raw.egid,
        })
    }

    /// The process's pid in the caller's pid namespace, by the descriptor's fdinfo; `None` if it is
    /// gone or not seen from there.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/self/fdinfo`.
    pub fn pid(&self) -> io::Result<Option<u32>> {
        Ok(self.pids()?.first().copied())
    }

    /// The process's pids from the caller's pid namespace inward to its own (`NSpid` of its fdinfo);
    /// empty if it is gone or not seen from there.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/self/fdinfo`.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let field = |name| text.lines().find_map(|line: &str| line.strip_prefix(name));
        let listed = field("NSpid:")
            .or_else(|| field("Pid:"))
            .unwrap_or_default();
        let pids: Vec<u32> = listed
            .split_ascii_whitespace()
            .map_while(|pid| pid.parse().ok())
            .take_while(|pid| *pid > 0)
            .collect();
        Ok(pids)
    }

    /// Opens a namespace of the process (PIDFD_GET_*_NAMESPACE).
    ///
    /// # Errors
    ///
    /// ESRCH if the process is gone, EPERM without the right to trace it, ENOTTY or EINVAL on a
    /// kernel without it.
    pub fn namespace(&self, kind: Kind) -> io::Result<Namespace> {
        // SAFETY: a number as argument; the kernel touches no memory of ours.
        let number = Errno::result(unsafe {
            libc::ioctl(self.0.as_raw_fd(), kind.pidfd_request(), 0_usize)
        })?;
        // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
        Ok(Namespace::from(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Whether the process lives: a zombie does not.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn alive(&self) -> io::Result<bool> {
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut watched, PollTimeout::ZERO) {
                Ok(ready) => return Ok(ready == 0),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a signal to the process (pidfd_send_signal(2)).
    ///
    /// # Errors
    ///
    /// ESRCH if it is gone, EPERM without the right.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: numbers, and a null pointer where the kernel then makes the details itself.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        })?;
        Ok(())
    }

    /// Another descriptor for the same process.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl From<OwnedFd> for Pidfd {
    /// From a descriptor that the kernel gave as a pidfd.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.0
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_told_by_its_pidfd() {
        let ours = Pidfd::open(std::process::id()).unwrap();
        assert_eq!(ours.pid().unwrap(), Some(std::process::id()));
        let info = ours.info().unwrap();
        assert_eq!(info.pid, std::process::id());
        assert_eq!(info.uid, nix::unistd::geteuid().as_raw());
        assert!(info.cgroup_id > 0);
        assert!(ours.alive().unwrap());
    }

    #[test]
    fn a_dead_process_is_dead() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        assert!(pidfd.alive().unwrap());
        pidfd.send_signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(!pidfd.alive().unwrap());
        assert_eq!(pidfd.pid().unwrap(), None);
        assert_eq!(pidfd.info().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        let gone = pidfd.namespace(Kind::Pid).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        let gone = pidfd.send_signal(0).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        assert!(Pidfd::open(u32::MAX).is_err());
    }
}
