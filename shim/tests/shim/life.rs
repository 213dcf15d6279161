//! Starting, waiting, signals and exit status.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::libc;

use crate::support::{
    Place, SHIM, SIDECAR, end_of, finish, listens, pid_in, publish, send, text, wait_for,
};

#[test]
fn without_a_sidecar_the_application_takes_the_shims_place() {
    let place = Place::with_bundle(&["a"]);
    for code in [0, 1, 42, 255] {
        let script = format!("exit {code}");
        let output = finish(&mut place.shim(&["--wait=a", "--", "sh", "-c", &script]));
        assert_eq!(output.status.code(), Some(code));
    }
    for signal in [libc::SIGSEGV, libc::SIGTERM, libc::SIGKILL] {
        let script = format!("kill -{signal} $$");
        let output = finish(&mut place.shim(&["--", "sh", "-c", &script]));
        assert_eq!(output.status.signal(), Some(signal));
    }
    let child = place.shim(&["--", "sh", "-c", "echo $$"]).spawn().unwrap();
    let pid = child.id().to_string();
    assert_eq!(text(&end_of(child).stdout).trim(), pid);
}

#[test]
fn beside_a_sidecar_the_exit_status_is_exact() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 42", 42),
        ("kill -SEGV $$", 139),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -34 $$", 162),
    ] {
        let options = [
            "--sidecar",
            "--sidecar-path",
            &sidecar,
            "--",
            "bash",
            "-c",
            script,
        ];
        let output = finish(&mut place.shim(&options));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{script}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn the_application_starts_with_the_first_complete_bundle_and_not_before() {
    let place = Place::new();
    let started = place.path("started");
    let script = format!("grep SigBlk /proc/self/status; touch {}", started.display());
    let child = place
        .shim(&["--wait=a,b", "--", "sh", "-c", &script])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert!(!started.exists(), "nothing is published");
    publish(&place.secrets(), "1", &["a"]);
    std::fs::write(place.secrets().join("b"), "").unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert!(!started.exists(), "b is not in the bundle");
    publish(&place.secrets(), "2", &["a", "b"]);
    let output = end_of(child);
    assert!(output.status.success() && started.exists());
    assert_eq!(text(&output.stdout), "SigBlk:\t0000000000000000\n");
}

/// The directory tells of every new name by a signal; none of them may strike the application.
#[test]
fn a_busy_directory_harms_nobody() {
    let place = Place::new();
    // Ends by itself, so that a failure below is not hidden by waiting for it.
    let until = Instant::now() + Duration::from_secs(2);
    let file = place.secrets().join("noise");
    let noise = std::thread::spawn(move || {
        while Instant::now() < until {
            std::fs::write(&file, "").unwrap();
            std::fs::remove_file(&file).unwrap();
        }
    });
    for generation in 0..40 {
        let _ = std::fs::remove_file(place.secrets().join("..data"));
        let child = place.shim(&["--", "true"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(10 + generation % 8));
        publish(&place.secrets(), &generation.to_string(), &[]);
        let output = end_of(child);
        assert!(
            output.status.success(),
            "{:?} {}",
            output.status,
            text(&output.stderr)
        );
    }
    noise.join().unwrap();
}

#[test]
fn the_wait_ends_when_the_directory_itself_comes_later() {
    let place = Place::new();
    std::fs::remove_dir(place.secrets()).unwrap();
    let child = place.shim(&["--", "true"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    std::fs::create_dir(place.secrets()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    publish(&place.secrets(), "1", &[]);
    assert!(end_of(child).status.success());
}

#[test]
fn the_time_runs_out() {
    let place = Place::with_bundle(&["a"]);
    let started = Instant::now();
    let output = finish(&mut place.shim(&["--timeout=200ms", "--wait=a,b,c", "--", "true"]));
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(output.status.code(), Some(69));
    let said = text(&output.stderr);
    assert!(said.contains("200ms: a bundle without b, c;"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn a_signal_stops_the_start_up() {
    let place = Place::new();
    let sidecar = place.script(
        "sidecar",
        "trap 'echo wiped > $PLACE/log; exit' TERM\ntouch $PLACE/up\nwhile :; do sleep 0.01; done",
    );
    for options in [&[][..], &["--sidecar", "--sidecar-path", &sidecar]] {
        let mut command = place.shim(options);
        let child = command.args(["--", "true"]).spawn().unwrap();
        listens(child.id() as i32);
        wait_for(|| options.is_empty() || place.path("up").exists());
        send(&child, libc::SIGUSR1);
        let sent = Instant::now();
        send(&child, libc::SIGTERM);
        assert_eq!(end_of(child).status.code(), Some(143));
        // And not at the end of the time that it has, half a minute.
        assert!(sent.elapsed() < Duration::from_secs(15));
    }
    assert_eq!(
        std::fs::read_to_string(place.path("log")).unwrap(),
        "wiped\n"
    );
}

#[test]
fn signals_reach_the_application() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let script = r#"
        for signal in HUP INT QUIT USR1 USR2 ALRM WINCH CONT ABRT URG PIPE 34 64; do
            trap "echo $signal >> $PLACE/got" $signal
        done
        trap 'exit 7' TERM
        touch $PLACE/ready
        while :; do sleep 0.01; done"#;
    let app = place.script("app", script).to_owned();
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", "bash", &app];
    let child = place.shim(&options).spawn().unwrap();
    wait_for(|| place.path("ready").exists());
    let sent = [
        (libc::SIGHUP, "HUP"),
        (libc::SIGINT, "INT"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
        (libc::SIGALRM, "ALRM"),
        (libc::SIGWINCH, "WINCH"),
        (libc::SIGCONT, "CONT"),
        (libc::SIGABRT, "ABRT"),
        (libc::SIGURG, "URG"),
        (libc::SIGPIPE, "PIPE"),
        (34, "34"),
        (64, "64"),
    ];
    let mut expected = String::new();
    for (number, name) in sent {
        send(&child, number);
        expected += &format!("{name}\n");
        let got = || std::fs::read_to_string(place.path("got")).unwrap_or_default();
        wait_for(|| got() == expected);
    }
    send(&child, libc::SIGTERM);
    assert_eq!(end_of(child).status.code(), Some(7));
}

/// Ctrl-C reaches the application once, from the terminal, and not again through the shim.
#[test]
fn a_terminals_signal_arrives_once() {
    use std::io::Write;
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        "trap 'echo INT >> $PLACE/got' INT\ntouch $PLACE/ready\n\
         while ! [ -e $PLACE/stop ]; do sleep 0.01; done\nexit 3",
    );
    let dir = place.secrets();
    // `script` hands this to a shell; `exec`, so that no shell stands between and dies of the key.
    let line = format!(
        "exec {SHIM} run --dir {} --sidecar --sidecar-path {sidecar} -- {app}",
        dir.display()
    );
    let mut command = std::process::Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .stdin(std::process::Stdio::piped());
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for(|| place.path("ready").exists());
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"\x03").unwrap();
    let got = || std::fs::read_to_string(place.path("got")).unwrap_or_default();
    wait_for(|| !got().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(got(), "INT\n");
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    assert!(!log.contains("wiped"), "the sidecar does not get it: {log}");
    std::fs::write(place.path("stop"), "").unwrap();
    assert_eq!(end_of(child).status.code(), Some(3));
}

/// Ctrl-Z stops both, so that the shell has its terminal back, and `fg` continues both.
#[test]
fn a_shells_job_stops_and_goes_on() {
    use std::io::Write;
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        "echo $$ > $PLACE/app.pid; echo $PPID > $PLACE/shim.pid\n\
         while ! [ -e $PLACE/stop ]; do sleep 0.01; done\nexit 3",
    );
    // With job control, as an interactive shell has it.
    let (path, dir) = (place.path(""), place.secrets());
    let shell = place.script(
        "shell",
        &format!(
            "set -m\n{SHIM} run --dir {} --sidecar --sidecar-path {sidecar} -- {app}\n\
             echo $? > $PLACE/stopped; while ! [ -e $PLACE/go ]; do sleep 0.01; done; fg",
            dir.display()
        ),
    );
    let mut command = std::process::Command::new("script");
    command
        .args(["-qec", &format!("exec {shell}"), "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let both = ["app.pid", "shim.pid"].map(|name| pid_in(&place, name));
    let are = |state: &str| {
        both.iter().all(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            status
                .unwrap_or_default()
                .contains(&format!("\nState:\t{state}"))
        })
    };
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"\x1a").unwrap();
    assert_eq!(pid_in(&place, "stopped"), 128 + libc::SIGTSTP);
    wait_for(|| are("T"));
    std::fs::write(path.join("go"), "").unwrap();
    wait_for(|| !are("T"));
    std::fs::write(path.join("stop"), "").unwrap();
    assert_eq!(end_of(child).status.code(), Some(3));
}

#[test]
fn who_kills_the_shim_kills_the_application_and_the_sidecar_wipes() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        "echo $$ > $PLACE/pid.new; mv $PLACE/pid.new $PLACE/pid; exec sleep 60",
    );
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let child = place.shim(&options).spawn().unwrap();
    wait_for(|| place.path("pid").exists());
    let pid = std::fs::read_to_string(place.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    send(&child, libc::SIGKILL);
    wait_for(|| mayfly_kernel::process::send_signal(pid, 0).is_err() || is_zombie(pid));
    wait_for(|| {
        std::fs::read_to_string(place.path("log"))
            .unwrap()
            .contains("wiped")
    });
    end_of(child);
}

fn is_zombie(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains("\nState:\tZ")
}

#[test]
fn what_cannot_be_started_is_told_as_a_shell_tells_it() {
    let place = Place::with_bundle(&[]);
    let sidecar = place.script("sidecar", SIDECAR);
    let not_executable = place.path("data");
    std::fs::write(&not_executable, "text").unwrap();
    let not_executable = not_executable.display().to_string();
    for sidecar in [&[][..], &["--sidecar", "--sidecar-path", &sidecar]] {
        for (program, code) in [
            ("/none", 127),
            ("no-such-name", 127),
            (not_executable.as_str(), 126),
            ("/", 126),
        ] {
            let output = finish(place.shim(sidecar).args(["--", program]));
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{said}");
            assert!(
                said.starts_with("mayfly-shim: cannot ") && said.contains(program),
                "{said}"
            );
        }
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_help() {
    let place = Place::new();
    let output = finish(&mut place.shim(&["--bogus"]));
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("--bogus"));
    let help = std::process::Command::new(SHIM)
        .arg("--help")
        .output()
        .unwrap();
    assert!(help.status.success() && text(&help.stdout).contains("Example"));
    let version = std::process::Command::new(SHIM)
        .arg("--version")
        .output()
        .unwrap();
    assert!(version.status.success() && text(&version.stdout).starts_with("mayfly-shim 0."));
}
