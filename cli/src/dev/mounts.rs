//! What a container sees: the host's files read-only, and fresh /proc, /dev, /run and /tmp.

use crate::dev::init::Container;
use crate::dev::place::mount_tmpfs;
use crate::failure::Failure;
use mayfly_kernel::container::make_read_only;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::pivot_root;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The shim, as the container sees it.
pub const SHIM: &str = "/run/mayfly-bin/mayfly-shim";
/// The sidecar, as the container sees it.
pub const SIDECAR: &str = "/run/mayfly-bin/mayfly-sidecar";

/// Where the new root is put together. Any directory that is there on every host, and that the new
/// root takes nothing from.
const STAGE: &str = "/proc";
const NONE: Option<&str> = None;
/// The device nodes of the OCI runtime specification, "Default Devices".
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Makes the new root and enters it. The caller has a mount namespace of its own.
pub fn enter(container: &Container) -> Result<(), Failure> {
    umask(Mode::from_bits_truncate(0o022));
    let stage = Path::new(STAGE);
    // Nothing that is mounted from here on reaches the host.
    mounting(
        Path::new("/"),
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE),
    )?;
    // Before /run and /tmp are covered: where names are looked up.
    let resolver = fs::canonicalize("/etc/resolv.conf").ok();
    mounting(
        stage,
        mount(
            Some("/"),
            stage,
            NONE,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            NONE,
        ),
    )?;
    for replaced in ["proc", "sys", "dev", "run", "tmp"] {
        // Most are mount points of the host's, with others under them; those that are not are covered.
        let _ = umount2(&stage.join(replaced), MntFlags::MNT_DETACH);
    }
    make_read_only(stage).map_err(Failure::doing("cannot make the root read-only"))?;
    proc_and_sys(stage)?;
    devices(&stage.join("dev"))?;
    run_dir(stage, container)?;
    mount_tmpfs(&stage.join("tmp"), "mode=1777,size=64m")?;
    // What /run and /tmp covered although the command needs it.
    for needed in resolver.iter().chain([&container.cwd]) {
        if ["/run", "/tmp"]
            .iter()
            .any(|covered| needed.starts_with(covered))
            && needed.exists()
        {
            bind(needed, &inside(stage, needed))?;
        }
    }
    // Last, or what was bound just now would show it again.
    for hidden in &container.hide {
        let place = inside(stage, hidden);
        if place.is_dir() {
            mount_tmpfs(&place, "mode=0000,size=4k")?;
        }
    }
    std::env::set_current_dir(stage).map_err(Failure::doing("cannot enter the new root"))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root is on top of the new one, and goes.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    let start = std::env::set_current_dir(&container.cwd);
    start
        .or_else(|_| std::env::set_current_dir("/"))
        .map_err(Failure::doing("cannot enter /"))
}

fn mounting(at: &Path, result: nix::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| Failure::Failed(format!("cannot mount {}: {error}", at.display())))
}

fn inside(stage: &Path, path: &Path) -> PathBuf {
    stage.join(path.strip_prefix("/").unwrap_or(path))
}

fn proc_and_sys(stage: &Path) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = stage.join("proc");
    mounting(&proc, mount(Some("proc"), &proc, Some("proc"), flags, NONE))?;
    // Without what is mounted on it: cgroups and debugging stay outside.
    let sys = stage.join("sys");
    mounting(
        &sys,
        mount(Some("/sys"), &sys, NONE, MsFlags::MS_BIND, NONE),
    )?;
    make_read_only(&sys).map_err(Failure::doing("cannot make /sys read-only"))
}

fn devices(dev: &Path) -> Result<(), Failure> {
    mount_tmpfs(dev, "mode=0755,size=64k")?;
    for name in DEVICES {
        let node = dev.join(name);
        touch(&node)?;
        let host = Path::new("/dev").join(name);
        mounting(
            &node,
            mount(Some(&host), &node, NONE, MsFlags::MS_BIND, NONE),
        )?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        symlink(target, dev.join(name))
            .map_err(Failure::doing(format!("cannot make /dev/{name}")))?;
    }
    let pts = dev.join("pts");
    make_dir(&pts)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    mounting(
        &pts,
        mount(Some("devpts"), &pts, Some("devpts"), flags, options),
    )?;
    let shm = dev.join("shm");
    make_dir(&shm)?;
    mount_tmpfs(&shm, "mode=1777,size=64m")
}

/// /run: the workload socket, the tmpfs for secrets, and our two programs.
fn run_dir(stage: &Path, container: &Container) -> Result<(), Failure> {
    let run = stage.join("run");
    mount_tmpfs(&run, "mode=0755,size=1m")?;
    let secrets = run.join("secrets");
    make_dir(&secrets)?;
    let owner = format!(
        "mode=0700,size=4m,uid={},gid={}",
        container.uid, container.gid
    );
    mount_tmpfs(&secrets, &owner)?;
    bind(&container.workload_dir, &run.join("mayfly"))?;
    bind(&container.shim, &inside(stage, Path::new(SHIM)))?;
    bind(&container.sidecar, &inside(stage, Path::new(SIDECAR)))
}

/// Shows a file or a directory of the host's, read-only, at a place that is made for it.
fn bind(from: &Path, at: &Path) -> Result<(), Failure> {
    if from.is_dir() {
        make_dir(at)?;
    } else {
        at.parent().map_or(Ok(()), make_dir)?;
        touch(at)?;
    }
    mounting(at, mount(Some(from), at, NONE, MsFlags::MS_BIND, NONE))?;
    make_read_only(at).map_err(Failure::doing(format!(
        "cannot make {} read-only",
        at.display()
    )))
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(Failure::doing(format!("cannot make {}", path.display())))
}

fn touch(path: &Path) -> Result<(), Failure> {
    let made = fs::File::create(path).map(drop);
    made.map_err(Failure::doing(format!("cannot make {}", path.display())))
}
