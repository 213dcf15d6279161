//! What a container made of bare namespaces needs, and nix lacks.

#![expect(unsafe_code, reason = "nix has no mount_setattr(2)")]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// linux/mount.h and linux/fcntl.h; libc does not carry all of them for every target.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Makes the mount at `path`, and every mount under it, read-only, without set-uid programs and
/// without devices. A remount with mount(2) would reach the topmost one only.
///
/// # Errors
///
/// ENOSYS before Linux 5.12; EINVAL where `path` is no mount point; EPERM without CAP_SYS_ADMIN. See
/// mount_setattr(2).
pub fn make_read_only(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the kernel reads a string that ends in NUL and a struct of the size that is told; both
    // outlive the call, and neither is written. There is no safe way: nix and std lack the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use std::fs;

    #[test]
    fn every_mount_below_becomes_read_only() {
        let held = in_child(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let top = Path::new("/tmp");
            mount(Some("t"), top, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let below = top.join("below");
            fs::create_dir(&below).unwrap();
            mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::write(below.join("before"), "x").unwrap();
            make_read_only(top).unwrap();
            [top, &below].iter().all(|dir| {
                let error = fs::write(dir.join("after"), "x").unwrap_err();
                error.raw_os_error() == Some(libc::EROFS)
            })
        });
        assert!(held, "these tests need root");
    }

    #[test]
    fn what_is_no_mount_point_is_refused() {
        let error = make_read_only(Path::new("/proc/self/status")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
