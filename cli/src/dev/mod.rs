//! `mayfly dev`: a throwaway broker, and containers of bare namespaces to try it with.

mod broker;
mod cgroup;
mod init;
mod mounts;
mod place;
pub mod programs;
mod run;
mod seed;
mod signals;

use crate::failure::Failure;
use crate::output::{Out, note};
use broker::Broker;
use nix::unistd::geteuid;
use place::Place;
use programs::Programs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Help of `dev`.
pub const HELP: &str = "\
Examples:
  mayfly dev --secrets ./secrets          # a broker until Ctrl-C
  mayfly dev run -- cat /run/secrets/db   # a container under it, from another terminal
  mayfly dev run --secrets ./secrets -- python3 app.py    # both in one

It needs root, for namespaces, cgroups and mounts. All state is on a tmpfs that goes with it. Every
container that `dev run` starts gets every credential, unless --config or --bare says otherwise.";

const RUN_HELP: &str = "\
Examples:
  mayfly dev run --secrets ./secrets -- python3 app.py
  mayfly dev run --name orders --wait orders-db -- ./app --verbose

The command sees the host's files read-only, an empty /tmp, and its credentials in /run/secrets. It
runs as a user without privileges (--user), under mayfly-shim, and its exit status is passed on.
Standard input, output and the environment are those of this command.";

/// Arguments of `dev`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    #[command(subcommand)]
    command: Option<DevCommand>,
    #[command(flatten)]
    start: StartArgs,
}

/// What the throwaway broker begins with.
#[derive(clap::Args)]
pub struct StartArgs {
    /// Where the broker and its sockets are
    #[arg(long, value_name = "DIR", default_value = place::DEFAULT)]
    at: PathBuf,
    /// Make a credential of each file in it (of several fields, for each directory)
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Apply this configuration instead of granting everything to every `dev run` container
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Apply nothing: no credentials, and only the baseline policy
    #[arg(long, conflicts_with_all = ["secrets", "config"])]
    bare: bool,
}

#[derive(clap::Subcommand)]
enum DevCommand {
    /// Run a command in a container of its own, with credentials injected
    #[command(after_help = RUN_HELP)]
    Run(run::RunArgs),
    /// What `dev run` executes as the container's first process
    #[command(hide = true)]
    ContainerInit(init::InitArgs),
}

/// `mayfly dev`
pub fn run(args: DevArgs, out: Out, programs: &Programs) -> Result<ExitCode, Failure> {
    if !geteuid().is_root() {
        return Err(Failure::Usage(
            "mayfly dev needs root, for namespaces, cgroups and mounts: try with sudo".into(),
        ));
    }
    match args.command {
        None => serve(&args.start, out, programs),
        Some(DevCommand::Run(args)) => run::run(args, programs),
        Some(DevCommand::ContainerInit(args)) => init::run(&args),
    }
}

/// A broker until a signal, or until it dies by itself.
fn serve(args: &StartArgs, out: Out, programs: &Programs) -> Result<ExitCode, Failure> {
    let signals = signals::block()?;
    let mut broker = Broker::start(programs, Place::new(args.at.clone())?)?;
    let seeded = seed::seed(&broker.place, args)?;
    out.line(&introduction(&broker.place, &seeded))?;
    loop {
        if let Some(status) = broker.ended()? {
            return Err(broker.failure(&format!("the broker ended by itself: {status}")));
        }
        if signals::wait(&signals)?.ends_us() {
            break;
        }
    }
    broker.stop()?;
    note("mayfly dev: the broker has stopped, and all that it knew is gone");
    Ok(ExitCode::SUCCESS)
}

fn introduction(place: &Place, seeded: &str) -> String {
    let at = if place.root() == std::path::Path::new(place::DEFAULT) {
        String::new()
    } else {
        format!(" --at {}", place.root().display())
    };
    format!(
        "\
A throwaway broker runs, with its node. {seeded}

  admin socket      {admin}
  workload socket   {workload}
  its log           {log}

From another terminal:

  mayfly dev run{at} -- ls -l /run/secrets
  mayfly --socket {admin} workloads

Ctrl-C ends it and wipes everything.",
        admin = place.admin_socket().display(),
        workload = place.workload_socket().display(),
        log = place.log().display(),
    )
}
