//! Makes the volumes where containers bind-mount them from, once: what is there from an earlier start
//! stays as it is, with what is in it.

use super::config::VolumeConfig;
use super::users::Ground;
use crate::config::NodeConfig;
use mayfly_kernel::expiry::Area;
use mayfly_kernel::mountinfo::{MOST_BYTES, mounts};
use mayfly_kernel::procdir::read_limited;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Most files, links and directories in a volume, so that whoever writes into one cannot make the
/// node work for long. A sidecar's largest sets, with all that it keeps for a second, have fewer.
const MOST_INODES: u32 = 16 * 1024;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A system call failed.
    #[error("{path}: {step}: {cause}")]
    Io {
        /// The path that was acted on.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The directory of the volumes is not the node's alone.
    #[error(
        "{path}: expected a directory of this user's that no one else can write to, found {found}"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Something else stands where the volume is to be.
    #[error(
        "{path}: expected {expected}, found {found}; stop the containers that use it and unmount it \
         (umount {path}), or give the volume another name"
    )]
    Another {
        /// Where.
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The kernel cannot keep it out of swap.
    #[error(
        "{path}: this kernel has no `noswap` for tmpfs (Linux 6.4 has), and swap is in use: a secret \
         could be written to disk; turn swap off"
    )]
    Swap {
        /// Where.
        path: PathBuf,
    },
    /// From where the node runs, it does not see who uses a volume.
    #[error("volumes need the host's pid namespace: run the node's container with --pid=host")]
    Blind,
}

fn failed(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |cause| VolumeError::Io { path, step, cause }
}

/// A volume that is there.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) name: String,
    /// Its filesystem, as in mountinfo.
    pub(crate) device: String,
    /// What the node has mounted it on.
    pub(crate) ground: Option<Ground>,
    pub(crate) area: Area,
}

/// Makes all volumes, or finds them.
pub(crate) fn prepare(config: &NodeConfig) -> Result<Vec<Volume>, VolumeError> {
    if config.volume.is_empty() {
        return Ok(Vec::new());
    }
    let directory = &config.volumes_dir;
    make(directory, 0o711)?;
    let found = std::fs::symlink_metadata(directory).map_err(failed(directory, "looking"))?;
    let wrong = |found| {
        Err(VolumeError::Directory {
            path: directory.clone(),
            found,
        })
    };
    if !found.is_dir() {
        return wrong("something that is not a directory");
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return wrong("a directory of another user's");
    }
    if found.mode() & 0o022 != 0 {
        return wrong("a directory that others can write to");
    }
    // As the kernel tells mount points.
    let directory = directory
        .canonicalize()
        .map_err(failed(directory, "looking"))?;
    config
        .volume
        .iter()
        .map(|one| prepare_one(&directory, one))
        .collect()
}

fn make(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed(path, "making the directory"))
}

fn prepare_one(directory: &Path, config: &VolumeConfig) -> Result<Volume, VolumeError> {
    let point = directory.join(&config.name);
    make(&point, 0o700)?;
    if options_at(&point)?.is_none() {
        let mut inside = point.read_dir().map_err(failed(&point, "reading"))?;
        if inside.next().is_some() {
            return Err(VolumeError::Another {
                path: point,
                expected: "an empty directory to mount on".to_owned(),
                found: "files in it".to_owned(),
            });
        }
        mount_at(&point, config)?;
        tracing::info!(volume = config.name, at = %point.display(), "made a volume");
    }
    let area = Area::open(&point).map_err(failed(&point, "opening"))?;
    let found = options_at(&point)?.unwrap_or_default();
    let flags = fstatvfs(&area)
        .map_err(|errno| failed(&point, "looking")(errno.into()))?
        .flags();
    if let Some(found) = differs(&found, flags, config) {
        return Err(VolumeError::Another {
            expected: format!("a tmpfs with {}", text(config, false)),
            path: point,
            found,
        });
    }
    if !has(&found, "noswap") && !no_swap() {
        return Err(VolumeError::Swap { path: point });
    }
    let device = format!("{}:{}", major(area.device()), minor(area.device()));
    let text = own_mounts()?;
    let all: Vec<_> = mounts(&text).flatten().collect();
    let here = all
        .iter()
        .rfind(|mount| *mount.point == *point.as_os_str().as_bytes());
    Ok(Volume {
        name: config.name.clone(),
        device,
        ground: here.and_then(|mount| Ground::of(mount, &all)),
        area,
    })
}

fn mount_at(point: &Path, config: &VolumeConfig) -> Result<(), VolumeError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mount = |noswap| {
        let text = text(config, noswap);
        mount(
            Some("mayfly"),
            point,
            Some("tmpfs"),
            flags,
            Some(text.as_str()),
        )
    };
    let mounted = match mount(true) {
        Err(Errno::EINVAL) if no_swap() => mount(false),
        Err(Errno::EINVAL) => {
            return Err(VolumeError::Swap {
                path: point.to_owned(),
            });
        }
        other => other,
    };
    mounted
        .map_err(|errno| failed(point, "mounting a tmpfs, which takes CAP_SYS_ADMIN")(errno.into()))
}

fn text(config: &VolumeConfig, noswap: bool) -> String {
    let noswap = if noswap { ",noswap" } else { "" };
    format!(
        "size={}k,uid={},gid={},mode={:o},nr_inodes={MOST_INODES}{noswap}",
        config.size.bytes() >> 10,
        config.uid,
        config.gid,
        config.mode.bits()
    )
}

/// Whether no swap is in use. What cannot be read is in use.
fn no_swap() -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps");
    swaps.is_ok_and(|swaps| swaps.lines().skip(1).all(|line| line.trim().is_empty()))
}

/// What is mounted at exactly this place: the filesystem's type, root and options, as one list.
fn options_at(point: &Path) -> Result<Option<String>, VolumeError> {
    let text = own_mounts()?;
    let here = mounts(&text).flatten();
    let here = here.filter(|mount| *mount.point == *point.as_os_str().as_bytes());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(here.last().map(|mount| {
        let (kind, root) = (text(mount.filesystem), text(&mount.root));
        format!("{kind},root={root},{}", text(mount.filesystem_options))
    }))
}

fn own_mounts() -> Result<Vec<u8>, VolumeError> {
    let at = Path::new("/proc/self/mountinfo");
    let text = File::open(at).and_then(|file| read_limited(file, MOST_BYTES));
    text.map_err(failed(at, "reading"))
}

fn has(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

/// How a mount is not as configured; `None` if it is. What the kernel does not show has its default.
fn differs(options: &str, flags: FsFlags, config: &VolumeConfig) -> Option<String> {
    let value = |name: &str| {
        let mut all = options
            .split(',')
            .filter_map(|option| option.split_once('='));
        all.find_map(|(found, value)| (found == name).then_some(value))
    };
    let owner = |name: &str| value(name).unwrap_or("0").to_owned();
    let wanted = FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
    let fits = has(options, "tmpfs")
        && value("root") == Some("/")
        && has(options, "rw")
        && flags.contains(wanted)
        && !flags.contains(FsFlags::ST_RDONLY)
        && value("size") == Some(&format!("{}k", config.size.bytes() >> 10))
        && value("mode").unwrap_or("1777") == format!("{:o}", config.mode.bits())
        && value("nr_inodes") == Some(&MOST_INODES.to_string())
        && owner("uid") == config.uid.to_string()
        && owner("gid") == config.gid.to_string();
    (!fits).then(|| format!("{options}, {flags:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: FsFlags = FsFlags::ST_NOSUID
        .union(FsFlags::ST_NODEV)
        .union(FsFlags::ST_NOEXEC);

    #[test]
    fn only_what_is_as_configured_is_kept() {
        let config: VolumeConfig = toml::from_str("name = 'a'\nuid = 1000\nmode = '0700'").unwrap();
        let good = "tmpfs,root=/,rw,size=1024k,nr_inodes=16384,mode=700,uid=1000,inode64,noswap";
        assert_eq!(differs(good, SAFE, &config), None);
        for bad in [
            good.replace("tmpfs", "ext4"),
            good.replace("root=/", "root=/sub"),
            good.replace("rw", "ro"),
            good.replace("1024k", "2048k"),
            good.replace("uid=1000", "uid=1001"),
            good.replace("mode=700", "mode=750"),
            good.replace("inode64", "gid=5"),
            good.replace("nr_inodes=16384,", ""),
            String::new(),
        ] {
            assert!(differs(&bad, SAFE, &config).is_some(), "{bad}");
        }
        for flags in [
            SAFE | FsFlags::ST_RDONLY,
            SAFE - FsFlags::ST_NODEV,
            FsFlags::empty(),
        ] {
            assert!(differs(good, flags, &config).is_some(), "{flags:?}");
        }
    }
}
