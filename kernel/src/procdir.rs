//! One process's directory in `/proc`, held open: what is read through it is that process's or
//! nothing, even when its pid is used again.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;

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
        assert_eq!(namespace.inode().unwrap().1, {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata("/proc/self/ns/pid").unwrap().ino()
        });
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
}
