//! `--landlock`: an application that attacks its own secrets, and who brings them.

use crate::support::{Place, SIDECAR, end_of, finish, text};

/// Everything that it tries fails, or it says what did not.
const ATTACKS: &str = r#"
tried() { "$@" 2>/dev/null && echo "could: $*"; }
tried truncate -s 6 "$DIR/..data/a"
tried cp /etc/hostname "$DIR/..data/a"
tried cp /etc/hostname "$DIR/..data/b"
tried mkdir "$DIR/planted"
tried ln -s /none "$DIR/planted"
tried rm "$DIR/..data/a"
tried rm "$DIR/..data"
tried ln -sfn /none "$DIR/..data"
tried mv "$DIR/..data/a" "$PLACE/beside/a"
tried ln "$DIR/..data/a" "$PLACE/beside/a"
tried mv "$DIR" "$PLACE/beside/dir"
tried kill -0 $PPID
tried kill -WINCH $PPID
tried dd if=/proc/$PPID/mem count=0
tried readlink /proc/$PPID/fd/0
[ "$(cat "$DIR/..data/a")" = value ] || echo "cannot read"
echo fine > "$PLACE/beside/file" || echo "cannot write beside"
: > /dev/null || echo "cannot write to a device"
(sleep 60 & kill $!) || echo "cannot signal its own"
"#;

fn attack(options: &[&str]) -> String {
    let place = Place::with_bundle(&["a"]);
    std::fs::create_dir(place.path("beside")).unwrap();
    let app = place.script("app", ATTACKS);
    let sidecar = place.script("sidecar", SIDECAR);
    let with = ["--sidecar", "--sidecar-path", &sidecar];
    let output = finish(&mut place.shim(&[&with, options, &["--", &app]].concat()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn it_can_read_its_secrets_and_change_nothing() {
    assert_eq!(attack(&["--landlock"]), "");
}

/// As root, which nothing else keeps from any of it. So the attacks are real.
#[test]
fn without_it_all_of_that_works() {
    let said = attack(&[]);
    for part in [
        "could: mkdir",
        "could: kill -0",
        "could: dd",
        "could: readlink",
        "could: truncate",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn in_the_shims_place_it_holds_as_well() {
    let place = Place::with_bundle(&["a"]);
    let app = place.script("app", "cat $DIR/..data/a; touch $DIR/..data/b || exit 9");
    let output = finish(&mut place.shim(&["--landlock", "--", &app]));
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(9), "value")
    );
}

/// Where the kernel, or a filter of the container engine's, does not know it: nothing is started.
#[test]
fn where_it_cannot_be_had_nothing_is_started() {
    let place = Place::with_bundle(&["a"]);
    let started = place.path("started").display().to_string();
    // Sixteen sets of rules are the most that a process may have.
    let shim = crate::support::SHIM;
    let dir = place.secrets().display().to_string();
    let mut nested = vec![];
    for _ in 0..17 {
        nested.extend([shim, "run", "--landlock", "--dir", &dir, "--"]);
    }
    nested.extend(["touch", &started]);
    let mut command = std::process::Command::new(nested[0]);
    command
        .args(&nested[1..])
        .stderr(std::process::Stdio::piped());
    let output = end_of(command.spawn().unwrap());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{said}");
    assert!(said.contains("--landlock: cannot confine"), "{said}");
    assert!(!place.path("started").exists());
}
