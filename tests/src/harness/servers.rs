//! Real servers beside PostgreSQL, from Debian's packages: MariaDB, Redis, RabbitMQ. Each has a
//! directory and ports of its own, and an account `broker` that may make others.
//!
//! It uses nothing but the standard library, so that the broker's own tests can take it in as well.

use std::io::{self, BufRead as _, BufReader, Error};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long one may take to start.
const START: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ports: TCP, with and without TLS.
    Mariadb,
    /// Ports: TCP, TLS.
    Redis,
    /// Ports: AMQP, management API, the same with TLS, and two of Erlang's own.
    Rabbitmq,
}

impl Kind {
    fn script(self) -> (&'static str, usize) {
        match self {
            Self::Mariadb => ("mariadb.sh", 1),
            Self::Redis => ("redis.sh", 2),
            Self::Rabbitmq => ("rabbitmq.sh", 5),
        }
    }
}

/// A running server. It ends, and its data goes, when this is dropped; it ends with the test process,
/// too, however that ends.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    dir: PathBuf,
    ports: Vec<u16>,
    guard: Child,
    line: Option<ChildStdin>,
    pid: String,
}

impl Server {
    /// The broker's account.
    pub const ROOT: &'static str = "broker";
    /// Its first password.
    pub const PASSWORD: &'static str = "the-first-root-password";

    /// Starts one, and waits until it lets the broker's account in.
    ///
    /// # Errors
    /// It is not installed (`tests/setup` does that), or does not start.
    pub fn start(kind: Kind) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: a unix socket's path has 108 bytes at most.
        let dir = std::env::temp_dir().join(format!("mayfly-db-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let ports = (0..kind.script().1).map(|_| free_port());
        let ports = ports.collect::<io::Result<Vec<_>>>()?;
        let (guard, line, pid) = run(kind, &dir, &ports)?;
        let mut server = Self {
            kind,
            dir,
            ports,
            guard,
            line: Some(line),
            pid,
        };
        server.wait()?;
        Ok(server)
    }

    /// Ends it at once, without a chance to finish anything, and starts it again on the same data.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        self.signal("KILL")?;
        self.guard.wait()?;
        let (guard, line, pid) = run(self.kind, &self.dir, &self.ports)?;
        (self.guard, self.line, self.pid) = (guard, Some(line), pid);
        self.wait()
    }

    /// Sends it a signal: `STOP`, `CONT`, `KILL`. When this returns, what was stopped stands still.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: &str) -> io::Result<()> {
        // Erlang's is not the process that was started.
        let own = std::fs::read_to_string(self.dir.join("pid"));
        let pid = own.unwrap_or_else(|_| self.pid.clone());
        let sent = Command::new("kill")
            .args(["-s", signal, pid.trim()])
            .status()?;
        if !sent.success() {
            return Err(Error::other(format!("{:?} has ended", self.kind)));
        }
        let until = Instant::now() + START;
        while signal == "STOP" && !stands_still(pid.trim())? {
            if Instant::now() > until {
                return Err(Error::other(format!("{:?} does not stop", self.kind)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// One of its TCP ports on 127.0.0.1: see [`Kind`].
    #[must_use]
    pub fn port(&self, index: usize) -> u16 {
        self.ports.get(index).copied().unwrap_or_default()
    }

    /// Where its files are: `ca.pem`, the authority of its certificate, among them.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks it something as `user`, with the client that comes with it (for RabbitMQ: a path of its
    /// management API, with curl). What was said, errors among it.
    ///
    /// # Errors
    /// The client is not installed.
    pub fn ask(&self, user: &str, password: &str, what: &str) -> io::Result<String> {
        let port = self.port(0).to_string();
        let mut client;
        match self.kind {
            Kind::Mariadb => {
                client = Command::new("mariadb");
                client.args(["--no-defaults", "-N", "-B", "-h", "127.0.0.1", "-P", &port]);
                client
                    .args(["-u", user, "-e", what])
                    .env("MYSQL_PWD", password);
            }
            Kind::Redis => {
                client = Command::new("redis-cli");
                client
                    .args(["-p", &port, "--user", user])
                    .args(what.split(' '));
                client.env("REDISCLI_AUTH", password);
            }
            Kind::Rabbitmq => {
                let url = format!("http://127.0.0.1:{}/api/{what}", self.port(1));
                client = Command::new("curl");
                client.args(["-s", "-w", " %{http_code}", "-u"]);
                client.args([&format!("{user}:{password}"), &url]);
            }
        }
        let said = client.stdin(Stdio::null()).output()?;
        let text = [said.stdout, said.stderr].concat();
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Asks as the broker's account.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub fn ask_as_root(&self, what: &str) -> io::Result<String> {
        self.ask(Self::ROOT, Self::PASSWORD, what)
    }

    fn is_ready(&self) -> io::Result<bool> {
        for port in self.ports.iter().take(3) {
            if TcpStream::connect(("127.0.0.1", *port)).is_err() {
                return Ok(false);
            }
        }
        Ok(match self.kind {
            Kind::Mariadb => self.ask_as_root("SELECT 1")? == "1",
            Kind::Redis => self.ask_as_root("PING")? == "PONG",
            Kind::Rabbitmq => self.ask_as_root("whoami")?.ends_with(" 200"),
        })
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        while !self.is_ready()? {
            if self.guard.try_wait()?.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                return Err(Error::other(format!(
                    "{:?} does not start (tests/setup installs it; root must run it):\n{log}",
                    self.kind
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that a test has stopped would not hear that it shall end.
        let _ = self.signal("CONT");
        drop(self.line.take());
        let _ = self.guard.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Whether all threads of a process are stopped (proc_pid_stat(5)): the others go on until the first of them
/// has heard of it, which on a busy machine takes a while.
fn stands_still(pid: &str) -> io::Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended has not stood still.
        let stat = std::fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        if !state.is_some_and(|state| state.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn run(kind: Kind, dir: &Path, ports: &[u16]) -> io::Result<(Child, ChildStdin, String)> {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/src/harness");
    let mut bash = Command::new("bash");
    bash.arg(harness.join("guard.sh"))
        .args(["TERM", "10"])
        .arg(dir.join("log"))
        .arg("bash")
        .arg(harness.join("servers").join(kind.script().0))
        .arg(dir)
        .args(ports.iter().map(u16::to_string))
        .arg(Server::PASSWORD)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut guard = bash.spawn()?;
    let pipes = (guard.stdin.take(), guard.stdout.take());
    let (Some(line), Some(output)) = pipes else {
        return Err(Error::other("no life line"));
    };
    let mut pid = String::new();
    BufReader::new(output).read_line(&mut pid)?;
    Ok((guard, line, pid.trim().to_owned()))
}

/// A port that is free, and that nobody is given meanwhile who asks the kernel for any: a connection has
/// just ended there. Who asks for this one with SO_REUSEADDR, as servers do, gets it.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let client = TcpStream::connect(address)?;
    // The side that ends first is the one that lingers (TIME_WAIT).
    drop(listener.accept()?);
    drop(client);
    Ok(address.port())
}
