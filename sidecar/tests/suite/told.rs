//! Real applications: one that reloads on SIGHUP, one that polls, one that watches with inotify. Each
//! goes through rotations, and none ever sees two generations at once.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, fields, value};
use std::fs;
use std::process::{Child, Command};

const ROTATIONS: u32 = 50;

/// Python, because it is what such services are written in. Each opens `..data` once and reads all
/// through that descriptor, and writes down what it saw. What it read longer than a replaced generation
/// is kept for is no word about anything, and read again.
const COMMON: &str = r#"
import ctypes, os, signal, struct, sys, time
folder, log = sys.argv[1], open(sys.argv[2], 'a', buffering=1)

def look():
    data = os.open(folder + '/..data', os.O_RDONLY | os.O_DIRECTORY)
    try:
        def read(name):
            with open(os.open(name, os.O_RDONLY, dir_fd=data)) as file:
                return file.read()
        return {read('token'), read('db/password'), read('db.json').split('"')[3]}
    finally:
        os.close(data)

def load():
    while True:
        start = time.monotonic()
        try:
            seen = look()
        except (OSError, IndexError) as error:
            seen = {'a file', str(error)}
        if time.monotonic() - start < 0.9:
            break
    log.write(('whole ' if len(seen) == 1 else 'TORN ') + ' '.join(sorted(seen)) + '\n')
"#;

/// It waits for the signal without a handler: Python runs one only before the next thing that it does, and
/// a signal right before `pause` would be slept on.
const ON_SIGHUP: &str = r"
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
load()
while True:
    signal.sigwait({signal.SIGHUP})
    load()
";

const POLLING: &str = r"
last = None
while True:
    now = os.readlink(folder + '/..data')
    if now != last:
        last = now
        load()
    time.sleep(0.005)
";

const WATCHING: &str = r"
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(0)
MOVED_TO = 0x80
assert libc.inotify_add_watch(watch, folder.encode(), MOVED_TO) >= 0
load()
while True:
    events = os.read(watch, 65536)
    if b'..data\0' in events:
        load()
";

struct Application {
    child: Child,
    log: std::path::PathBuf,
}

impl Application {
    fn start(sandbox: &Sandbox, name: &str, body: &str) -> Self {
        let program = sandbox.base().join(format!("{name}.py"));
        let log = sandbox.base().join(format!("{name}.log"));
        fs::write(&program, format!("{COMMON}{body}")).unwrap();
        let mut command = Command::new("python3");
        command.arg(&program).arg(sandbox.dir()).arg(&log);
        Self {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn seen(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn last(&self) -> String {
        self.seen().pop().unwrap_or_default()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn applications_follow_every_rotation() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    // The name of its program tells python from python: the one that reloads is called by its own.
    let name = format!("svc-{}", std::process::id() % 100_000);
    let find = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = String::from_utf8(find.unwrap().stdout).unwrap();
    let config = sandbox.config(&format!(
        "[application]\nprocess = \"name:{name}\"\n\
         [[notify]]\nsignal = \"HUP\"\ndebounce = \"2ms\"\n\
         [[output]]\ncredential = \"json\"\nfile = \"db.json\"\nformat = \"json\"\n"
    ));
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    let set = |round: u32| {
        let text = format!("secret-{round:0>40}");
        [
            fields("db", &[("password", text.as_bytes())]),
            fields("json", &[("password", text.as_bytes())]),
            value("token", &text),
        ]
    };
    peer.publish(&set(0));
    let polling = Application::start(&sandbox, "polling", POLLING);
    let watching = Application::start(&sandbox, "watching", WATCHING);
    // A process's name is that of the file that it executes, and a script's that of the script.
    let own = format!("#!{python}{COMMON}{ON_SIGHUP}");
    let own = sandbox.program(&name, own.as_bytes());
    let log = sandbox.base().join("reloading.log");
    let reloading = Application {
        child: Command::new(&own)
            .arg(sandbox.dir())
            .arg(&log)
            .spawn()
            .unwrap(),
        log,
    };
    for round in 0..=ROTATIONS {
        peer.publish(&set(round));
        let expected = format!("whole secret-{round:0>40}");
        for application in [&polling, &watching, &reloading] {
            eventually(&expected, || application.last() == expected);
        }
    }
    // As fast as they can.
    for round in 1_000..1_300 {
        peer.publish(&set(round));
    }
    let expected = format!("whole secret-{:0>40}", 1_299);
    for application in [&polling, &watching, &reloading] {
        eventually(&expected, || application.last() == expected);
        let seen = application.seen();
        assert!(seen.len() > ROTATIONS as usize);
        assert!(
            seen.iter().all(|line| line.starts_with("whole ")),
            "{seen:?}"
        );
    }
    let seen = [&polling, &watching, &reloading].map(|application| application.seen().len());
    println!("loads while polling, watching, reloading: {seen:?}");
}
