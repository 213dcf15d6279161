//! The first process of a container, until it becomes `mayfly-shim`. It is this program, executed
//! anew: nothing of what `dev run` did before is in its memory.

use crate::dev::mounts;
use crate::failure::Failure;
use mayfly_kernel::caps;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// A container to be. There is no secret in it: it stands in an argument.
#[derive(Serialize, Deserialize)]
pub struct Container {
    /// Its name, and its host name.
    pub name: String,
    /// The `cgroup.procs` files to write itself into.
    pub cgroups: Vec<PathBuf>,
    /// The directory with the workload socket.
    pub workload_dir: PathBuf,
    /// Directories that it must not see into.
    pub hide: Vec<PathBuf>,
    /// `mayfly-shim` on the host.
    pub shim: PathBuf,
    /// `mayfly-sidecar` on the host.
    pub sidecar: PathBuf,
    /// The credentials that must be there before the command starts.
    pub wait: Vec<String>,
    /// Whom it runs as.
    pub uid: u32,
    /// And with which group.
    pub gid: u32,
    /// Whether it has the host's network, or none.
    pub network: bool,
    /// Where the command starts.
    pub cwd: PathBuf,
    /// The command.
    pub command: Vec<OsString>,
}

/// Arguments of `dev container-init`.
#[derive(clap::Args)]
pub struct InitArgs {
    /// The container, as JSON
    #[arg(value_parser = |text: &str| serde_json::from_str::<Container>(text).map(std::sync::Arc::new))]
    container: std::sync::Arc<Container>,
}

/// Becomes the container's shim, or fails. The signals that `dev run` blocks stay blocked until the shim
/// listens: of one without a handler that is not blocked, the kernel keeps nothing for a PID 1.
pub fn run(args: &InitArgs) -> Result<ExitCode, Failure> {
    let container = &args.container;
    if std::process::id() != 1 {
        return Err(Failure::Usage(
            "container-init is what `mayfly dev run` executes in a new pid namespace".into(),
        ));
    }
    // When `dev run` dies, however it dies, the kernel kills us, and with us the whole namespace.
    set_pdeathsig(Signal::SIGKILL)?;
    for procs in &container.cgroups {
        fs::write(procs, "0")
            .map_err(Failure::doing(format!("cannot join {}", procs.display())))?;
    }
    let mut own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        // After joining the cgroup, which becomes the root that the container sees.
        | CloneFlags::CLONE_NEWCGROUP;
    if !container.network {
        own |= CloneFlags::CLONE_NEWNET;
    }
    unshare(own)?;
    sethostname(&container.name)?;
    mounts::enter(container)?;
    give_up_privileges(container)?;
    let mut shim = Command::new(mounts::SHIM);
    shim.args(["run", "--sidecar", "--sidecar-path", mounts::SIDECAR]);
    if !container.wait.is_empty() {
        shim.args(["--wait", &container.wait.join(",")]);
    }
    shim.arg("--").args(&container.command);
    Err(Failure::doing("cannot start mayfly-shim")(shim.exec()))
}

/// Leaves root behind for good: no capability, no way to gain one, no other groups.
fn give_up_privileges(container: &Container) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(container.uid), Gid::from_raw(container.gid));
    let dropping = || Failure::doing("cannot drop capabilities");
    caps::drop_bounding().map_err(dropping())?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    caps::drop_all().map_err(dropping())?;
    set_no_new_privs()?;
    // The kernel forgets it when the uid changes.
    set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}
