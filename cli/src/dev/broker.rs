//! A broker as our child: started, awaited, stopped.

use crate::client::Client;
use crate::command::block_on;
use crate::dev::place::{Place, Taken};
use crate::dev::programs::Programs;
use crate::failure::Failure;
use mayfly_kernel::process::prepare_child;
use mayfly_wire::admin::Status;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long it may take until it answers.
const START: Duration = Duration::from_secs(15);
/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// A broker that runs. It ends with us, however we end.
pub struct Broker {
    child: Child,
    /// Where it is.
    pub place: Place,
    // Dropped after the child has ended: the place goes last.
    _taken: Taken,
}

impl Broker {
    /// Starts one and waits until it answers.
    pub fn start(programs: &Programs, place: Place) -> Result<Self, Failure> {
        let program = programs.find("mayfly-broker")?;
        let taken = place.take()?;
        // The broker makes its state directory itself. Containers see this one, and reach the socket.
        let dir = place.workload_dir();
        DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .map_err(Failure::doing(format!("cannot make {}", dir.display())))?;
        fs::write(place.config(), settings(&place))
            .map_err(Failure::doing("cannot write the broker's configuration"))?;
        let log = File::create(place.log()).map_err(Failure::doing("cannot make the log"))?;
        let to_log = || {
            log.try_clone()
                .map_err(Failure::doing("cannot share the log"))
        };
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(place.config())
            .stdin(Stdio::null())
            .stdout(to_log()?)
            .stderr(to_log()?)
            // Away from the terminal's Ctrl-C: it must outlive the containers that it serves.
            .process_group(0);
        prepare_child(&mut command, SigSet::empty(), Signal::SIGTERM);
        let child = command.spawn().map_err(Failure::doing(format!(
            "cannot start {}",
            program.display()
        )))?;
        let mut broker = Self {
            child,
            place,
            _taken: taken,
        };
        broker.wait_until_it_answers()?;
        Ok(broker)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), Failure> {
        let client = Client::new(self.place.admin_socket());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Err(self.failure(&format!("the broker did not start: {status}")));
            }
            let failure = match block_on(client.get::<Status>("/v1/status")) {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            if begun.elapsed() > START {
                return Err(self.failure(&format!("the broker does not answer: {failure}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child
            .try_wait()
            .map_err(Failure::doing("cannot wait for the broker"))
    }

    /// A failure that ends in the last lines of the broker's log, which goes with its place.
    pub fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(self.place.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(10).collect();
        let last: Vec<_> = lines.into_iter().rev().collect();
        Failure::Failed(format!("{what}\nIts last words:\n{}", last.join("\n")))
    }

    /// Ends it, and waits until it has.
    pub fn stop(&mut self) -> Result<(), Failure> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM)?;
        let begun = Instant::now();
        while self.ended()?.is_none() {
            if begun.elapsed() > END {
                self.child
                    .kill()
                    .map_err(Failure::doing("cannot kill the broker"))?;
                self.child
                    .wait()
                    .map_err(Failure::doing("cannot wait for the broker"))?;
                return Err(self.failure("the broker did not end within 5 s and was killed"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(failure) = self.stop() {
            crate::output::note(&format!("mayfly dev: {failure}"));
        }
    }
}

/// The configuration of a broker that keeps to one directory.
fn settings(place: &Place) -> String {
    let quoted =
        |path: std::path::PathBuf| toml::Value::from(path.display().to_string()).to_string();
    format!(
        "state_dir = {}\n[admin]\nsocket = {}\n[node]\nworkload_socket = {}\n",
        quoted(place.state()),
        quoted(place.admin_socket()),
        quoted(place.workload_socket()),
    )
}
