//! As a container's first process.

use std::process::{Command, Stdio};

use nix::libc;

use crate::support::{Place, SHIM, SIDECAR, end_of, listens, send, text, wait_for};

/// The shim as PID 1 of a new pid namespace, with its own `/proc`.
fn first(place: &Place, options: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", SHIM, "run", "--dir"]);
    command.arg(place.secrets()).args(options);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The child of `unshare`: the shim, seen from outside.
fn shim_of(unshare: u32) -> Option<i32> {
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let pid: i32 = std::fs::read_to_string(children)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.starts_with("mayfly-shim").then_some(pid)
}

#[test]
fn orphans_are_reaped() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        // Who is not reaped is there for ever.
        ": > $PLACE/orphans\n\
         for i in 1 2 3 4 5; do (sh -c 'echo $$ >> '$PLACE'/orphans; exec sleep 0.05' &); done\n\
         left() { for pid in $(cat $PLACE/orphans); do [ ! -e /proc/$pid ] || echo $pid; done; }\n\
         for i in $(seq 500); do\n\
         [ $(wc -l < $PLACE/orphans) = 5 ] && [ -z \"$(left)\" ] && break; sleep 0.02\n\
         done\n\
         echo pid $$ of $PPID; left; wc -l < $PLACE/orphans; exit 5",
    );
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let output = end_of(first(&place, &options).spawn().unwrap());
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.ends_with(" of 1\n5\n"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        std::fs::read_to_string(place.path("log"))
            .unwrap()
            .ends_with("wiped\n")
    );
}

/// A PID 1 without handlers never gets such a signal; the shim must.
#[test]
fn a_stop_signal_ends_the_start_up() {
    let place = Place::new();
    let child = first(&place, &["--", "true"]).spawn().unwrap();
    wait_for(|| shim_of(child.id()).is_some());
    let shim = shim_of(child.id()).unwrap();
    listens(shim);
    mayfly_kernel::process::send_signal(shim, libc::SIGTERM).unwrap();
    assert_eq!(end_of(child).status.code(), Some(143));
}

/// Whoever makes a container may block signals so that the kernel keeps what comes before the shim listens.
/// None is lost, and the application has none blocked, also where there is nothing to wait for.
#[test]
fn what_came_before_it_counts_and_nothing_stays_blocked() {
    let place = Place::with_bundle(&["a"]);
    let begun = |script: &str, application: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc"]);
        command.args([
            "env",
            "--block-signal=TERM",
            "sh",
            "-c",
            script,
            SHIM,
            "run",
        ]);
        command.arg("--dir").arg(place.secrets()).arg("--");
        command.args(application).stdout(Stdio::piped());
        end_of(command.stderr(Stdio::piped()).spawn().unwrap())
    };
    let output = begun(
        r#"exec "$0" "$@""#,
        &["grep", "SigBlk", "/proc/self/status"],
    );
    assert_eq!(text(&output.stdout), "SigBlk:\t0000000000000000\n");
    let output = begun(r#"kill -TERM $$; exec "$0" "$@""#, &["echo", "started"]);
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn a_stop_signal_reaches_the_application() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        "trap 'exit 9' TERM\ntouch $PLACE/ready\nwhile :; do sleep 0.01; done",
    );
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let child = first(&place, &options).spawn().unwrap();
    wait_for(|| place.path("ready").exists());
    let shim = shim_of(child.id()).unwrap();
    mayfly_kernel::process::send_signal(shim, libc::SIGTERM).unwrap();
    assert_eq!(end_of(child).status.code(), Some(9));
}

/// What a container engine shows for a process that was killed.
#[test]
fn a_killed_application_is_137() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let options = [
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        "sh",
        "-c",
        "kill -9 $$",
    ];
    let output = end_of(first(&place, &options).spawn().unwrap());
    assert_eq!(output.status.code(), Some(137));
}

/// An empty image: no `/proc`, no `/dev`, no libraries, no shell. The shim is its own application.
#[test]
fn an_empty_root_is_enough() {
    let place = Place::new();
    let root = place.path("root");
    std::fs::create_dir_all(root.join("run/secrets/..1")).unwrap();
    std::os::unix::fs::symlink("..1", root.join("run/secrets/..data")).unwrap();
    for name in ["root/mayfly-shim", "root/app"] {
        place.program(name, &std::fs::read(SHIM).unwrap());
    }
    let run = |user: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--root"]).arg(&root);
        command.args([
            "/mayfly-shim",
            "run",
            user,
            "--drop-caps",
            "--",
            "/app",
            "--version",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        end_of(command.spawn().unwrap())
    };
    let output = run("--user=1000:1000");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("mayfly-shim "));
}

/// Not PID 1, under an init that is: signals and status still pass.
#[test]
fn under_an_init_it_is_transparent() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let app = place.script(
        "app",
        "trap 'exit 9' TERM\ntouch $PLACE/ready\nwhile :; do sleep 0.01; done",
    );
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let child = place.shim(&options).spawn().unwrap();
    wait_for(|| place.path("ready").exists());
    send(&child, libc::SIGTERM);
    assert_eq!(end_of(child).status.code(), Some(9));
}
