//! Telling the application: each way, debounced, tried again.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, value};
use mayfly_wire::PublishFault;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A program that notes each call, with what it was given.
pub fn program(sandbox: &Sandbox, last: &str) -> (PathBuf, PathBuf) {
    let calls = sandbox.base().join("calls");
    let script = format!(
        "#!/bin/sh\necho \"$* $MAYFLY_GENERATION $MAYFLY_CHANGED\" >> {}\nenv | sort > {}.env\n{last}\n",
        calls.display(),
        calls.display(),
    );
    (sandbox.program("reload", script.as_bytes()), calls)
}

pub fn lines(path: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_command_hears_of_what_changed_and_only_of_that() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(&sandbox, "");
    let config = sandbox.config(&format!(
        "[[notify]]\non = [\"a\"]\ncommand = [{program:?}, \"one\", \"two words\"]\ndebounce = \"150ms\"\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1"), value("b", "1")]);
    peer.publish(&[value("a", "1"), value("b", "2")]);
    std::thread::sleep(Duration::from_millis(400));
    assert!(
        lines(&calls).is_empty(),
        "of the first set nobody is told, nor of b"
    );
    // Changes that come together are told together.
    let start = Instant::now();
    for number in 0..10 {
        peer.publish(&[value("a", format!("secret-{number}")), value("b", "2")]);
    }
    sidecar.says("told the application how=\"command");
    let generation = fs::read_link(sandbox.dir().join("..data")).unwrap();
    let told = lines(&calls);
    let most = start.elapsed().as_millis() / 150;
    assert!(told.len() as u128 <= most, "{told:?}, not {most}");
    assert!(
        told[0].starts_with("one two words ..gen-") && told[0].ends_with(" a"),
        "{told:?}"
    );
    eventually("the last generation is told", || {
        lines(&calls)
            .last()
            .unwrap()
            .contains(generation.to_str().unwrap())
    });
    let variables = fs::read_to_string(calls.with_extension("env")).unwrap();
    let names: Vec<_> = variables
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    let ours = ["MAYFLY_CHANGED", "MAYFLY_DIR", "MAYFLY_GENERATION", "PATH"];
    let shells = ["PWD", "OLDPWD", "SHLVL", "_"];
    assert!(
        names
            .iter()
            .all(|name| ours.contains(name) || shells.contains(name)),
        "{names:?}"
    );
    assert!(!variables.contains("secret-"));
    // What goes is a change too.
    let before = lines(&calls).len();
    peer.withdraw("a");
    eventually("told of the withdrawal", || lines(&calls).len() > before);
}

#[test]
fn a_failure_is_seen_tried_again_and_given_up() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(&sandbox, "test -e $(dirname $0)/good || exit 3");
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"0ms\"\nattempts = 2\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    sidecar.says("gave up telling the application");
    let report = server.report("204 No Content");
    assert_eq!((report.generation, report.code), (2, PublishFault::NotTold));
    assert!(report.detail.as_str().contains("ended with 3"));
    // Each attempt is told the same.
    let told = lines(&calls);
    assert!(
        told.len() == 2 && told[0] == told[1] && told[0].ends_with(" a"),
        "{told:?}"
    );
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("ended with 3"), "{said}");
    // The next change begins anew.
    fs::write(sandbox.base().join("good"), "").unwrap();
    peer.publish(&[value("a", "3")]);
    sidecar.says("told the application");
    eventually("it is well again", || sandbox.ask(&["health"]).1 == 0);
}

#[test]
fn a_broker_that_is_away_hears_later_that_nobody_was_told() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, _) = program(&sandbox, "exit 3");
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"0ms\"\nattempts = 2\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    sidecar.says("could not tell the application");
    drop((peer, server));
    sidecar.says("gave up telling the application");
    let server = Server::bind(&sandbox.socket());
    let _peer = server.session();
    assert_eq!(server.report("204 No Content").code, PublishFault::NotTold);
}

#[test]
fn a_program_that_others_can_write_is_not_run() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(&sandbox, "");
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"1ms\"\nattempts = 1\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    let mut asked = 0;
    for (mode, owner, good) in [
        (0o755, 0, true),
        (0o775, 0, false),
        (0o757, 0, false),
        (0o755, 1234, false),
        // It can be run without being read.
        (0o711, 0, true),
    ] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&program, Some(owner), None).unwrap();
        asked += 1;
        let run = lines(&calls).len();
        peer.publish(&[value("a", format!("next {asked}"))]);
        let why = "nobody but root and the sidecar's own user can write";
        let refused = || sidecar.log().matches(why).count();
        eventually("it is tried", || lines(&calls).len() + refused() == asked);
        assert_eq!(lines(&calls).len() > run, good, "{mode:o} {owner}");
    }
}

#[test]
fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(
        &sandbox,
        "sleep 1000 & echo sleeper $! >> $(dirname $0)/calls; wait",
    );
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ntimeout = \"300ms\"\nattempts = 1\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    // On a busy machine it may be ended before it comes so far.
    let sleeper = (2..50).find_map(|number| {
        peer.publish(&[value("a", number.to_string())]);
        let slow = || sidecar.log().matches("it took longer than 300ms").count();
        eventually("it takes too long", || slow() == number - 1);
        let mut told = lines(&calls).into_iter();
        told.find_map(|line| Some(line.strip_prefix("sleeper ")?.to_owned()))
    });
    let sleeper = sleeper.unwrap();
    eventually("its child is gone", || {
        let stat = fs::read_to_string(format!("/proc/{sleeper}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
    // The sidecar itself was not held up.
    peer.ping();
}

#[test]
fn the_parent_is_signalled() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let heard = sandbox.base().join("heard");
    let config = sandbox.config(
        "[application]\nprocess = \"parent\"\n[[notify]]\nsignal = \"USR1\"\ndebounce = \"1ms\"\n",
    );
    // A parent that lives and notes signals.
    let script = format!(
        "trap 'echo usr1 >> {}' USR1; \"$@\" & while :; do wait; done",
        heard.display()
    );
    let mut parent = std::process::Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mayfly-sidecar")])
        .args(["--config", &config, "--dir"])
        .arg(sandbox.dir())
        .arg("--socket")
        .arg(sandbox.socket())
        .spawn()
        .unwrap();
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    for (number, content) in ["2", "3", "4"].iter().enumerate() {
        peer.publish(&[value("a", content)]);
        eventually("a signal", || lines(&heard).len() == number + 1);
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    // The sidecar has another parent now, which is none of the application's: see `pkill` nowhere.
    drop(peer);
    let mut orphan = server.session();
    orphan.publish(&[value("a", "4")]);
    let pid = alive(&sandbox);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

#[test]
fn process_one_of_a_shared_pid_namespace_is_signalled() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let [heard, ready] = ["heard", "ready"].map(|name| sandbox.base().join(name));
    let config = sandbox.config(
        "[application]\nprocess = \"init\"\n[[notify]]\nsignal = \"HUP\"\ndebounce = \"1ms\"\n",
    );
    // The application is process 1, and the sidecar, as a companion would, joins its namespace.
    let script = format!(
        "trap 'echo hup >> {}' HUP; echo ready > {}; while :; do sleep 0.05; done",
        heard.display(),
        ready.display()
    );
    let mut application = std::process::Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ])
        .spawn()
        .unwrap();
    eventually("the application heeds signals", || {
        !lines(&ready).is_empty()
    });
    let init = {
        let children = format!("/proc/{0}/task/{0}/children", application.id());
        let text = fs::read_to_string(&children).unwrap();
        text.trim().to_owned()
    };
    let mut sidecar = std::process::Command::new("nsenter")
        .args([
            "--target",
            &init,
            "--pid",
            "--",
            env!("CARGO_BIN_EXE_mayfly-sidecar"),
        ])
        .args(["--config", &config, "--dir"])
        .arg(sandbox.dir())
        .arg("--socket")
        .arg(sandbox.socket())
        .spawn()
        .unwrap();
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    for (number, content) in ["2", "3", "4"].iter().enumerate() {
        peer.publish(&[value("a", content)]);
        eventually("a signal", || lines(&heard).len() == number + 1);
    }
    application.kill().unwrap();
    application.wait().unwrap();
    // Its namespace ends, and the sidecar with it.
    let mut ended = None;
    eventually("the sidecar ends", || {
        ended = sidecar.try_wait().unwrap();
        ended.is_some()
    });
}

/// The pid of the process that publishes into the sandbox.
fn alive(sandbox: &Sandbox) -> i32 {
    let wanted = sandbox.dir().into_os_string().into_string().unwrap();
    let mut found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (line.contains("mayfly-sidecar\0") && line.contains(&wanted)).then_some(pid)
    });
    found.next().unwrap()
}

#[test]
fn http_is_asked_and_redirections_are_not_followed() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    let config = sandbox.config(&format!(
        "[[notify]]\nhttp = \"http://{address}/-/reload?x=1\"\ndebounce = \"1ms\"\nattempts = 3\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    for answer in [
        "302 Found\r\nlocation: http://127.0.0.1:1/",
        "500 Oh",
        "204 No Content",
    ] {
        let (stream, _) = http.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).unwrap();
        }
        assert!(
            head.starts_with("POST /-/reload?x=1 HTTP/1.1\r\n"),
            "{head}"
        );
        let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
    }
    sidecar.says("answered 302");
    sidecar.says("answered 500");
    sidecar.says("told the application how=\"http://127.0.0.1:");
}

#[test]
fn without_a_shim_nobody_restarts_and_that_is_said() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config = sandbox
        .config("[application]\nprocess = \"init\"\n[[notify]]\nrestart = true\nattempts = 1\n");
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    sidecar.says("nobody restarts the application");
}

#[test]
fn what_a_killed_sidecar_did_not_tell_the_next_one_tells() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(&sandbox, "test -e $(dirname $0)/good || exit 3");
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"0ms\"\n"
    ));
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    sidecar.says("could not tell the application");
    sidecar.kill();
    fs::write(sandbox.base().join("good"), "").unwrap();
    let before = lines(&calls).len();
    let mut sidecar = sandbox.start(&["--config", &config]);
    sidecar.says("told the application");
    let mut peer = server.session();
    peer.publish(&[value("a", "2")]);
    assert_eq!(lines(&calls).len(), before + 1);
    // And what was told is not told again.
    eventually("its status says so", || {
        sandbox.status()["status"]["notify"][0]["state"] == "idle"
    });
    sidecar.kill();
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "2")]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lines(&calls).len(), before + 1);
}

#[test]
fn nothing_is_left_running_when_it_ends() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(&sandbox, "echo $$ >> $(dirname $0)/calls; exec sleep 1000");
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"1ms\"\n"
    ));
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    eventually("the command runs", || lines(&calls).len() == 2);
    let pid = lines(&calls)[1].clone();
    assert!(sidecar.terminate().success());
    eventually("it is gone", || {
        fs::metadata(format!("/proc/{pid}")).is_err()
    });
    assert!(sandbox.names().is_empty());
    let mut rest = Vec::new();
    let _ = fs::File::open(&calls).unwrap().read_to_end(&mut rest);
    assert!(!rest.is_empty());
}

#[test]
fn it_ends_with_the_application_that_it_follows() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let name = format!("job-{}", std::process::id() % 100_000);
    let program = sandbox.program(&name, &fs::read("/bin/sleep").unwrap());
    let config = sandbox.config(&format!(
        "[application]\nprocess = \"name:{name}\"\nexit_with = true\n"
    ));
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    // It has not started yet: that is no end.
    std::thread::sleep(Duration::from_millis(700));
    assert!(sandbox.has("a"));
    let mut job = std::process::Command::new(&program)
        .arg("1000")
        .spawn()
        .unwrap();
    // For a moment it holds every process, while it looks for this one.
    for _ in 0..2 {
        eventually("it is followed", || holds(sidecar.pid(), job.id()));
        std::thread::sleep(Duration::from_millis(50));
    }
    job.kill().unwrap();
    job.wait().unwrap();
    assert_eq!(sidecar.wait().code(), Some(0));
    sidecar.says("the application has ended");
    assert!(sandbox.names().is_empty());
}

/// Whether one process has a pidfd of the other (proc_pid_fdinfo(5)).
fn holds(holder: u32, held: u32) -> bool {
    let wanted = format!("Pid:\t{held}");
    let mut entries = fs::read_dir(format!("/proc/{holder}/fdinfo")).unwrap();
    entries.any(|entry| {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        text.lines().any(|line| line == wanted)
    })
}
