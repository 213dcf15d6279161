//! Landlock: what a process gives up by itself, for itself and for all that it starts. See
//! landlock(7).
//!
//! It restricts the process that asks for it and its descendants, and nobody else. Rules only grant:
//! what was granted for a directory holds for all beneath it. So a directory is taken away by granting
//! everything beside it.

#![expect(unsafe_code, reason = "nix has no Landlock calls, and pre_exec")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;

/// The oldest version with which a file can be kept from being truncated (Linux 6.2).
pub const TRUNCATE: i32 = 3;
/// The oldest version with which signals and abstract sockets can be kept within (Linux 6.12).
pub const SCOPES: i32 = 6;

// Of linux/landlock.h, which libc does not carry.
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const WRITE_FILE: u64 = 1 << 1;
const TRUNCATE_FILE: u64 = 1 << 14;
/// REMOVE_DIR, REMOVE_FILE, MAKE_* and REFER: bits 4 to 13.
const CHANGE_DIRECTORY: u64 = 0x3FF0;
/// All that changes what a directory holds.
const CHANGE: u64 = WRITE_FILE | CHANGE_DIRECTORY | TRUNCATE_FILE;
/// ABSTRACT_UNIX_SOCKET and SIGNAL.
const BOTH_SCOPES: u64 = 3;

/// `struct landlock_ruleset_attr`. An older kernel knows less of it, and takes zeros for the rest.
#[repr(C)]
struct RulesetAttr {
    handled_fs: u64,
    handled_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The kernel's version of Landlock.
///
/// # Errors
///
/// ENOSYS on a kernel without it, or under a seccomp filter that does not know it; EOPNOTSUPP where it
/// was switched off at boot.
pub fn version() -> io::Result<i32> {
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the kernel reads no memory.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            none,
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    Ok(Errno::result(answer)? as i32)
}

/// Rules in the kernel, not yet in force.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Rules for a process that may read all below `directory`, as its permissions say, and change
    /// nothing of it; and change everything else, as before, but for making, renaming and removing
    /// names directly in the directories that lead there (`/` and `/run` for `/run/secrets`).
    ///
    /// Whatever the rules, who is under them cannot trace, or read the memory of, anyone who is not.
    /// From version 6 on, nor send a signal or connect to an abstract socket there. Modes, owners and
    /// times are not covered.
    ///
    /// # Errors
    ///
    /// Those of [`version`], ENOSYS for one before [`TRUNCATE`], and those of listing the directories.
    pub fn read_only(directory: &Path) -> io::Result<Self> {
        let version = version()?;
        if version < TRUNCATE {
            return Err(Errno::ENOSYS.into());
        }
        let directory = directory.canonicalize()?;
        let kept = fs::metadata(&directory)?;
        let rules = Self::new(version)?;
        let mut above = PathBuf::from("/");
        for step in directory.components().skip(1) {
            let step = step.as_os_str();
            for entry in fs::read_dir(&above)? {
                let name = entry?.file_name();
                // One that went away meanwhile needs no rule.
                if name != step
                    && let Ok(beside) = open(&above.join(name))
                {
                    let found = beside.metadata()?;
                    // The same directory may be mounted twice; the rule would hold for both.
                    if (found.dev(), found.ino()) != (kept.dev(), kept.ino()) {
                        let of_files = WRITE_FILE | TRUNCATE_FILE;
                        rules.allow(&beside, if found.is_dir() { CHANGE } else { of_files })?;
                    }
                }
            }
            above.push(step);
        }
        Ok(rules)
    }

    fn new(version: i32) -> io::Result<Self> {
        let attr = RulesetAttr {
            handled_fs: CHANGE,
            handled_net: 0,
            scoped: if version < SCOPES { 0 } else { BOTH_SCOPES },
        };
        // SAFETY: the kernel reads that many bytes of the struct.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attr,
                size_of::<RulesetAttr>(),
                0,
            )
        };
        let number = Errno::result(answer)? as i32;
        // SAFETY: the kernel has just made this descriptor for us, with close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    fn allow(&self, file: &File, allowed: u64) -> io::Result<()> {
        let rule = PathBeneath {
            allowed,
            parent: file.as_raw_fd(),
        };
        // SAFETY: the kernel reads the struct of this kind of rule; both descriptors are open.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        })?;
        Ok(())
    }

    /// Puts the rules in force, for this thread and all that it starts. It cannot be undone.
    ///
    /// # Errors
    ///
    /// EPERM without no_new_privs (or CAP_SYS_ADMIN); E2BIG under sixteen sets of rules already.
    pub fn enforce(&self) -> io::Result<()> {
        // SAFETY: plain numbers; no memory is passed.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0)
        })?;
        Ok(())
    }

    /// Puts them in force in the process of a command, before it executes its program.
    pub fn confine(self, command: &mut Command) {
        // SAFETY: between fork and exec, the closure makes one system call and allocates nothing. std
        // has no safe way to run code there.
        unsafe {
            command.pre_exec(move || self.enforce());
        }
    }
}

/// A handle on what stands at a path, a symlink itself included, which needs no right to read it.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;
    use nix::sys::prctl::set_no_new_privs;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mayfly-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("kept/inner")).unwrap();
            fs::create_dir_all(path.join("beside")).unwrap();
            fs::write(path.join("kept/inner/file"), "value").unwrap();
            fs::write(path.join("file"), "").unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Needs a kernel that has it, as CI's has: version 6 or later.
    #[test]
    fn what_is_below_can_be_read_and_not_changed() {
        let dir = Dir::new("landlock");
        let kept = dir.0.join("kept");
        let file = kept.join("inner/file");
        let denied = |result: io::Result<()>| {
            let refused = result.unwrap_err().raw_os_error();
            [Some(libc::EACCES), Some(libc::EXDEV)].contains(&refused)
        };
        let held = in_child(|| {
            set_no_new_privs().unwrap();
            Ruleset::read_only(&kept).unwrap().enforce().unwrap();
            let append = OpenOptions::new().append(true).open(&file);
            [
                denied(fs::write(&file, "other")),
                denied(append.map(drop)),
                denied(OpenOptions::new().write(true).open(&file).map(drop)),
                denied(nix::unistd::truncate(&file, 0).map_err(io::Error::from)),
                denied(fs::remove_file(&file)),
                denied(fs::rename(&file, dir.0.join("beside/file"))),
                denied(fs::rename(&file, kept.join("inner/other"))),
                denied(fs::hard_link(&file, dir.0.join("beside/link"))),
                denied(fs::create_dir(kept.join("new"))),
                denied(fs::write(kept.join("new"), "")),
                denied(std::os::unix::fs::symlink("/", kept.join("new"))),
                denied(fs::rename(&kept, dir.0.join("beside/kept"))),
                // Directly in a directory that leads there.
                denied(fs::write(dir.0.join("new"), "")),
                fs::read(&file).unwrap() == b"value",
                fs::read_dir(&kept).unwrap().count() == 1,
                fs::write(dir.0.join("file"), "x").is_ok(),
                fs::write(dir.0.join("beside/new"), "x").is_ok(),
                fs::rename(dir.0.join("beside/new"), dir.0.join("beside/newer")).is_ok(),
            ]
            .iter()
            .all(|as_expected| *as_expected)
        });
        assert!(held);
    }

    #[test]
    fn who_stands_outside_is_out_of_reach() {
        let ours = std::process::id();
        let held = in_child(|| {
            let before = File::open(format!("/proc/{ours}/mem")).is_ok();
            set_no_new_privs().unwrap();
            Ruleset::read_only(Path::new("/tmp"))
                .unwrap()
                .enforce()
                .unwrap();
            let memory = File::open(format!("/proc/{ours}/mem"));
            let signal = crate::process::send_signal(ours as i32, 0);
            let refused = |error: io::Error| error.raw_os_error();
            before
                && refused(memory.unwrap_err()) == Some(libc::EACCES)
                && refused(signal.unwrap_err()) == Some(libc::EPERM)
        });
        assert!(held);
        assert!(version().unwrap() >= SCOPES, "this test needs Linux 6.12");
    }

    #[test]
    fn it_needs_no_new_privs_and_a_directory() {
        assert!(Ruleset::read_only(Path::new("/none")).is_err());
        let refused = in_child(|| {
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
            let rules = Ruleset::read_only(Path::new("/tmp")).unwrap();
            rules.enforce().unwrap_err().raw_os_error() == Some(libc::EPERM)
        });
        assert!(refused);
    }
}
