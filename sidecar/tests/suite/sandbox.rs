//! A tmpfs of the test's own, and a sidecar that publishes into it.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// How long a replaced generation stays readable.
pub const GRACE: Duration = Duration::from_secs(1);

/// Directories for one test: `secrets`, a tmpfs, and beside it the socket and the log.
pub struct Sandbox(PathBuf);

impl Sandbox {
    pub fn new() -> Self {
        Self::with("size=1m,mode=0755")
    }

    /// With these options of the tmpfs.
    pub fn with(options: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mayfly-sidecar-test-{}-{number}", std::process::id());
        let base = std::env::temp_dir().join(name);
        let sandbox = Self(base.canonicalize().unwrap_or(base));
        fs::create_dir_all(sandbox.dir()).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("tmpfs"),
            &sandbox.dir(),
            Some("tmpfs"),
            flags,
            Some(options),
        )
        .expect("mounting a tmpfs needs root");
        sandbox
    }

    pub fn base(&self) -> &Path {
        &self.0
    }

    pub fn dir(&self) -> PathBuf {
        self.0.join("secrets")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("workload.sock")
    }

    pub fn start(&self, arguments: &[&str]) -> Sidecar {
        self.start_as(0, arguments)
    }

    pub fn start_as(&self, uid: u32, arguments: &[&str]) -> Sidecar {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = self.0.join(format!("log-{number}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly-sidecar"));
        command.arg("--socket").arg(self.socket());
        if !arguments.contains(&"--dir") {
            command.arg("--dir").arg(self.dir());
        }
        command.args(arguments).stderr(File::create(&log).unwrap());
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        Sidecar {
            child: command.spawn().unwrap(),
            log,
        }
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn has(&self, name: &str) -> bool {
        self.dir().join(name).symlink_metadata().is_ok()
    }

    /// Inode and modification time.
    pub fn identity(&self, name: &str) -> (u64, i64, i64) {
        let found = fs::metadata(self.dir().join(name)).unwrap();
        (found.ino(), found.mtime(), found.mtime_nsec())
    }

    /// All names in the publishing directory.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The same without what the sidecar shows of itself.
    pub fn published_names(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| !matches!(name.as_str(), "..alive" | "..status" | "..status_new"));
        names
    }

    /// What is published under this name, if anything is.
    pub fn find(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.dir().join(name)).ok()
    }

    /// An executable file. It is another process that writes it: what a thread of ours has open for
    /// writing, every child has open that another test starts just then, and as long as one has, the
    /// file cannot be executed.
    pub fn program(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(content).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    /// The configuration `text`, for `--config`.
    pub fn config(&self, text: &str) -> String {
        let path = self.0.join("sidecar.toml");
        fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, mode).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What the status says, and the exit status.
    pub fn ask(&self, arguments: &[&str]) -> (String, i32) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly-sidecar"));
        let said = command
            .args(arguments)
            .arg("--dir")
            .arg(self.dir())
            .output();
        let said = said.unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        (text, said.status.code().unwrap())
    }

    /// The whole status.
    pub fn status(&self) -> serde_json::Value {
        let (text, _) = self.ask(&["status", "--output", "json"]);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no status: {text}"))
    }

    pub fn generations(&self) -> usize {
        self.names()
            .iter()
            .filter(|name| name.starts_with("..gen-"))
            .count()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = umount2(&self.dir(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running sidecar; killed when dropped.
pub struct Sidecar {
    child: Child,
    log: PathBuf,
}

impl Sidecar {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the sidecar ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn says(&self, part: &str) {
        eventually(part, || self.log().contains(part));
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the sidecar said\n{}", self.log());
        }
    }
}

/// Does what must be seen before an end that is so many milliseconds away. An attempt that the machine
/// made too late shows nothing, and is made again with more time.
pub fn in_time<T>(attempt: impl FnMut(u64) -> Option<T>) -> T {
    let done = [1_000, 4_000, 16_000].into_iter().find_map(attempt);
    done.expect("a machine that is not this slow")
}

/// Does what must be seen within the grace of a replaced generation, once more if the machine did not let us.
pub fn in_grace<T>(attempt: impl FnMut(u32) -> Option<T>) -> T {
    let done = (0..10).find_map(attempt);
    done.expect("a machine that is not this slow")
}

/// Waits until something holds, half a minute at most.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
