//! Namespaces, and what tells one from another.
//!
//! An inode number tells a namespace only while something holds the namespace open: the kernel uses
//! it again at once. NS_GET_ID (Linux 6.18) is never used again within a boot. See ioctl_nsfs(2).

#![expect(unsafe_code, reason = "nix has no ioctls of nsfs")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Which cgroup is shown as the root.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mount,
    /// Network.
    Network,
    /// Process ids.
    Pid,
    /// User and group ids, capabilities.
    User,
    /// Host name.
    Uts,
}

impl Kind {
    /// Every kind that says something about a container.
    pub const ALL: [Self; 7] = [
        Self::Cgroup,
        Self::Ipc,
        Self::Mount,
        Self::Network,
        Self::Pid,
        Self::User,
        Self::Uts,
    ];

    /// Its name in `/proc/PID/ns`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }

    /// PIDFD_GET_*_NAMESPACE (linux/pidfd.h).
    pub(crate) fn pidfd_request(self) -> libc::Ioctl {
        match self {
            Self::Cgroup => 0xFF01,
            Self::Ipc => 0xFF02,
            Self::Mount => 0xFF03,
            Self::Network => 0xFF04,
            Self::Pid => 0xFF05,
            Self::User => 0xFF09,
            Self::Uts => 0xFF0A,
        }
    }
}

/// The inode that the kernel gives to the first namespace of a kind (linux/nsfs.h). For mount and
/// network namespaces only since Linux 6.17, but no older kernel gives these numbers to another.
#[must_use]
pub const fn first_inode(kind: Kind) -> u64 {
    match kind {
        Kind::Ipc => 0xEFFF_FFFF,
        Kind::Uts => 0xEFFF_FFFE,
        Kind::User => 0xEFFF_FFFD,
        Kind::Pid => 0xEFFF_FFFC,
        Kind::Cgroup => 0xEFFF_FFFB,
        Kind::Network => 0xEFFF_FFF9,
        Kind::Mount => 0xEFFF_FFF8,
    }
}

/// linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xB701;
const NS_GET_PARENT: libc::Ioctl = 0xB702;
const NS_GET_TGID_FROM_PIDNS: libc::Ioctl = 0x8004_B707;
const NS_GET_ID: libc::Ioctl = 0x8008_B70D;

/// A namespace, held open.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// Its id (NS_GET_ID), unique within a boot.
    ///
    /// # Errors
    ///
    /// ENOTTY on a kernel without it.
    pub fn id(&self) -> io::Result<u64> {
        let mut id = 0_u64;
        // SAFETY: the kernel writes one u64.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), NS_GET_ID, &raw mut id) })?;
        Ok(id)
    }

    /// Its device and inode number. Two namespaces that are both held open differ in it.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn inode(&self) -> io::Result<(u64, u64)> {
        let found = fstat(&self.0)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// The namespace that this pid or user namespace was made in; `None` where that is not seen from
    /// the caller's own namespace.
    ///
    /// # Errors
    ///
    /// EINVAL for other kinds of namespace.
    pub fn parent(&self) -> io::Result<Option<Self>> {
        match self.open(NS_GET_PARENT) {
            Ok(parent) => Ok(Some(parent)),
            Err(Errno::EPERM) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The user namespace that this one belongs to.
    ///
    /// # Errors
    ///
    /// EPERM where it is not seen from the caller's own user namespace.
    pub fn owner(&self) -> io::Result<Self> {
        Ok(self.open(NS_GET_USERNS)?)
    }

    /// The pid in the caller's pid namespace of the process that has `pid` in this pid namespace
    /// (NS_GET_TGID_FROM_PIDNS, Linux 6.11). A pid: it may be another process's by the time that it
    /// is used.
    ///
    /// # Errors
    ///
    /// ESRCH if there is none, ENOTTY on a kernel without it.
    pub fn pid_from(&self, pid: u32) -> io::Result<u32> {
        // SAFETY: a number as argument; the kernel touches no memory of ours.
        let found = Errno::result(unsafe {
            libc::ioctl(self.0.as_raw_fd(), NS_GET_TGID_FROM_PIDNS, pid as usize)
        })?;
        // 0 is a process that the caller's namespace does not see.
        u32::try_from(found)
            .ok()
            .filter(|pid| *pid > 0)
            .ok_or_else(|| Errno::ESRCH.into())
    }

    fn open(&self, request: libc::Ioctl) -> Result<Self, Errno> {
        // SAFETY: no argument; the kernel touches no memory of ours.
        let number = Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request, 0_usize) })?;
        // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }
}

impl From<OwnedFd> for Namespace {
    /// From a descriptor of a namespace, opened from `/proc/PID/ns`.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pidfd::Pidfd;
    use std::fs::File;

    fn ours(kind: Kind) -> Namespace {
        let file = File::open(format!("/proc/self/ns/{}", kind.name())).unwrap();
        Namespace::from(OwnedFd::from(file))
    }

    #[test]
    fn one_namespace_is_the_same_by_either_way() {
        let pidfd = Pidfd::open(std::process::id()).unwrap();
        for kind in Kind::ALL {
            let by_pidfd = pidfd.namespace(kind).unwrap();
            assert_eq!(by_pidfd.id().unwrap(), ours(kind).id().unwrap(), "{kind:?}");
            assert_eq!(by_pidfd.inode().unwrap(), ours(kind).inode().unwrap());
        }
    }

    #[test]
    fn pids_are_told_from_inside() {
        let found = ours(Kind::Pid).pid_from(std::process::id()).unwrap();
        assert_eq!(found, std::process::id());
        let none = ours(Kind::Pid).pid_from(i32::MAX as u32).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn owners_and_parents() {
        let user = ours(Kind::User);
        assert_eq!(
            ours(Kind::Pid).owner().unwrap().inode().unwrap(),
            user.inode().unwrap()
        );
        assert!(ours(Kind::Pid).parent().unwrap().is_none());
        assert!(ours(Kind::Uts).parent().is_err());
    }
}
