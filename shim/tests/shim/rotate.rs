//! `--restart on-rotate`.

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
    // Changes in a row are one.
    for generation in 2..6 {
        publish(&place.secrets(), &generation.to_string(), &["a"]);
    }
    // Other names come and go.
    std::fs::write(place.secrets().join("noise"), "").unwrap();
    wait_for(|| lives() == "life of ..1\nlife of ..5\n");
    publish(&place.secrets(), "6", &["a"]);
    wait_for(|| lives().ends_with("life of ..6\n"));
    // The container does not come back to life.
    std::fs::remove_file(place.secrets().join("..data")).unwrap();
    send(&child, libc::SIGTERM);
    let output = end_of(child);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(lives().lines().count(), 3);
}

#[test]
fn it_ends_when_the_application_does() {
    let place = Place::with_bundle(&["a"]);
    let child = place.shim(&["--restart", "on-rotate", "--", "sh", "-c", "exit 42"]);
    let mut child = child;
    assert_eq!(end_of(child.spawn().unwrap()).status.code(), Some(42));
}
