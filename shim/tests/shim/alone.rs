//! A sidecar with a user of its own.

use std::io::BufRead;
use std::process::{Command, Stdio};

use nix::libc;

use crate::support::{Place, SHIM, end_of, finish, send, text, wait_for};

/// As the sidecar publishes, with the mode that it is given.
const SIDECAR: &str = r#"
trap 'rm -rf "$DIR"/..data "$DIR"/..1; exit 0' TERM
echo "$*" > "$DIR"/arguments; grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/$PPID/status > "$DIR"/shim
grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/self/status > "$DIR"/sidecar
echo $$ > "$DIR"/pid
mkdir -p "$DIR"/..1; chmod 755 "$DIR"/..1; echo value > "$DIR"/..1/a; chmod 0440 "$DIR"/..1/a
ln -sfn ..1 "$DIR"/..data
while :; do sleep 0.01; done
"#;

const ATTACKS: &str = r#"
tried() { "$@" 2>/dev/null && echo "could: $*"; }
tried cp /etc/hostname "$DIR/..data/a"
tried touch "$DIR/planted"
tried rm "$DIR/..data"
tried kill -STOP $PPID
tried kill -0 $(cat "$DIR"/pid)
tried ls /proc/$(cat "$DIR"/pid)/fd
tried cat /proc/$PPID/environ
[ "$(cat "$DIR/..data/a")" = value ] || echo "cannot read"
grep -E '^(Uid|Gid|Groups|CapEff|CapPrm)' /proc/self/status
"#;

/// The shim with a tmpfs of its own at the place's directory, which somebody else owns.
fn shim(place: &Place, options: &[&str]) -> Command {
    let script = r#"
        mount -t tmpfs -o mode=1777,uid=7,gid=7 none "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(place.secrets());
    command
        .args([SHIM, "run", "--dir"])
        .arg(place.secrets())
        .args(options);
    let piped = Stdio::piped;
    command.stdin(Stdio::null()).stdout(piped()).stderr(piped());
    command
}

fn ids(uid: u32, gid: u32, capabilities: &str) -> String {
    format!(
        "Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nGroups:\t \n\
         CapPrm:\t00000000000000{capabilities}\nCapEff:\t00000000000000{capabilities}\n"
    )
}

fn place(app: &str) -> (Place, [String; 2]) {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    std::fs::set_permissions(place.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let scripts = [place.script("sidecar", SIDECAR), place.script("app", app)];
    (place, scripts)
}

#[test]
fn the_application_reads_and_can_do_nothing_to_it() {
    for (options, uid) in [
        (&[][..], 65_529),
        (&["--sidecar-user=4711", "--drop-caps"], 4711),
    ] {
        let look = format!("{ATTACKS}cat $DIR/arguments $DIR/shim $DIR/sidecar");
        let (place, [sidecar, app]) = place(&look);
        let with = ["--user=1000:1001", "--sidecar", "--sidecar-path", &sidecar];
        let output = finish(&mut shim(&place, &[&with, options, &["--", &app]].concat()));
        let said = text(&output.stdout).replace("Groups:\t\n", "Groups:\t \n");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let dir = place.secrets();
        let expected = format!(
            "{}--shim --dir {} --mode 0440 --awaited=\n{}{}",
            ids(1000, 1001, "00"),
            dir.display(),
            ids(uid, 1001, "e0"),
            ids(uid, 1001, "00"),
        );
        assert_eq!(said, expected);
    }
}

/// All that the shim does with an application it does with one of another user.
#[test]
fn it_is_signalled_restarted_and_reaped() {
    use std::os::unix::fs::PermissionsExt;
    let (place, [_, app]) = place(
        "say() { echo $1 >> $PLACE/said; }\ntrap 'exit 9' TERM\ntrap 'say HUP' HUP\nsay life\n\
         while :; do sleep 0.01; done",
    );
    // The application's user can write nowhere else.
    let said = place.path("said");
    std::fs::write(&said, "").unwrap();
    std::fs::set_permissions(&said, PermissionsExt::from_mode(0o666)).unwrap();
    // It asks for the next when the application has done what came before.
    let asks = "until_said() { until [ $(wc -l < $PLACE/said) = $1 ]; do sleep 0.01; done; }\n\
                ask() { echo $1 >&0; read -r answer; echo $1: $answer; }\n\
                until_said 1; ask 'signal 1'; until_said 2; ask restart; until_said 3; ask 'signal 15'\n\
                while :;";
    let sidecar = place.script("asking", &SIDECAR.replace("while :;", asks));
    let with = [
        "--user=1000",
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        &app,
    ];
    let output = end_of(shim(&place, &with).spawn().unwrap());
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(said, "life\nHUP\nlife\n");
    let said = text(&output.stderr);
    assert!(said.contains("signal 1: ok\nrestart: ok\n"), "{said}");
}

#[test]
fn a_stop_reaches_it() {
    let (place, [sidecar, app]) =
        place("trap 'exit 9' TERM\necho up\nwhile :; do sleep 0.01; done");
    let with = [
        "--user=1000",
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        &app,
    ];
    let mut child = shim(&place, &with).spawn().unwrap();
    let mut up = String::new();
    let said = child.stdout.take().unwrap();
    std::io::BufReader::new(said).read_line(&mut up).unwrap();
    assert_eq!(up, "up\n");
    // The shim has taken the place of `unshare` and `sh`.
    send(&child, libc::SIGTERM);
    assert_eq!(end_of(child).status.code(), Some(9));
}

/// As `podman run --userns=auto` makes one.
#[test]
fn a_user_namespace_with_few_users_is_told() {
    use std::io::Write;
    let (place, [sidecar, app]) = place("true");
    let script =
        r#"read go; exec unshare --mount sh -c 'mount -t tmpfs none "$0" && exec "$@"' "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "sh", "-c", script, "sh"]);
    command.arg(place.secrets()).args([SHIM, "run", "--dir"]);
    command
        .arg(place.secrets())
        .args(["--user=500", "--sidecar"]);
    command.args(["--sidecar-path", &sidecar, "--", &app]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/user")).unwrap();
    let pid = child.id().to_string();
    wait_for(|| namespace(&pid) != namespace("self"));
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), "0 0 1000").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = end_of(child);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{said}");
    assert!(
        said.contains("no such user") && said.contains("--sidecar-user"),
        "{said}"
    );
}

/// Where it cannot have one it is refused if it was asked for, and has the application's if not.
#[test]
fn it_needs_the_capabilities() {
    let (place, [sidecar, app]) = place("cat $DIR/sidecar");
    let few = [
        "setpriv",
        "--bounding-set=-chown",
        "--inh-caps=-all",
        SHIM,
        "run",
    ];
    let run = |options: &[&str]| {
        let script = r#"mount -t tmpfs -o uid=1000,gid=1000 none "$0" && exec "$@""#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .arg(place.secrets());
        command
            .args(few)
            .arg("--dir")
            .arg(place.secrets())
            .args(options);
        let with = [
            "--user=1000",
            "--sidecar",
            "--sidecar-path",
            &sidecar,
            "--",
            &app,
        ];
        finish(
            command
                .args(with)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
    };
    let output = run(&[]);
    assert!(
        text(&output.stdout).starts_with("Uid:\t1000\t"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&["--sidecar-user=4711"]);
    assert_eq!(output.status.code(), Some(71));
    assert!(text(&output.stderr).contains("CAP_CHOWN"));
    // Who names the application's user wants no other.
    let output = run(&["--sidecar-user=1000"]);
    assert!(
        text(&output.stdout).starts_with("Uid:\t1000\t"),
        "{}",
        text(&output.stderr)
    );
}
