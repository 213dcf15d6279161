//! One attempt to tell the application.

use super::{Context, http, target};
use crate::config::{Action, Notify, Process, expect_program};
use mayfly_kernel::process::prepare_child;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

/// Makes one attempt.
///
/// # Errors
/// What went wrong, in a sentence that holds nothing secret.
pub async fn perform(notify: &Notify, context: &Context) -> Result<(), String> {
    let attempt = async {
        match &notify.action {
            Action::Signal(signal) => signal_application(*signal, context).await,
            Action::Stop if context.shim => context.the_shim.ask(context.telling, "stop").await,
            Action::Stop => stop(context),
            Action::Restart if context.shim => {
                context.the_shim.ask(context.telling, "restart").await
            }
            Action::Restart => Err(
                "nobody restarts the application: the sidecar must be started by \
                                    mayfly-shim, which then passes --shim"
                    .to_owned(),
            ),
            Action::Http { address, path } => http::post(*address, path).await,
            Action::Command(argv) => run(argv, context).await,
        }
    };
    match timeout(notify.timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("it took longer than {:?}", notify.timeout)),
    }
}

async fn signal_application(signal: Signal, context: &Context) -> Result<(), String> {
    if context.shim && matches!(context.process, Some(Process::Parent(_))) {
        let what = format!("signal {}", signal as i32);
        return context.the_shim.ask(context.telling, &what).await;
    }
    target::signal(context.process.as_ref(), signal, Path::new("/proc"))
}

/// Asks the application to end; that succeeds when it is gone, so it is asked again until then. Only the
/// process that was asked first: what a supervisor starts in its place is another, which nobody has told
/// to do without.
fn stop(context: &Context) -> Result<(), String> {
    let mut stopping = context.stopping.lock();
    let held = stopping.as_deref_mut().map_err(|error| error.to_string())?;
    if held.is_none() {
        match target::find(context.process.as_ref(), Path::new("/proc")) {
            Err(target::NotFound::Gone) => return Ok(()),
            Err(other) => return Err(other.to_string()),
            Ok(process) => *held = Some(process),
        }
    }
    let Some(process) = held else { return Ok(()) };
    let cannot = |error| format!("cannot signal the application: {error}");
    if !process.alive().map_err(cannot)? {
        *held = None;
        return Ok(());
    }
    process
        .send_signal(Signal::SIGTERM as i32)
        .map_err(cannot)?;
    Err("it was asked to end and has not ended yet".to_owned())
}

/// Runs a program to its end. It gets no descriptor and no environment of ours but these variables,
/// and what it says goes nowhere: it may be a secret.
async fn run(argv: &[String], context: &Context) -> Result<(), String> {
    let [program, arguments @ ..] = argv else {
        return Err("there is no command".to_owned());
    };
    expect_program(Path::new(program)).map_err(|error| format!("cannot run {program}: {error}"))?;
    let changed: Vec<_> = context.changed.iter().map(|item| item.as_str()).collect();
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("MAYFLY_DIR", &context.dir)
        .env("MAYFLY_GENERATION", &context.generation)
        .env("MAYFLY_CHANGED", changed.join(" "))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    prepare_child(&mut command, SigSet::empty(), Signal::SIGKILL);
    let mut child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    // If the time is over, this is dropped, and all that the program started ends with it.
    let mut group = Group(child.id());
    let status = child.wait().await;
    // Its number is not its own any more.
    group.0 = None;
    let status = status.map_err(|error| format!("cannot wait for {program}: {error}"))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("{program} ended with {code}")),
        (None, signal) => Err(format!(
            "{program} was ended by signal {}",
            signal.unwrap_or(0)
        )),
    }
}

/// A process group that ends when this is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|group| i32::try_from(group).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}
