//! What the sidecar asks of the shim on its standard input, and what ends an application.

use std::process::Child;
use std::time::{Duration, Instant};

use nix::libc;

use crate::support::{Place, SIDECAR, end_of, lives, pid_in, send, text, wait_for};

/// Publishes; then asks what stands in `$PLACE/ask`, as often as there is one, and notes the answers.
const ASKING: &str = r#"
trap 'rm -rf "$DIR"/..data "$DIR"/..1; exit 0' TERM
mkdir -p "$DIR"/..1; ln -sfn ..1 "$DIR"/..data
while :; do
    if [ -e "$PLACE"/ask ]; then
        cat "$PLACE"/ask >&0; rm "$PLACE"/ask
        read -r answer; echo "$answer" >> "$PLACE"/answers
    fi
    sleep 0.01
done
"#;

/// One line for each life; ends with 7 when it is told to.
const APP: &str = "trap 'exit 7' TERM\ntrap 'echo HUP >> $PLACE/lives' HUP\n\
                   echo $$ >> $PLACE/lives\nwhile :; do sleep 0.01; done";

fn read(place: &Place, name: &str) -> String {
    std::fs::read_to_string(place.path(name)).unwrap_or_default()
}

fn lives_of(place: &Place) -> usize {
    read(place, "lives")
        .lines()
        .filter(|line| *line != "HUP")
        .count()
}

fn start(place: &Place, options: &[&str], app: &str) -> Child {
    let sidecar = place.script("sidecar", ASKING);
    let app = place.script("app", app);
    let with = ["--sidecar", "--sidecar-path", &sidecar];
    place
        .shim(&[&with, options, &["--", &app]].concat())
        .spawn()
        .unwrap()
}

fn ask(place: &Place, what: &str) {
    std::fs::write(place.path("asking"), format!("{what}\n")).unwrap();
    std::fs::rename(place.path("asking"), place.path("ask")).unwrap();
}

fn answers(place: &Place, expected: &str) {
    wait_for(|| read(place, "answers").ends_with('\n'));
    assert_eq!(read(place, "answers"), format!("{expected}\n"));
    std::fs::remove_file(place.path("answers")).unwrap();
}

#[test]
fn it_restarts_the_application_and_nothing_else() {
    let place = Place::new();
    // With a child that does not hear of its end, and one more in a session of its own.
    let app = format!(
        "exec >/dev/null 2>&1\nsleep 61 & echo $! > $PLACE/left.$$\nsetsid sh -c \"sleep 62 & echo \\$! > $PLACE/far\" &\n{APP}"
    );
    let child = start(&place, &[], &app);
    for life in 1..4 {
        wait_for(|| lives_of(&place) == life && place.path("far").exists());
        let app = read(&place, "lives").lines().last().unwrap().to_owned();
        let left = [
            pid_in(&place, &format!("left.{app}")),
            pid_in(&place, "far"),
        ];
        assert!(left.iter().all(|pid| lives(*pid)));
        std::fs::remove_file(place.path("far")).unwrap();
        ask(&place, "restart");
        answers(&place, "ok");
        assert!(
            !left.iter().any(|pid| lives(*pid)),
            "of life {life} something is left"
        );
        wait_for(|| lives_of(&place) == life + 1);
    }
    send(&child, libc::SIGTERM);
    let output = end_of(child);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(lives_of(&place), 4);
}

#[test]
fn one_that_does_not_end_is_killed_and_started_again() {
    let app = "trap '' TERM\necho $$ >> $PLACE/lives\nwhile :; do sleep 0.01; done";
    // The sidecar has the same time to wipe: more, if the machine makes it need that.
    for grace in [200, 3_000] {
        let place = Place::new();
        let child = start(&place, &[&format!("--grace={grace}ms")], app);
        wait_for(|| lives_of(&place) == 1);
        let asked = Instant::now();
        ask(&place, "restart");
        answers(&place, "ok");
        assert!(asked.elapsed() >= Duration::from_millis(grace));
        wait_for(|| lives_of(&place) == 2);
        // The same limit holds for who is stopped from outside, because it was given.
        send(&child, libc::SIGTERM);
        let output = end_of(child);
        assert_eq!(output.status.code(), Some(137));
        let said = text(&output.stderr);
        assert_eq!(said.matches("is killed").count(), 2);
        if !said.contains("the sidecar did not end in time") {
            assert!(!place.secrets().join("..data").exists());
            return;
        }
    }
    panic!("the sidecar had no time to wipe");
}

#[test]
fn it_signals_the_application() {
    let place = Place::new();
    let child = start(&place, &[], APP);
    wait_for(|| lives_of(&place) == 1);
    ask(&place, "signal 1");
    answers(&place, "ok");
    wait_for(|| read(&place, "lives").ends_with("HUP\n"));
    ask(&place, "signal 99");
    answers(&place, "expected `signal N`, `restart` or `stop`");
    // It may be told to wipe before it has noted this answer.
    ask(&place, "signal 15");
    assert_eq!(end_of(child).status.code(), Some(7));
    assert_eq!(lives_of(&place), 1);
}

#[test]
fn it_stops_the_application_and_ends_with_its_status() {
    let place = Place::new();
    let child = start(&place, &[], APP);
    wait_for(|| lives_of(&place) == 1);
    ask(&place, "stop");
    assert_eq!(end_of(child).status.code(), Some(7));
    assert_eq!(lives_of(&place), 1);
}

/// Who stops a container does not want it back, whenever its sidecar asks for that.
#[test]
fn a_restart_does_not_keep_a_container_that_is_stopped() {
    for stop_first in [true, false] {
        let place = Place::new();
        // It takes its time to end.
        let app = "trap 'touch $PLACE/told; while ! [ -e $PLACE/go ]; do sleep 0.01; done; exit 3' TERM\n\
                   echo $$ >> $PLACE/lives\nwhile :; do sleep 0.01; done";
        let child = start(&place, &[], app);
        wait_for(|| lives_of(&place) == 1);
        if stop_first {
            send(&child, libc::SIGTERM);
            wait_for(|| place.path("told").exists());
            ask(&place, "restart");
            answers(&place, "it was told to end, and is not started again");
        } else {
            ask(&place, "restart");
            wait_for(|| place.path("told").exists());
            send(&child, libc::SIGTERM);
        }
        std::fs::write(place.path("go"), "").unwrap();
        assert_eq!(end_of(child).status.code(), Some(3));
        assert_eq!(lives_of(&place), 1);
    }
}

#[test]
fn an_application_that_cannot_start_again_ends_the_container() {
    let place = Place::new();
    let child = start(&place, &[], &format!("rm $PLACE/app\n{APP}"));
    wait_for(|| lives_of(&place) == 1);
    ask(&place, "restart");
    let output = end_of(child);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    assert!(!place.secrets().join("..data").exists());
}

/// A sidecar that says nothing, or closes its input, costs nothing.
#[test]
fn a_closed_channel_is_not_waited_for() {
    let place = Place::new();
    let sidecar = place.script("sidecar", &format!("exec 0</dev/null\n{SIDECAR}"));
    let app = place.script("app", "touch $PLACE/up; sleep 0.5; cat /proc/$PPID/stat");
    let options = ["--sidecar", "--sidecar-path", &sidecar, "--", &app];
    let output = end_of(place.shim(&options).spawn().unwrap());
    let stat = text(&output.stdout);
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // User and system time, in hundredths of a second (proc_pid_stat(5)).
    let spent: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
    assert!(
        spent < 10,
        "the shim turned for {spent} hundredths of a second"
    );
}
