//! One process's directory in `/proc`, held open: what is read through it is that process's or
//! nothing, even when its pid is used again.

#![expect(unsafe_code, reason = "neither std nor nix has statx(2)")]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstatat};

use crate::ns::{Kind, Namespace};

/// An open `/proc/PID`.
#[derive(Debug)]
pub struct ProcDir(OwnedFd);

impl ProcDir {
    /// Opens the directory of the process that has this pid now. Only a pidfd opened *before*, and
    /// found alive after, tells that it is the same process's.
    ///
    /// # Errors
    ///
    /// ENOENT if there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        let directory = open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?;
        Ok(Self(directory))
    }

    /// Reads a file of it, of at most `most` bytes.
    ///
    /// # Errors
    ///
    /// ESRCH if the process is gone; [`io::ErrorKind::FileTooLarge`] for more than `most` bytes.
    pub fn read(&self, name: &str, most: usize) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.0, name, flags, Mode::empty()).map_err(gone)?;
        read_limited(File::from(file), most)
    }

    /// Opens a namespace of it, through `ns/`.
    ///
    /// # Errors
    ///
    /// ESRCH if the process is gone, EACCES without the right to trace it.
    pub fn namespace(&self, kind: Kind) -> io::Result<Namespace> {
        let name = format!("ns/{}", kind.name());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let opened = openat(&self.0, name.as_str(), flags, Mode::empty()).map_err(gone)?;
        Ok(Namespace::from(opened))
    }
}

impl ProcDir {
    /// Device and inode of a namespace of it, without holding it: tells it only from one that is
    /// held, or never gone.
    ///
    /// # Errors
    ///
    /// ESRCH if the process is gone, EACCES without the right to trace it.
    pub fn namespace_inode(&self, kind: Kind) -> io::Result<(u64, u64)> {
        let name = format!("ns/{}", kind.name());
        let found = fstatat(&self.0, name.as_str(), AtFlags::empty()).map_err(gone)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// Where the process's root directory is.
    ///
    /// # Errors
    ///
    /// ESRCH if the process is gone, EACCES without the right to trace it.
    pub fn root(&self) -> io::Result<Place> {
        match place(self.0.as_fd(), c"root") {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(Errno::ESRCH.into()),
            other => other,
        }
    }
}

/// The directory lives on, but what it stands for has gone: procfs then finds no names in it.
fn gone(error: Errno) -> Errno {
    match error {
        Errno::ENOENT => Errno::ESRCH,
        other => other,
    }
}

/// Reads a file to its end, but no more than `most` bytes.
///
/// # Errors
///
/// [`io::ErrorKind::FileTooLarge`] for more; else those of read(2).
pub fn read_limited(file: File, most: usize) -> io::Result<Vec<u8>> {
    // One page is what procfs gives at a time.
    let mut content = Vec::with_capacity(most.min(4096));
    let read = file.take(most as u64 + 1).read_to_end(&mut content)?;
    if read > most {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {most} bytes"),
        ));
    }
    Ok(content)
}

/// Where a descriptor's file is, as this process sees it.
///
/// # Errors
///
/// Those of readlink(2) on `/proc/self/fd`.
pub fn path_of(descriptor: impl AsFd) -> io::Result<std::ffi::OsString> {
    let link = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
    Ok(readlinkat(nix::fcntl::AT_FDCWD, link.as_str())?)
}

/// Where a process's root directory is: chroot(2) changes it, and with it what `mountinfo` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

impl Place {
    /// The id of the mount that it is on, as in `mountinfo`.
    #[must_use]
    pub fn mount(&self) -> u64 {
        self.mount
    }
}

/// statx(2), with the mount's id (Linux 5.8), which nix lacks. The directory may be on a filesystem of
/// its owner's making (FUSE), which must not be asked: it could take for ever to answer.
fn place(directory: BorrowedFd<'_>, path: &CStr) -> io::Result<Place> {
    let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: a struct of numbers, all of which may be zero.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and the kernel writes one `struct statx`.
    Errno::result(unsafe {
        libc::statx(
            directory.as_raw_fd(),
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            wanted,
            &raw mut found,
        )
    })?;
    if found.stx_mask & wanted != wanted {
        return Err(Errno::ENOSYS.into());
    }
    Ok(Place {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: found.stx_mnt_id,
    })
}

/// Where the root of a mount namespace is: what a process in it has as its root directory until it
/// calls chroot(2). Looks from a thread of its own, which enters the namespace and ends.
///
/// # Errors
///
/// Those of setns(2) and statx(2).
pub fn place_of_root(mounts: &Namespace) -> io::Result<Place> {
    let look = || {
        // A mount namespace can only be entered by a thread that shares its root with no other.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
        place(nix::fcntl::AT_FDCWD, c"/")
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, look)?;
        thread
            .join()
            .map_err(|_| io::Error::other("the looking thread failed"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn files_are_read_within_limits() {
        let ours = ProcDir::open(std::process::id()).unwrap();
        let status = ours.read("status", 64 * 1024).unwrap();
        assert!(status.starts_with(b"Name:"));
        let refused = ours.read("status", status.len() - 200).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        let namespace = ours.namespace(Kind::Pid).unwrap();
        assert_eq!(
            namespace.inode().unwrap(),
            ours.namespace_inode(Kind::Pid).unwrap()
        );
    }

    #[test]
    fn a_directory_of_a_dead_process_has_nothing() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let directory = ProcDir::open(child.id()).unwrap();
        assert!(directory.read("stat", 4096).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = directory.read("stat", 4096).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        let gone = directory.namespace(Kind::User).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }
    #[test]
    fn a_changed_root_is_seen() {
        let ours = ProcDir::open(std::process::id()).unwrap();
        let mounts = ours.namespace(Kind::Mount).unwrap();
        assert_eq!(ours.root().unwrap(), place_of_root(&mounts).unwrap());
        let mut child = Command::new("/usr/sbin/chroot")
            .args(["/", "/bin/cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let same = ProcDir::open(child.id()).unwrap().root().unwrap();
        assert_eq!(same, ours.root().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        // A root that is a directory of the same filesystem, with what `cat` needs bound to it.
        let mut child = Command::new("/usr/bin/unshare")
            .args([
                "-m",
                "sh",
                "-c",
                "mount -t tmpfs none /mnt && mkdir /mnt/r && \
                 mount --rbind / /mnt/r && exec chroot /mnt/r /bin/sh -c 'echo; exec cat'",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let theirs = ProcDir::open(child.id()).unwrap();
        let mounts = theirs.namespace(Kind::Mount).unwrap();
        assert_ne!(theirs.root().unwrap(), place_of_root(&mounts).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
