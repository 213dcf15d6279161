//! A container without any engine: namespaces and a cgroup of its own, around one process.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The hostile client's program.
pub fn client() -> String {
    let exe = std::env::current_exe().unwrap();
    let client = exe.parent().unwrap().parent().unwrap();
    let client = client.join("examples/hostile_client");
    assert!(
        client.is_file(),
        "cargo builds {} with the tests",
        client.display()
    );
    client.to_str().unwrap().to_owned()
}

/// It ends when dropped.
pub struct Container {
    parent: Child,
    cgroup: PathBuf,
    output: Arc<Mutex<Vec<String>>>,
}

impl Container {
    /// Runs the hostile client as the container's init.
    pub fn hostile(args: &[&str]) -> Self {
        Self::run(&[&[client().as_str()], args].concat())
    }

    /// Runs a command as the container's init, in new namespaces of every kind but user's.
    pub fn run(command: &[&str]) -> Self {
        let random = getrandom::u64().unwrap();
        let cgroup = cgroup_root().join(format!("mayfly-node-{random:016x}"));
        std::fs::create_dir(&cgroup).expect("these tests need root");
        let script = r#"
            echo 0 >"$1/cgroup.procs"; shift
            exec unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child --mount-proc -- "$@"
        "#;
        let mut parent = Command::new("bash")
            .args(["-c", script, "container"])
            .arg(&cgroup)
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push(line);
            }
        });
        Self {
            parent,
            cgroup,
            output,
        }
    }

    /// The first line of output that begins so.
    pub async fn says(&self, beginning: &str) -> String {
        let what = format!("{beginning:?} from a container");
        super::until(&what, || {
            let output = self.output.lock().unwrap();
            output
                .iter()
                .find(|line| line.starts_with(beginning))
                .cloned()
        })
        .await
    }

    /// All output so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().join("\n")
    }

    /// The pid of its init, in the host's pid namespace.
    pub fn init(&self) -> i32 {
        let pid = self.parent.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap();
        children.trim().parse().unwrap()
    }

    /// Kills its init, and says when.
    pub fn kill(&self) -> Instant {
        let init = Pid::from_raw(self.init());
        let at = Instant::now();
        kill(init, Signal::SIGKILL).unwrap();
        at
    }

    /// The id of its cgroup.
    pub fn cgroup_id(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&self.cgroup).unwrap())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("a container said:\n{}", self.output());
        }
        let _ = self.parent.kill();
        let _ = self.parent.wait();
        for _ in 0..200 {
            if std::fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Where cgroup v2 is mounted.
fn cgroup_root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
    let path = mount.and_then(|line| line.split(' ').nth(1));
    Path::new(path.expect("these tests need cgroup v2")).to_owned()
}
