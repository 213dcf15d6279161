//! A real PostgreSQL server, from Debian's packages, with a data directory and a port of its own.
//!
//! It uses nothing but the standard library, so that the broker's own tests can take it in as well.

use std::io::{self, Error, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Ends the server when its standard input ends, whatever ends the test.
const GUARD: &str = r#""$@" & server=$!; read -r _; kill -QUIT "$server"; wait "$server""#;
/// How long it may take to start.
const START: Duration = Duration::from_secs(120);

/// A running server. It ends, and its data goes, when this is dropped.
#[derive(Debug)]
pub struct PostgresServer {
    dir: PathBuf,
    port: u16,
    options: Vec<String>,
    owner: (u32, u32),
    running: Option<(Child, ChildStdin)>,
}

impl PostgresServer {
    /// The account that may do anything.
    pub const ROOT: &'static str = "postgres";
    /// Its first password.
    pub const PASSWORD: &'static str = "the-first-root-password";

    /// Makes one with these settings (`fsync=off`) and starts it. Passwords are checked by SCRAM, on
    /// 127.0.0.1 and on the socket.
    ///
    /// # Errors
    /// It is not installed (`tests/setup` does that), or does not start.
    pub fn start(settings: &[&str]) -> io::Result<Self> {
        let dir = new_dir()?;
        let mut server = Self {
            dir,
            port: free_port()?,
            options: settings.iter().map(|text| (*text).to_owned()).collect(),
            owner: owner()?,
            running: None,
        };
        chown(&server.dir, Some(server.owner.0), Some(server.owner.1))?;
        let password = server.dir.join("password");
        std::fs::write(&password, Self::PASSWORD)?;
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o444))?;
        let made = server
            .command("initdb")?
            .args([
                "--no-sync",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .args(["--username", Self::ROOT, "--pwfile"])
            .arg(&password)
            .arg(server.data())
            .output()?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(Error::other(format!("initdb: {said}")));
        }
        server.run()?;
        Ok(server)
    }

    /// Starts it again, after [`kill`](Self::kill).
    ///
    /// # Errors
    /// It does not start.
    pub fn run(&mut self) -> io::Result<()> {
        let postgres = self.command("postgres")?;
        let mut bash = Command::new("bash");
        bash.args(["-c", GUARD, "guard"])
            .arg(postgres.get_program())
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.socket_dir())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        for setting in &self.options {
            bash.arg("-c").arg(setting);
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        bash.uid(self.owner.0)
            .gid(self.owner.1)
            .current_dir(&self.dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = bash.spawn()?;
        let line = child
            .stdin
            .take()
            .ok_or_else(|| Error::other("no life line"))?;
        self.running = Some((child, line));
        let until = Instant::now() + START;
        while !self.is_ready()? {
            if Instant::now() > until {
                return Err(Error::other(format!("it does not start:\n{}", self.log()?)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn is_ready(&self) -> io::Result<bool> {
        let mut asked = Command::new(bin("pg_isready")?);
        asked.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        Ok(asked.status()?.success())
    }

    /// Adds settings, for when it is started again.
    pub fn configure(&mut self, settings: &[&str]) {
        let settings = settings.iter().map(|text| (*text).to_owned());
        self.options.extend(settings);
    }

    /// Ends it at once, without a chance to finish anything.
    pub fn kill(&mut self) {
        if let Some((mut child, line)) = self.running.take() {
            drop(line);
            let _ = child.wait();
        }
    }

    /// Its TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// Where its settings and files are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Puts a file beside the data that only the server may read: a certificate, a key.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        let mut file = std::fs::File::create(&path)?;
        file.write_all(content)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(self.owner.0), Some(self.owner.1))?;
        Ok(path)
    }

    /// All that it logged.
    ///
    /// # Errors
    /// The file system's.
    pub fn log(&self) -> io::Result<String> {
        let bytes = std::fs::read(self.dir.join("log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs statements with `psql`, as the account that may do anything; what it printed.
    ///
    /// # Errors
    /// `psql` fails.
    pub fn psql(&self, sql: &str) -> io::Result<String> {
        self.psql_as(Self::ROOT, Self::PASSWORD, sql)
    }

    /// Runs statements with `psql`; what it printed.
    ///
    /// # Errors
    /// `psql` fails, as when it is not let in.
    pub fn psql_as(&self, user: &str, password: &str, sql: &str) -> io::Result<String> {
        let run = self.client(user, password)?.arg("-c").arg(sql).output()?;
        if run.status.success() {
            return Ok(String::from_utf8_lossy(&run.stdout).trim_end().to_owned());
        }
        Err(Error::other(
            String::from_utf8_lossy(&run.stderr).into_owned(),
        ))
    }

    /// A `psql` that would connect as `user`, to be given its statements.
    ///
    /// # Errors
    /// It is not installed.
    pub fn client(&self, user: &str, password: &str) -> io::Result<Command> {
        let mut psql = self.tool("psql", user, password)?;
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        Ok(psql)
    }

    /// One of the server's own client programs, told where the server is.
    ///
    /// # Errors
    /// It is not installed.
    pub fn tool(&self, name: &str, user: &str, password: &str) -> io::Result<Command> {
        let mut tool = Command::new(bin(name)?);
        tool.env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", user)
            .env("PGDATABASE", "postgres")
            .env("PGPASSWORD", password)
            .env("PGCONNECT_TIMEOUT", "30");
        Ok(tool)
    }

    fn command(&self, name: &str) -> io::Result<Command> {
        let mut command = Command::new(bin(name)?);
        command
            .uid(self.owner.0)
            .gid(self.owner.1)
            .current_dir(&self.dir);
        Ok(command)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A directory of its own, with a short name: a unix socket's path has 108 bytes at most.
fn new_dir() -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mayfly-pg-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            // Left by one that was killed and had the same pid.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A program of the newest version that is installed.
fn bin(name: &str) -> io::Result<PathBuf> {
    let hint = "expected PostgreSQL in /usr/lib/postgresql: run tests/setup";
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").map_err(|error| Error::new(error.kind(), hint))?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    found.sort();
    let newest = found.pop().ok_or_else(|| Error::other(hint))?;
    Ok(newest.1)
}

/// Whom the server runs as, which must not be root.
fn owner() -> io::Result<(u32, u32)> {
    let own = std::fs::metadata("/proc/self")?;
    if own.uid() != 0 {
        return Ok((own.uid(), own.gid()));
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let user = users.lines().find(|line| line.starts_with("postgres:"));
    let ids = user.and_then(|line| {
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.ok_or_else(|| Error::other("expected a user postgres: run tests/setup"))
}

/// Free, and nobody is given it meanwhile who asks the kernel for any port: a connection has just ended
/// there. Who asks for this one with SO_REUSEADDR, as the server does, gets it.
fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let client = TcpStream::connect(address)?;
    // The side that ends first is the one that lingers (TIME_WAIT).
    drop(listener.accept()?);
    drop(client);
    Ok(address.port())
}
