//! Where a throwaway broker lives: a tmpfs of its own, so that nothing of it reaches a disk, and all
//! of it goes with one unmount.

use crate::failure::Failure;
use crate::output::note;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where it is unless another place is named.
pub const DEFAULT: &str = "/run/mayfly-dev";

/// The paths of one throwaway broker.
#[derive(Clone)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// The place at this path. Nothing is made yet.
    pub fn new(root: PathBuf) -> Result<Self, Failure> {
        let root = std::path::absolute(&root)
            .map_err(Failure::doing(format!("{} is no path", root.display())))?;
        Ok(Self { root })
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.root.join("admin.sock")
    }

    /// The directory that is mounted into containers: the workload socket alone.
    pub fn workload_dir(&self) -> PathBuf {
        self.root.join("workload")
    }

    /// The workload socket.
    pub fn workload_socket(&self) -> PathBuf {
        self.workload_dir().join("workload.sock")
    }

    /// The broker's state.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The broker's configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("broker.toml")
    }

    /// The broker's log.
    pub fn log(&self) -> PathBuf {
        self.root.join("broker.log")
    }

    /// A link to the folder that the secrets came from, which no container shall see into.
    pub fn secrets_link(&self) -> PathBuf {
        self.root.join("secrets")
    }

    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Whether a `mayfly dev` is running here.
    pub fn is_taken(&self) -> bool {
        File::open(self.lock()).is_ok_and(|file| file.try_lock().is_err())
    }

    /// Makes it, empty, and takes it.
    pub fn take(&self) -> Result<Taken, Failure> {
        if self.is_taken() {
            return Err(Failure::Refused(mayfly_wire::Refusal::because(
                mayfly_wire::Code::Conflict,
                format!(
                    "a `mayfly dev` runs at {} already; --at names another place",
                    self.root.display()
                ),
            )));
        }
        self.clear_what_was_left()?;
        let doing = |what: &str| Failure::doing(format!("cannot {what} {}", self.root.display()));
        fs::create_dir_all(&self.root).map_err(doing("make"))?;
        if fs::read_dir(&self.root)
            .map_err(doing("read"))?
            .next()
            .is_some()
        {
            return Err(Failure::Usage(format!(
                "{} is not empty: --at needs a directory of its own",
                self.root.display()
            )));
        }
        mount_tmpfs(&self.root, "mode=0700,size=256m")?;
        let lock = File::create(self.lock()).map_err(doing("lock"))?;
        let taken = Taken {
            place: self.clone(),
            lock,
        };
        taken.lock.try_lock().map_err(|error| {
            Failure::Failed(format!("cannot lock {}: {error}", self.root.display()))
        })?;
        Ok(taken)
    }

    /// Unmounts what a `mayfly dev` that was killed left behind.
    fn clear_what_was_left(&self) -> Result<(), Failure> {
        let of = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let is_mount = self
            .root
            .parent()
            .is_some_and(|parent| of(&self.root) != of(parent));
        if is_mount && self.lock().exists() {
            umount2(&self.root, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }
}

/// A place that is ours until this is dropped; then it is gone.
pub struct Taken {
    place: Place,
    lock: File,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = self.lock.unlock();
        let root = self.place.root();
        if let Err(error) = umount2(root, MntFlags::MNT_DETACH) {
            note(&format!(
                "mayfly dev: cannot unmount {}: {error}",
                root.display()
            ));
        }
        // It may have stood there before us, with something above it: then it stays.
        let _ = fs::remove_dir(root);
    }
}

/// Mounts a tmpfs that is never swapped out, where the kernel can promise that.
pub fn mount_tmpfs(at: &Path, options: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let with = |options: &str| mount(Some("mayfly"), at, Some("tmpfs"), flags, Some(options));
    match with(&format!("{options},noswap")) {
        // Before Linux 6.4. The sidecar refuses such a tmpfs itself if swap is in use.
        Err(Errno::EINVAL) => with(options),
        other => other,
    }
    .map_err(|error| Failure::Failed(format!("cannot mount a tmpfs at {}: {error}", at.display())))
}
