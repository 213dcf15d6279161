//! Cgroups by id: the inode number of the cgroup's directory, which the kernel never uses again
//! within a boot.

#![expect(unsafe_code, reason = "nix has no open_by_handle_at(2)")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

/// FILEID_KERNFS (linux/exportfs.h): the handle is the 64-bit id.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` with room for such an id.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// The id of the cgroup that this directory is.
///
/// # Errors
///
/// Those of fstat(2).
pub fn id(directory: impl AsFd) -> io::Result<u64> {
    Ok(fstat(directory)?.st_ino)
}

/// Opens a cgroup of the hierarchy that `mount` is a directory of. Needs CAP_DAC_READ_SEARCH in the
/// first user namespace.
///
/// # Errors
///
/// ESTALE if the cgroup is gone.
pub fn open_by_id(mount: impl AsFd, id: u64) -> io::Result<OwnedFd> {
    let mut handle = Handle {
        bytes: size_of::<u64>() as libc::c_uint,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle has the layout of `struct file_handle`, and says how long it is.
    let number = Errno::result(unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            (&raw mut handle).cast::<libc::file_handle>(),
            flags,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Opens the cgroup that this one is in; of the hierarchy's root, whatever the root is mounted in.
///
/// # Errors
///
/// ENOENT if the cgroup is gone.
pub fn parent(directory: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(directory, "..", flags, Mode::empty())?)
}

/// Opens a file of a cgroup for reading.
///
/// # Errors
///
/// ENOENT if its controller is not enabled there, or the cgroup is gone.
pub fn open_in(directory: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy that is mounted here, and a cgroup made in it for the test.
    fn made() -> (File, std::path::PathBuf) {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let mount = crate::mountinfo::mounts(&text)
            .map(Result::unwrap)
            .find(|mount| mount.filesystem == b"cgroup2")
            .expect("a cgroup2 hierarchy");
        let root = std::path::PathBuf::from(String::from_utf8(mount.point.into_owned()).unwrap());
        let own = root.join(format!("mayfly-kernel-{}", std::process::id()));
        (File::open(root).unwrap(), own)
    }

    #[test]
    fn a_cgroup_is_found_by_its_id_until_it_is_gone() {
        let (root, own) = made();
        let inner = own.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        let wanted = id(File::open(&inner).unwrap()).unwrap();
        let found = open_by_id(&root, wanted).unwrap();
        assert_eq!(id(&found).unwrap(), wanted);
        let outer = parent(&found).unwrap();
        assert_eq!(id(&outer).unwrap(), id(File::open(&own).unwrap()).unwrap());
        assert_eq!(id(parent(&outer).unwrap()).unwrap(), 1);
        assert!(open_in(&found, "cgroup.events").is_ok());
        std::fs::remove_dir(&inner).unwrap();
        std::fs::create_dir(&inner).unwrap();
        let gone = open_by_id(&root, wanted).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESTALE));
        std::fs::remove_dir(&inner).unwrap();
        std::fs::remove_dir(&own).unwrap();
    }
}
