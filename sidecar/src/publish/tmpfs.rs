//! Is this a place where secrets can be published? Facts first, judgement apart.

use super::dir::Dir;
use mayfly_wire::PublishFault;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::{fs, io};

/// What the kernel says about a directory's filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether statfs(2) says tmpfs.
    pub is_tmpfs: bool,
    /// The type's name in mountinfo.
    pub kind: String,
    /// Options of the mount: `rw,nosuid,…`.
    pub mount: Vec<String>,
    /// Options of the filesystem: `size=1024k,noswap,…`.
    pub filesystem: Vec<String>,
    /// Whether `/proc/swaps` lists any; `None` if it could not be read.
    pub swap: Option<bool>,
}

/// Asks the kernel.
///
/// # Errors
/// If `/proc/self` cannot be read, or does not show the directory's mount.
pub fn gather(dir: &Dir) -> io::Result<Facts> {
    let magic = fstatfs(dir)?.filesystem_type();
    let fdinfo = format!("/proc/self/fdinfo/{}", dir.as_fd().as_raw_fd());
    let fdinfo = fs::read_to_string(fdinfo)?;
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = id.and_then(|id| {
        let mut lines = mounts.lines();
        lines.find(|line| line.split(' ').next() == Some(id.trim()))
    });
    let (kind, mount, filesystem) = line.and_then(options).ok_or_else(|| {
        io::Error::other("/proc/self/mountinfo does not show the directory's mount")
    })?;
    let swaps = fs::read_to_string("/proc/swaps").ok();
    Ok(Facts {
        is_tmpfs: magic == TMPFS_MAGIC,
        kind,
        mount,
        filesystem,
        // The first line is the table's head.
        swap: swaps.map(|swaps| swaps.lines().skip(1).any(|line| !line.trim().is_empty())),
    })
}

/// Type, mount options and filesystem options of one line of mountinfo (proc_pid_mountinfo(5)).
fn options(line: &str) -> Option<(String, Vec<String>, Vec<String>)> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    Some((
        filesystem.next()?.to_owned(),
        list(mount.split(' ').nth(5)?),
        list(filesystem.nth(1)?),
    ))
}

/// Why a directory will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its content would reach a disk, or a filesystem that keeps what was deleted.
    NotTmpfs,
    /// Its pages can be written to swap.
    Swap,
    /// Mounted read-only.
    ReadOnly,
}

impl Unfit {
    /// In a word that does not change.
    #[must_use]
    pub fn fault(self) -> PublishFault {
        match self {
            Self::NotTmpfs => PublishFault::NotTmpfs,
            Self::Swap => PublishFault::Swap,
            Self::ReadOnly => PublishFault::ReadOnly,
        }
    }
}

/// Judges the facts. What is not known counts as bad.
///
/// # Errors
/// [`Unfit`].
///
/// Otherwise the warnings, each a sentence.
pub fn judge(facts: &Facts, allow_swap: bool) -> Result<Vec<&'static str>, Unfit> {
    let mut warnings = Vec::new();
    if !facts.is_tmpfs {
        return Err(Unfit::NotTmpfs);
    }
    let has = |list: &[String], wanted: &str| list.iter().any(|option| option == wanted);
    if has(&facts.mount, "ro") || has(&facts.filesystem, "ro") {
        return Err(Unfit::ReadOnly);
    }
    if !has(&facts.filesystem, "noswap") && facts.swap != Some(false) {
        if !allow_swap {
            return Err(Unfit::Swap);
        }
        warnings.push(
            "the tmpfs can be swapped out, and --allow-swap accepts it: secrets can reach the disk",
        );
    }
    for (option, warning) in [
        ("nosuid", "the tmpfs is mounted without nosuid"),
        ("nodev", "the tmpfs is mounted without nodev"),
        ("noexec", "the tmpfs is mounted without noexec"),
    ] {
        if !has(&facts.mount, option) {
            warnings.push(warning);
        }
    }
    Ok(warnings)
}

/// What was found, and what to write instead.
#[must_use]
pub fn advice(unfit: Unfit, facts: &Facts, path: &Path, uid: u32, gid: u32) -> String {
    let path = path.display();
    let swap = match facts.swap {
        Some(true) => "lists swap in use",
        Some(false) => "lists no swap",
        None => "cannot be read",
    };
    let found = match unfit {
        Unfit::NotTmpfs => format!(
            "{path} is on {}, and secrets are published only on a tmpfs",
            facts.kind
        ),
        Unfit::Swap => format!(
            "{path} is a tmpfs without `noswap`, and /proc/swaps {swap}: secrets could reach the disk"
        ),
        Unfit::ReadOnly => format!("{path} is mounted read-only here"),
    };
    format!(
        "{found} (mount options {}; filesystem options {})

In a compose file:

    services:
      app:
        volumes: [\"secrets:{path}:ro\"]
      sidecar:
        volumes: [\"secrets:{path}\"]
    volumes:
      secrets:
        driver_opts:
          type: tmpfs
          device: tmpfs
          o: \"size=1m,uid={uid},gid={gid},mode=0750,noexec,nosuid,nodev,noswap\"

With docker run, which refuses `noswap` here, so that the host must have no swap in use:

    docker run --tmpfs {path}:size=1m,uid={uid},gid={gid},mode=0750,noexec,nosuid,nodev …

--allow-swap accepts a tmpfs that can be swapped out.
",
        facts.mount.join(","),
        facts.filesystem.join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mount: &str, filesystem: &str, swap: Option<bool>) -> Facts {
        let line = format!("29 28 0:26 / /run/secrets {mount} shared:3 - tmpfs tmpfs {filesystem}");
        let (kind, mount, filesystem) = options(&line).unwrap();
        Facts {
            is_tmpfs: kind == "tmpfs",
            kind,
            mount,
            filesystem,
            swap,
        }
    }
    const GOOD: &str = "rw,nosuid,nodev,noexec,relatime";

    #[test]
    fn swap_needs_noswap_or_leave() {
        for (filesystem, swap, allow, fit) in [
            ("rw,size=1024k,noswap", Some(true), false, true),
            ("rw,size=1024k", Some(false), false, true),
            ("rw,size=1024k", Some(true), false, false),
            ("rw,size=1024k", None, false, false),
            ("rw,size=1024k", Some(true), true, true),
        ] {
            let judged = judge(&facts(GOOD, filesystem, swap), allow);
            assert_eq!(judged.is_ok(), fit, "{filesystem} {swap:?} {allow}");
            assert_eq!(judged.unwrap_or_default().len(), usize::from(allow));
        }
    }

    #[test]
    fn read_only_and_other_filesystems_are_refused() {
        let read_only = facts("ro,nosuid,nodev,noexec", "rw,noswap", Some(false));
        assert_eq!(judge(&read_only, true), Err(Unfit::ReadOnly));
        let mut disk = facts(GOOD, "rw,noswap", Some(false));
        disk.is_tmpfs = false;
        assert_eq!(judge(&disk, true), Err(Unfit::NotTmpfs));
    }

    #[test]
    fn each_missing_flag_is_a_warning() {
        let loose = facts("rw,relatime", "rw,noswap", Some(true));
        assert_eq!(judge(&loose, false).unwrap().len(), 3);
    }

    #[test]
    fn the_advice_can_be_pasted() {
        let text = advice(
            Unfit::NotTmpfs,
            &facts(GOOD, "rw", None),
            Path::new("/run/secrets"),
            1000,
            1001,
        );
        assert!(
            text.contains("o: \"size=1m,uid=1000,gid=1001,mode=0750,noexec,nosuid,nodev,noswap\"")
        );
        assert!(text.contains("--tmpfs /run/secrets:size=1m,uid=1000,gid=1001"));
    }
}
