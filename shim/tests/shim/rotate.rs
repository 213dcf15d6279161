//! `--restart on-rotate`.

use std::time::{Duration, Instant};

use nix::libc;

use crate::support::{Place, end_of, publish, send, text, wait_for};

const APP: &str = "trap 'exit 0' TERM\necho life of $(readlink $DIR/..data) >> $PLACE/lives\n\
                   while :; do sleep 0.01; done";

#[test]
fn it_restarts_when_something_else_is_published() {
    let place = Place::with_bundle(&["a"]);
    let app = place.script("app", APP);
    let child = place
        .shim(&["--restart", "on-rotate", "--", &app])
        .spawn()
        .unwrap();
    let lives = || std::fs::read_to_string(place.path("lives")).unwrap_or_default();
    wait_for(|| lives() == "life of ..1\n");
    // Changes in a row are one, unless the machine makes something else of them.
    let mut newest = 1;
    let mut expected = loop {
        let (before, start) = (lives(), Instant::now());
        for _ in 0..4 {
            newest += 1;
            publish(&place.secrets(), &newest.to_string(), &["a"]);
        }
        let in_a_row = start.elapsed() < Duration::from_millis(900);
        // Other names come and go.
        std::fs::write(place.secrets().join("noise"), "").unwrap();
        let life = format!("life of ..{newest}\n");
        wait_for(|| lives().ends_with(&life));
        if in_a_row {
            break before + &life;
        }
    };
    assert_eq!(lives(), expected);
    newest += 1;
    publish(&place.secrets(), &newest.to_string(), &["a"]);
    expected += &format!("life of ..{newest}\n");
    wait_for(|| lives() == expected);
    // The container does not come back to life.
    std::fs::remove_file(place.secrets().join("..data")).unwrap();
    send(&child, libc::SIGTERM);
    let output = end_of(child);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(lives(), expected);
}

#[test]
fn it_ends_when_the_application_does() {
    let place = Place::with_bundle(&["a"]);
    let child = place.shim(&["--restart", "on-rotate", "--", "sh", "-c", "exit 42"]);
    let mut child = child;
    assert_eq!(end_of(child.spawn().unwrap()).status.code(), Some(42));
}
