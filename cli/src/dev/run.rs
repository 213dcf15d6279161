//! `mayfly dev run`: one command in one container.

use crate::dev::broker::Broker;
use crate::dev::cgroup::{Cgroup, Limits};
use crate::dev::init::Container;
use crate::dev::place::Place;
use crate::dev::programs::Programs;
use crate::dev::{StartArgs, seed, signals};
use crate::failure::Failure;
use mayfly_wire::CredentialName;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

/// Whom a container runs as when the working directory is root's: nobody.
const NOBODY: u32 = 65_534;

/// Arguments of `dev run`.
#[derive(clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    start: StartArgs,
    /// The container's name: its cgroup is /mayfly/NAME [default: the command's name and a number]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Start the command only when these credentials are there [default: whatever is granted]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    wait: Vec<CredentialName>,
    /// Run as this user [default: the owner of the working directory, or nobody if that is root]
    #[arg(long, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, u32)>,
    /// Give it no network, instead of the host's
    #[arg(long)]
    no_network: bool,
    /// Most memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// Most processes and threads
    #[arg(long, value_name = "N", default_value_t = 512)]
    pids: u64,
    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn name(text: &str) -> Result<String, String> {
    let name: CredentialName = text.parse().map_err(
        |_| "expected 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit",
    )?;
    Ok(name.into())
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let parse = |part: &str| part.parse().ok().filter(|number| *number != 0);
    parse(uid)
        .zip(parse(gid))
        .ok_or_else(|| "expected UID or UID:GID in numbers, neither of them root's".to_owned())
}

/// `mayfly dev run`
pub fn run(args: RunArgs, programs: &Programs) -> Result<ExitCode, Failure> {
    let blocked = signals::block()?;
    let place = Place::new(args.start.at.clone())?;
    // Held until the container has ended; a broker that others started goes on.
    let (place, _own) = broker(programs, place, &args.start)?;
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| default_name(&args.command));
    let limits = Limits {
        memory: args.memory.saturating_mul(1024 * 1024),
        pids: args.pids,
    };
    let cgroup = Cgroup::make(&name, &limits)?;
    let cwd = std::env::current_dir().map_err(Failure::doing("where am I?"))?;
    let (uid, gid) = args.user.unwrap_or_else(|| owner_of(&cwd));
    let container = Container {
        name,
        cgroups: cgroup.procs(),
        workload_dir: place.workload_dir(),
        hide: hidden(&place),
        shim: programs.find("mayfly-shim")?,
        sidecar: programs.find("mayfly-sidecar")?,
        wait: args.wait.iter().map(ToString::to_string).collect(),
        uid,
        gid,
        network: !args.no_network,
        cwd,
        command: args.command,
    };
    let mut child = start(&container)?;
    let status = supervise(&mut child, &blocked)?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The broker that runs there, or one for this container alone.
fn broker(
    programs: &Programs,
    place: Place,
    args: &StartArgs,
) -> Result<(Place, Option<Broker>), Failure> {
    if !place.is_taken() {
        let alone = format!("{}.{}", place.root().display(), std::process::id());
        let broker = Broker::start(programs, Place::new(alone.into())?)?;
        seed::seed(&broker.place, args)?;
        return Ok((broker.place.clone(), Some(broker)));
    }
    if args.secrets.is_some() || args.config.is_some() || args.bare {
        return Err(Failure::Usage(format!(
            "a `mayfly dev` runs at {}: give --secrets, --config and --bare to that one, or use \
             --at with another directory",
            place.root().display()
        )));
    }
    Ok((place, None))
}

/// What no container shall see into: the broker, and where its secrets came from.
fn hidden(place: &Place) -> Vec<PathBuf> {
    let ours = [place.root().to_owned(), place.secrets_link()];
    let installed = ["/var/lib/mayfly", "/etc/mayfly"].map(PathBuf::from);
    let paths = ours.into_iter().chain(installed);
    // Without symbolic links, which would lead out of the new root while it is put together.
    paths
        .filter_map(|path| std::fs::canonicalize(path).ok())
        .collect()
}

fn default_name(command: &[OsString]) -> String {
    let base = command
        .first()
        .and_then(|first| Path::new(first).file_name());
    let base = base
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    let base: String = base
        .chars()
        .filter(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
        .take(40)
        .collect();
    format!(
        "{base}{}{}",
        if base.is_empty() { "" } else { "-" },
        std::process::id()
    )
}

fn owner_of(dir: &Path) -> (u32, u32) {
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.uid() != 0 && metadata.gid() != 0 => {
            (metadata.uid(), metadata.gid())
        }
        _ => (NOBODY, NOBODY),
    }
}

/// Starts the first process of a new pid namespace. From here on this process can start neither
/// threads nor other children: both would belong to that namespace.
fn start(container: &Container) -> Result<Child, Failure> {
    let own = std::env::current_exe().map_err(Failure::doing("cannot find my own file"))?;
    let spec = serde_json::to_string(container)
        .map_err(|error| Failure::Failed(format!("the container cannot be described: {error}")))?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    Command::new(own)
        .args(["dev", "container-init", &spec])
        .spawn()
        .map_err(Failure::doing("cannot start the container"))
}

/// Passes signals on until the container has ended.
fn supervise(child: &mut Child, blocked: &SigSet) -> Result<ExitStatus, Failure> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let waiting = || Failure::doing("cannot wait for the container");
    loop {
        if let Some(status) = child.try_wait().map_err(waiting())? {
            return Ok(status);
        }
        let arrived = signals::wait(blocked)?;
        // A terminal sends Ctrl-C to the container itself: it is in the same process group.
        let by_terminal = arrived.0 == Signal::SIGINT && std::io::stdin().is_terminal();
        if arrived.ends_us() && !by_terminal {
            kill(pid, arrived.0)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_never_roots() {
        assert_eq!(user("1000"), Ok((1000, 1000)));
        assert_eq!(user("1000:50"), Ok((1000, 50)));
        for text in ["0", "1000:0", "0:0", "root", "", "1:2:3"] {
            assert!(user(text).is_err(), "{text:?}");
        }
        assert_eq!(owner_of(Path::new("/")), (NOBODY, NOBODY));
    }

    #[test]
    fn a_name_is_one_path_segment() {
        assert!(name("orders-1").is_ok());
        assert!(name("../x").is_err() && name("").is_err() && name("a/b").is_err());
        let made = default_name(&["/usr/bin/Python3.11".into()]);
        assert!(
            made.starts_with("python311-") && name(&made).is_ok(),
            "{made}"
        );
        assert!(name(&default_name(&["/".into()])).is_ok());
    }
}
