//! Starting, restarting and ending the sidecar.

use std::time::{Duration, Instant};

use crate::support::{Place, SHIM, SIDECAR, end_of, finish, publish, text, wait_for};

fn log(place: &Place) -> String {
    std::fs::read_to_string(place.path("log")).unwrap_or_default()
}

#[test]
fn it_gets_its_arguments_and_wipes_before_the_end() {
    let place = Place::new();
    let sidecar = place.script("sidecar", SIDECAR);
    let options = [
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--sidecar-arg=--socket",
        "--sidecar-arg",
        "/w",
        "--wait=a",
        "--",
        "cat",
    ];
    let file = place.secrets().join("..data/a");
    let output = finish(place.shim(&options).arg(&file));
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "value\n");
    let dir = place.secrets();
    let expected = format!(
        "started --shim --dir {} --socket /w --awaited=a\nwiped\n",
        dir.display()
    );
    assert_eq!(log(&place), expected);
    assert!(!file.exists());
}

#[test]
fn it_stands_beside_the_shim_if_nothing_else_is_said() {
    let place = Place::new();
    place.script("mayfly-sidecar", SIDECAR);
    let shim = place.program("mayfly-shim", &std::fs::read(SHIM).unwrap());
    let mut command = std::process::Command::new(&shim);
    command
        .args(["run", "--sidecar", "--dir"])
        .arg(place.secrets())
        .args(["--", "true"]);
    assert!(finish(&mut command).status.success());
    assert!(log(&place).ends_with("wiped\n"));
}

#[test]
fn one_that_dies_early_is_started_again() {
    let place = Place::new();
    let sidecar = place.script(
        "sidecar",
        &format!(
            "echo try >> $PLACE/log\n[ $(grep -c try $PLACE/log) -lt 4 ] && exit 1\n{SIDECAR}"
        ),
    );
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", "true"];
    assert!(finish(&mut place.shim(&options)).status.success());
    assert_eq!(log(&place).matches("try").count(), 4);
}

#[test]
fn one_that_never_publishes_runs_out_of_time() {
    let place = Place::new();
    let sidecar = place.script("sidecar", "echo try >> $PLACE/log; exit 1");
    // The first is long enough for several tries, unless the machine is too busy.
    for timeout in ["--timeout=1s", "--timeout=20s"] {
        let with = ["--sidecar", "--sidecar-path", &sidecar, "--", "true"];
        let output = finish(&mut place.shim(&[&[timeout][..], &with].concat()));
        assert_eq!(output.status.code(), Some(69));
        let tries = log(&place).lines().count();
        let said = text(&output.stderr);
        let ended = said.matches("the sidecar ended (exit status: 1) and is started again");
        assert!(ended.count().abs_diff(tries) <= 1, "{said}");
        assert!(tries < 50, "it backs off: {tries}");
        if tries > 1 {
            return;
        }
        std::fs::remove_file(place.path("log")).unwrap();
    }
    panic!("it is not started again");
}

#[test]
fn a_refused_set_up_ends_at_once() {
    let place = Place::new();
    for code in [64, 78] {
        let sidecar = place.script("sidecar", &format!("echo not a tmpfs >&2; exit {code}"));
        let options = ["--sidecar", "--sidecar-path", &sidecar, "--", "true"];
        let started = Instant::now();
        let output = finish(&mut place.shim(&options));
        // Without a bundle, it would otherwise wait for half a minute.
        assert!(started.elapsed() < Duration::from_secs(15));
        assert_eq!(output.status.code(), Some(code));
        let said = text(&output.stderr);
        assert!(
            said.starts_with("not a tmpfs\nmayfly-shim: the sidecar refused"),
            "{said}"
        );
    }
    let output = finish(&mut place.shim(&["--sidecar", "--sidecar-path=/none", "--", "true"]));
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("/none"));
}

#[test]
fn one_that_dies_later_is_started_again() {
    let place = Place::new();
    let sidecar = place.script("sidecar", &format!("echo $$ >> $PLACE/pids\n{SIDECAR}"));
    let app = "touch $PLACE/runs; while ! [ -e $PLACE/stop ]; do sleep 0.01; done";
    let app = place.script("app", app);
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let child = place.shim(&options).spawn().unwrap();
    wait_for(|| place.path("runs").exists());
    let pids = || std::fs::read_to_string(place.path("pids")).unwrap_or_default();
    for lives in 1..4 {
        wait_for(|| log(&place).matches("started").count() == lives);
        let pid = pids().lines().last().unwrap().parse().unwrap();
        mayfly_kernel::process::send_signal(pid, nix::libc::SIGKILL).unwrap();
    }
    wait_for(|| log(&place).matches("started").count() == 4);
    std::fs::write(place.path("stop"), "").unwrap();
    assert!(end_of(child).status.success());
    let log = log(&place);
    assert!(log.ends_with("wiped\n"));
    // From then on there is somebody to tell.
    let (first, later) = log.split_once('\n').unwrap();
    assert!(
        first.ends_with(" --awaited=") && !later.contains("--awaited"),
        "{log}"
    );
}

#[test]
fn one_that_does_not_end_is_killed_after_the_grace() {
    let place = Place::new();
    let sidecar = place.script(
        "sidecar",
        "trap '' TERM\necho $$ > $PLACE/pid\nmkdir $DIR/..1; ln -s ..1 $DIR/..data\n\
         while :; do sleep 0.01; done",
    );
    let options = [
        "--grace=300ms",
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        "false",
    ];
    let started = Instant::now();
    let output = finish(&mut place.shim(&options));
    assert_eq!(
        output.status.code(),
        Some(1),
        "the application's status, all the same"
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(text(&output.stderr).contains("was killed"));
    let pid: i32 = std::fs::read_to_string(place.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    wait_for(|| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        state.is_empty() || state.contains("\nState:\tZ")
    });
}

/// A restarted container may find what its last life left, if that was killed before it wiped.
#[test]
fn what_an_earlier_life_left_is_not_a_first_bundle() {
    let place = Place::new();
    publish(&place.secrets(), "old", &["a"]);
    let sidecar = place.script(
        "sidecar",
        &format!("sleep 0.3\ntouch $PLACE/now\n{SIDECAR}"),
    );
    let options = [
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--wait=a",
        "--",
        "ls",
    ];
    let output = finish(place.shim(&options).arg(place.path("now")));
    assert!(
        output.status.success(),
        "it waited for the new one: {}",
        text(&output.stderr)
    );
}

#[test]
fn once_is_not_repeated() {
    let place = Place::new();
    let sidecar = place.script(
        "sidecar",
        "echo started >> $PLACE/log\nmkdir $DIR/..1; ln -s ..1 $DIR/..data",
    );
    let options = [
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--sidecar-arg=--once",
        "--",
        "sleep",
        "0.5",
    ];
    assert!(finish(&mut place.shim(&options)).status.success());
    assert_eq!(log(&place), "started\n");
}

/// What no sidecar wipes at the end, the shim does; a frozen one is thawed for it.
#[test]
fn nothing_readable_is_left_whatever_became_of_the_sidecar() {
    use std::io::Read;
    const PUBLISH: &str = "trap 'echo wiped > $PLACE/log; exit 1' TERM\necho $$ > $PLACE/pid\n\
        mkdir $DIR/..gen-1; echo value > $DIR/..gen-1/a; chmod 0400 $DIR/..gen-1/a\n\
        echo \"a $(date +%s000000) $(date +%s000000) remove\" > $DIR/..gen-1/..expiry\n\
        ln -s ..gen-1 $DIR/..data; ";
    for (option, stays, act, heard) in [
        (
            "--wait=a",
            "while :; do sleep 0.01; done",
            "kill -STOP",
            true,
        ),
        (
            "--wait=a",
            "while :; do sleep 0.01; done",
            "rm $PLACE/sidecar; kill -KILL",
            false,
        ),
        ("--sidecar-arg=--once", "exit 0", "true", false),
    ] {
        let place = Place::new();
        let sidecar = place.script("sidecar", &format!("{PUBLISH}{stays}"));
        let app = place.script(
            "app",
            &format!("touch $PLACE/up; while ! [ -e $PLACE/stop ]; do sleep 0.01; done\n{act} $(cat $PLACE/pid)"),
        );
        let with = ["--grace=20s", "--sidecar", "--sidecar-path"];
        let options = [&with[..], &[&sidecar, option, "--", &app]].concat();
        let child = place.shim(&options).spawn().unwrap();
        wait_for(|| place.path("up").exists());
        let mut held = std::fs::File::open(place.secrets().join("..data/a")).unwrap();
        std::fs::write(place.path("stop"), "").unwrap();
        let begun = Instant::now();
        let output = end_of(child);
        let said = text(&output.stderr);
        assert!(begun.elapsed() < Duration::from_secs(15), "{said}");
        let mut bytes = Vec::new();
        held.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 6], "{act}: {said}");
        assert!(!place.secrets().join("..gen-1/a").exists());
        assert!(said.contains("wiped what was left there: a"), "{said}");
        assert_eq!(place.path("log").exists(), heard);
    }
}

/// What the sidecar says on stdout does not mix with what the application says.
#[test]
fn stdout_is_the_applications() {
    let place = Place::new();
    let sidecar = place.script("sidecar", &format!("echo chatter\n{SIDECAR}"));
    let options = [
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        "echo",
        "hello",
    ];
    let output = finish(&mut place.shim(&options));
    assert_eq!(text(&output.stdout), "hello\n");
    assert!(text(&output.stderr).contains("chatter"));
}
