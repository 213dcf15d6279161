//! Starting the shim, and what it waits for.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SHIM: &str = env!("CARGO_BIN_EXE_mayfly-shim");

/// A directory of its own, gone at the end.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mayfly-shim-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("secrets")).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn secrets(&self) -> PathBuf {
        self.path("secrets")
    }

    /// A place with a complete bundle.
    pub fn with_bundle(names: &[&str]) -> Self {
        let place = Self::new();
        publish(&place.secrets(), "1", names);
        place
    }

    /// An executable shell script, with `$DIR` for the secrets and `$PLACE` for this place.
    pub fn script(&self, name: &str, body: &str) -> String {
        let (place, dir) = (self.0.display(), self.secrets());
        let dir = dir.display();
        let text = format!("#!/bin/bash\nPLACE={place} DIR={dir}\n{body}\n");
        let path = self.program(name, text.as_bytes());
        path.display().to_string()
    }

    /// An executable file. It is another process that writes it: what a thread of ours has open for
    /// writing, every child has open that another test starts just then, and as long as one has, the
    /// file cannot be executed.
    pub fn program(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
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

    /// `mayfly-shim run` for this place's secrets, with these options.
    pub fn shim(&self, options: &[&str]) -> Command {
        let mut command = Command::new(SHIM);
        command
            .args(["run", "--dir"])
            .arg(self.secrets())
            .args(options);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Publishes as the sidecar does: a generation, and a link to it made by rename.
pub fn publish(dir: &Path, generation: &str, names: &[&str]) {
    let directory = dir.join(format!("..{generation}"));
    std::fs::create_dir(&directory).unwrap();
    for name in names {
        std::fs::write(directory.join(name), "value").unwrap();
    }
    symlink(format!("..{generation}"), dir.join("..new")).unwrap();
    std::fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
}

/// A sidecar's script: publishes, waits for SIGTERM, and wipes.
pub const SIDECAR: &str = r#"
trap 'rm -rf "$DIR"/..data "$DIR"/..1; echo wiped >> "$PLACE"/log; exit 0' TERM
echo "started $*" >> "$PLACE"/log
mkdir -p "$DIR"/..1; echo value > "$DIR"/..1/a; ln -sfn ..1 "$DIR"/..data
while :; do sleep 0.01; done
"#;

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to the end, within half a minute.
pub fn finish(command: &mut Command) -> Output {
    end_of(command.spawn().unwrap())
}

/// Waits for the end, at most half a minute.
pub fn end_of(mut child: Child) -> Output {
    wait_for(|| child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

/// Waits until something holds, at most half a minute.
pub fn wait_for(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "it did not come to hold in half a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The pid that a script wrote to a file of the place.
pub fn pid_in(place: &Place, name: &str) -> i32 {
    let read = || std::fs::read_to_string(place.path(name)).unwrap_or_default();
    wait_for(|| read().ends_with('\n'));
    read().trim().parse().unwrap()
}

/// Whether a process is there and no zombie.
pub fn lives(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("\nState:\tZ")
}

/// Waits until a process has taken signals over, as the shim does: from then on none is lost, nor strikes.
pub fn listens(pid: i32) {
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let blocks_sigterm = |mask: &str| {
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        mask & (1 << (nix::libc::SIGTERM - 1)) != 0
    };
    wait_for(|| {
        let status = status();
        let mut masks = status
            .lines()
            .filter_map(|line| line.strip_prefix("SigBlk:"));
        masks.any(blocks_sigterm)
    });
}

pub fn send(child: &Child, signal: i32) {
    mayfly_kernel::process::send_signal(child.id() as i32, signal).unwrap();
}
