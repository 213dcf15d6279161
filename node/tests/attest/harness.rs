//! Containers without an engine: a cgroup in each hierarchy, and unshare(1).

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mayfly_kernel::mountinfo::mounts;
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::socket::{Received, recv};
use mayfly_node::attest::{AttestConfig, AttestError, Attested, Attestor, Peer};
use mayfly_wire::Facility;

/// A name that no other test has.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("mayfly-{}-{count}-{name}", std::process::id())
}

/// A cgroup of the same path in each hierarchy that names containers.
pub struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes it, in the roots.
    pub fn new(name: &str) -> Self {
        let text = fs::read("/proc/self/mountinfo").unwrap();
        let roots = mounts(&text).map(Result::unwrap).filter(|mount| {
            let options = String::from_utf8_lossy(mount.filesystem_options);
            let mut options = options.split(',');
            mount.filesystem == b"cgroup2"
                || (mount.filesystem == b"cgroup" && options.any(|o| o == "pids" || o == "memory"))
        });
        let roots =
            roots.map(|mount| PathBuf::from(String::from_utf8(mount.point.into_owned()).unwrap()));
        let name = unique(name);
        Self::made(roots.map(|root| root.join(&name)).collect())
    }

    /// Makes one inside of it.
    pub fn inside(&self, name: &str) -> Self {
        Self::made(
            self.directories
                .iter()
                .map(|outer| outer.join(name))
                .collect(),
        )
    }

    fn made(directories: Vec<PathBuf>) -> Self {
        assert!(!directories.is_empty(), "no cgroup hierarchy is mounted");
        for directory in &directories {
            fs::create_dir(directory).unwrap_or_else(|error| {
                panic!(
                    "cannot make {} ({error}): these tests need root",
                    directory.display()
                )
            });
        }
        Self { directories }
    }

    /// A command that joins it and then becomes these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let joined: String = self
            .directories
            .iter()
            .map(|directory| format!("echo $$ > {}/cgroup.procs && ", directory.display()))
            .collect();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("{joined}exec \"$@\""), "sh"])
            .args(words);
        command
    }

    /// Its directory in the v2 hierarchy.
    pub fn v2(&self) -> &Path {
        let mut v2 = self
            .directories
            .iter()
            .filter(|path| path.join("cgroup.events").exists());
        v2.next().expect("cgroup2 is mounted")
    }

    /// Its directories in all of them.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for directory in &self.directories {
            let left = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines().filter_map(|pid| pid.parse().ok()) {
                let _gone = Pidfd::open(pid).and_then(|process| process.send_signal(9));
            }
            // They may not be gone yet.
            while fs::remove_dir(directory).is_err() && directory.exists() {
                if Instant::now() > deadline {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// What every container here has of its own.
pub const NAMESPACES: [&str; 8] = [
    "unshare",
    "--pid",
    "--mount",
    "--ipc",
    "--uts",
    "--net",
    "--fork",
    "--kill-child",
];

/// A process that does as it is told.
pub struct Told {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Told {
    /// Starts it as the words say, in a cgroup.
    pub fn start(cgroup: &Cgroup, words: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let program = program
            .parent()
            .unwrap()
            .with_file_name("examples")
            .join("attest_peer");
        assert!(
            program.exists(),
            "{} is missing: build it with `cargo build --release --workspace --example attest_peer`",
            program.display()
        );
        let words = [words, &[program.to_str().unwrap()]].concat();
        let mut child = cgroup
            .command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut told = Self {
            child,
            input,
            output,
        };
        assert_eq!(told.line(), "ready", "{words:?}");
        told
    }

    /// Makes it do something; answers what it said on the way.
    pub fn tell(&mut self, order: &str) -> Vec<String> {
        writeln!(self.input.as_ref().unwrap(), "{order}").unwrap();
        let mut said = Vec::new();
        loop {
            match self.line() {
                line if line == "done" => return said,
                line => said.push(line),
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.output.read_line(&mut line).unwrap() > 0,
            "it ended early"
        );
        line.trim_end().to_owned()
    }

    /// Starts it in a cgroup, without namespaces of its own, with this pid, which nobody has.
    pub fn with_pid(cgroup: &Cgroup, pid: u32) -> Self {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            // Other processes of the machine may be quicker to take the next pid.
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
                .expect("a kernel with CONFIG_CHECKPOINT_RESTORE");
            let mut told = Self::start(cgroup, &[]);
            if told.pid() == pid {
                return told;
            }
            told.kill();
            assert!(Instant::now() < deadline, "could not get pid {pid}");
        }
    }

    /// Its pid, where it was started without a namespace of its own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and what it runs in, and waits until the command that started it is dead.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // It ends with its input, unless it is dead already.
        self.input = None;
        let _status = self.child.wait();
    }
}

/// Long enough for anything here, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until a peer is dead.
pub fn dies(peer: &Peer) {
    let deadline = Instant::now() + SOON;
    while peer.alive() {
        assert!(Instant::now() < deadline, "pid {} does not die", peer.pid());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A node's end: an attestor, and a socket that it listens on.
pub struct Node {
    pub attestor: Attestor,
    listener: UnixListener,
    path: PathBuf,
}

impl Node {
    pub fn new(forbid: &[Facility]) -> Self {
        Self::with_engines(forbid, Vec::new())
    }

    pub fn with_engines(forbid: &[Facility], engine_sockets: Vec<PathBuf>) -> Self {
        let attestor = Attestor::new(AttestConfig {
            node: "test".to_owned(),
            engine_sockets,
            forbid: forbid.to_vec(),
        })
        .unwrap();
        let path = std::env::temp_dir().join(unique("socket"));
        let listener = UnixListener::bind(&path).unwrap();
        attestor.listener_options(&listener).unwrap();
        Self {
            attestor,
            listener,
            path,
        }
    }

    /// Has a process connect, and prove itself if it must.
    pub fn connected(&self, told: &mut Told) -> (UnixStream, Peer) {
        let (stream, peer) = self.connecting(told);
        let peer = peer.unwrap();
        if let Some(nonce) = peer.nonce() {
            told.tell(&format!("send {nonce}"));
            let (text, received) = receive(&stream);
            peer.prove(&text, &received).unwrap();
        }
        (stream, peer)
    }

    /// Has a process connect.
    pub fn connecting(&self, told: &mut Told) -> (UnixStream, Result<Peer, AttestError>) {
        told.tell(&format!("connect {}", self.path.display()));
        self.accept()
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes who has connected.
    pub fn accept(&self) -> (UnixStream, Result<Peer, AttestError>) {
        let (stream, _) = self.listener.accept().unwrap();
        let peer = self.attestor.connected(&stream);
        (stream, peer)
    }

    /// Attests a peer.
    pub fn attest(&self, peer: &Peer) -> Result<Attested, AttestError> {
        runtime().block_on(self.attestor.attest(peer))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

/// Receives one message.
pub fn receive(stream: &UnixStream) -> (String, Received) {
    let mut buffer = [0; 256];
    let deadline = Instant::now() + SOON;
    loop {
        match recv(stream, &mut buffer) {
            Ok(received) => {
                let text = String::from_utf8(buffer[..received.len].to_vec()).unwrap();
                return (text, received);
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                assert!(Instant::now() < deadline, "nothing came");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Has one process pass its connection to another; answers its number there.
pub fn pass(from: &mut Told, to: &mut Told) -> String {
    let path = std::env::temp_dir().join(unique("pass"));
    to.tell(&format!("listen {}", path.display()));
    from.tell(&format!("give {}", path.display()));
    let number = to.tell("take").remove(0);
    fs::remove_file(&path).unwrap();
    number
}

/// A runtime as the node's.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The id of a cgroup in the v2 hierarchy.
pub fn id_of(cgroup: &Cgroup) -> u64 {
    mayfly_kernel::cgroup::id(fs::File::open(cgroup.v2()).unwrap()).unwrap()
}

/// A container of its own, with the process in it.
pub fn container(name: &str) -> (Cgroup, Told) {
    let cgroup = Cgroup::new(name);
    let told = Told::start(&cgroup, &NAMESPACES);
    (cgroup, told)
}
