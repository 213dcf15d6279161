//! Cgroups as a test sees and makes them, without the code under test.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::realm::Realm;

/// The v2 cgroup of a process: its path below the hierarchy's root, and its 64-bit id, which is the
/// inode number of its directory (1 is the root).
///
/// # Errors
/// When the process is gone or its cgroup cannot be read.
pub fn cgroup_of(realm: &Realm, pid: i32) -> Result<(String, u64)> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .with_context(|| format!("reading the cgroup of pid {pid}"))?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.with_context(|| format!("pid {pid} has no v2 cgroup: {lines}"))?;
    let dir = realm.cgroup_v2()?.join(path.trim_start_matches('/'));
    let meta = std::fs::metadata(&dir).with_context(|| format!("looking at {}", dir.display()))?;
    Ok((path.to_string(), meta.ino()))
}

/// A cgroup of one's own: the v2 directory, and beside it those of the v1 pids and memory
/// hierarchies where the realm has them. Its processes are killed and it is removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes one below the hierarchies' roots; `name` may hold slashes, all on the way are made.
    ///
    /// # Errors
    /// When a directory cannot be made: that needs root.
    pub fn new(realm: &Realm, name: &str) -> Result<Self> {
        let mut dirs = vec![realm.cgroup_v2()?.join(name)];
        for controller in ["pids", "memory"] {
            dirs.extend(realm.cgroup_v1(controller)?.map(|root| root.join(name)));
        }
        for dir in &dirs {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(Self { dirs })
    }

    /// The v2 directory.
    pub fn v2(&self) -> &Path {
        &self.dirs[0]
    }

    /// All directories of it, v2 first, then v1.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Its v2 id.
    ///
    /// # Errors
    /// When the directory is gone.
    pub fn id(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.v2())
            .context("looking at a cgroup")?
            .ino())
    }

    /// Moves a process into all of its directories.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, pid: i32) -> Result<()> {
        for dir in &self.dirs {
            std::fs::write(dir.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("moving pid {pid} into {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.v2().join("cgroup.kill"), "1");
        for dir in &self.dirs {
            // The kernel lets go of a cgroup a moment after its last process has died.
            for _ in 0..100 {
                remove_tree(dir);
                if !dir.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            // Those on the way that nobody else uses; the kernel refuses the others.
            for parent in dir.ancestors().skip(1) {
                if std::fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
    }
}

/// Removes a cgroup with those below it: only directories, deepest first.
fn remove_tree(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
