//! A cgroup of its own for each container: on v2, and on v1's pids and memory where those are in use
//! (hybrid machines have both).

use crate::failure::Failure;
use mayfly_kernel::mountinfo;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory at the root of each hierarchy that all our containers are in.
pub const PARENT: &str = "mayfly";

/// Limits of one container.
pub struct Limits {
    /// In bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The directories of one container. Removed when dropped.
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes them.
    pub fn make(name: &str, limits: &Limits) -> Result<Self, Failure> {
        let mounts = fs::read("/proc/self/mountinfo")
            .map_err(Failure::doing("cannot read /proc/self/mountinfo"))?;
        let mut cgroup = Self { dirs: Vec::new() };
        for root in hierarchies(&mounts) {
            let parent = root.join(PARENT);
            let dir = parent.join(name);
            let doing = || Failure::doing(format!("cannot make the cgroup {}", dir.display()));
            fs::create_dir_all(&parent).map_err(doing())?;
            delegate(&root);
            delegate(&parent);
            // One that a killed `dev run` left behind is empty, and gives way.
            if dir.exists() && fs::remove_dir(&dir).is_err() {
                return Err(Failure::Refused(mayfly_wire::Refusal::because(
                    mayfly_wire::Code::Conflict,
                    format!(
                        "a container named {name} runs already: end it, or give another --name"
                    ),
                )));
            }
            fs::create_dir_all(&dir).map_err(doing())?;
            cgroup.dirs.push(dir.clone());
            limit(&dir, limits)?;
        }
        if cgroup.dirs.is_empty() {
            return Err(Failure::Failed(
                "no cgroup hierarchy is mounted on this host".into(),
            ));
        }
        Ok(cgroup)
    }

    /// The files that the container's first process writes itself into.
    pub fn procs(&self) -> Vec<PathBuf> {
        self.dirs
            .iter()
            .map(|dir| dir.join("cgroup.procs"))
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // The kernel lets go of dead processes a little after their parent has heard of them.
            for _ in 0..200 {
                if fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            // The last one out takes the common parent along; it is not empty for any other.
            let _ = dir.parent().map(fs::remove_dir);
        }
    }
}

/// On v2, a controller serves a directory when its parent passes it on. Where that cannot be (we are
/// in a container ourselves) there is no such limit; posture then says so.
fn delegate(dir: &Path) {
    for controller in ["+memory", "+pids"] {
        let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
    }
}

/// Sets what limits the directory has.
fn limit(dir: &Path, limits: &Limits) -> Result<(), Failure> {
    let all = [
        ("memory.max", limits.memory),
        ("memory.limit_in_bytes", limits.memory),
        ("pids.max", limits.pids),
    ];
    for (file, value) in all {
        let path = dir.join(file);
        if path.exists() {
            fs::write(&path, value.to_string())
                .map_err(Failure::doing(format!("cannot write {}", path.display())))?;
        }
    }
    Ok(())
}

/// Mount points of v2 and of v1's pids and memory, from mountinfo.
fn hierarchies(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mountinfo::mounts(mountinfo).flatten() {
        let mut options = mount.filesystem_options.split(|byte| *byte == b',');
        let wanted = match mount.filesystem {
            b"cgroup2" => true,
            b"cgroup" => options.any(|option| option == b"pids" || option == b"memory"),
            _ => false,
        };
        let point = Path::new(OsStr::from_bytes(&mount.point)).to_owned();
        if wanted && !found.contains(&point) {
            found.push(point);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_on_hybrid_and_on_pure_v2() {
        let hybrid = b"\
30 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
33 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let names =
            ["memory", "pids", "unified"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(hierarchies(hybrid), names);
        let pure = b"31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(hierarchies(pure), [Path::new("/sys/fs/cgroup")]);
        assert!(hierarchies(b"garbage\n1 2 - cgroup2").is_empty());
    }
}
