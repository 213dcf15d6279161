//! What the application and the sidecar may not do.

use std::ffi::CString;
use std::process::Command;

use mayfly_kernel::keyring::{self, Key};
use nix::libc;

use crate::support::{Place, SHIM, finish, text, wait_for};

/// Prints what the kernel says about the process that runs it.
const LOOK: &str = "cat /proc/self/status /proc/self/limits; ls -l /proc/self/fd";

fn field<'a>(report: &'a str, name: &str) -> &'a str {
    let line = report.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no {name} in {report}"))[name.len()..].trim()
}

fn assert_hardened(report: &str) {
    assert_eq!(field(report, "NoNewPrivs:"), "1");
    assert_eq!(field(report, "Seccomp:"), "2");
    let core: Vec<&str> = field(report, "Max core file size")
        .split_whitespace()
        .collect();
    // Not 0, of which a program in core_pattern takes no notice.
    assert_eq!(core[..2], ["1", "1"]);
    assert_eq!(field(report, "SigBlk:"), "0000000000000000");
}

/// The numbers of the descriptors that `ls` showed, without the one it used for looking.
fn descriptors(report: &str) -> Vec<u32> {
    let lines = report.lines().filter_map(|line| line.split_once(" -> "));
    let others = lines.filter(|(_, target)| !target.starts_with("/proc/"));
    let mut numbers: Vec<u32> = others
        .map(|(before, _)| before.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn the_application_is_hardened_with_and_without_a_sidecar() {
    let place = Place::with_bundle(&[]);
    let sidecar = place.script(
        "sidecar",
        "mkdir $DIR/..2; ln -sfn ..2 $DIR/..data; exec sleep 60",
    );
    for options in [String::new(), format!("--sidecar --sidecar-path {sidecar}")] {
        // A descriptor that whoever starts the shim left open.
        let dir = place.secrets();
        let line = format!(
            "exec 7</etc/hostname 55</etc/hostname; exec {SHIM} run --grace=0s --dir {} {options} \
             -- bash -c '{LOOK}'",
            dir.display()
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report = text(&output.stdout);
        assert_hardened(&report);
        assert_eq!(descriptors(&report), [0, 1, 2]);
    }
}

#[test]
fn the_sidecar_and_the_shim_are_hardened_too() {
    let place = Place::new();
    let sidecar = place.script(
        "sidecar",
        &format!(
            "({LOOK}) > $PLACE/look; ({}) > $PLACE/parent; mkdir $DIR/..2; \
                  ln -sfn ..2 $DIR/..data; exec sleep 60",
            "cat /proc/$PPID/status /proc/$PPID/limits"
        ),
    );
    let options = [
        "--grace=0s",
        "--sidecar",
        "--sidecar-path",
        &sidecar,
        "--",
        "true",
    ];
    let output = finish(&mut place.shim(&options));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let look = std::fs::read_to_string(place.path("look")).unwrap();
    assert_hardened(&look);
    // 1 is the report itself here.
    assert_eq!(descriptors(&look), [0, 1, 2]);
    let shim = std::fs::read_to_string(place.path("parent")).unwrap();
    assert_eq!(
        (field(&shim, "NoNewPrivs:"), field(&shim, "Seccomp:")),
        ("1", "2")
    );
}

/// Runs this very test again as the application under the shim, where it finds the calls gone.
#[test]
fn keyring_calls_are_refused() {
    const INSIDE: &str = "MAYFLY_TEST_INSIDE_SHIM";
    if std::env::var_os(INSIDE).is_some() {
        let name = CString::new("mayfly-shim-test").unwrap();
        let results = [
            keyring::join_anonymous_session().err(),
            keyring::add(&name, b"x", Key::USER).err(),
            keyring::add(&name, b"x", Key::SESSION).err(),
            keyring::request(&name, Key::SESSION).err(),
            keyring::search(Key::USER, &name).err(),
            keyring::link(Key::USER, Key::SESSION).err(),
            keyring::read(Key::USER, 64).err(),
        ];
        for error in results {
            assert_eq!(error.unwrap().raw_os_error(), Some(libc::ENOSYS));
        }
        return;
    }
    let place = Place::with_bundle(&[]);
    let myself = std::env::current_exe().unwrap();
    let name = "harden::keyring_calls_are_refused";
    let mut command = place.shim(&["--", myself.to_str().unwrap(), "--exact", name]);
    let output = finish(command.env(INSIDE, "1"));
    let report = text(&output.stdout);
    assert!(
        output.status.success() && report.contains("1 passed"),
        "{report}"
    );
}

#[test]
fn it_becomes_another_user_without_capabilities() {
    let place = Place::with_bundle(&[]);
    let options = [
        "--user=12345:54321",
        "--drop-caps",
        "--",
        "cat",
        "/proc/self/status",
    ];
    let report = text(&finish(&mut place.shim(&options)).stdout);
    assert_eq!(field(&report, "Uid:"), "12345\t12345\t12345\t12345");
    assert_eq!(field(&report, "Gid:"), "54321\t54321\t54321\t54321");
    assert_eq!(field(&report, "Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&report, set), "0000000000000000", "{set}");
    }
}

#[test]
fn it_drops_capabilities_as_root() {
    let place = Place::with_bundle(&[]);
    let report =
        text(&finish(&mut place.shim(&["--drop-caps", "--", "cat", "/proc/self/status"])).stdout);
    assert_eq!(field(&report, "Uid:"), "0\t0\t0\t0");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&report, set), "0000000000000000", "{set}");
    }
}

/// As Docker starts it with `--user 1000 --cap-drop ALL --security-opt no-new-privileges`.
#[test]
fn it_works_without_any_privilege() {
    let place = Place::with_bundle(&[]);
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--bounding-set=-all",
    ]);
    command.args([
        "--inh-caps=-all",
        "--no-new-privs",
        SHIM,
        "run",
        "--user=1000",
        "--drop-caps",
    ]);
    command
        .arg("--dir")
        .arg(place.secrets())
        .args(["--", "cat", "/proc/self/status"]);
    let output = command.output().unwrap();
    let report = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(field(&report, "Uid:"), "1000\t1000\t1000\t1000");
    assert_eq!(
        (field(&report, "NoNewPrivs:"), field(&report, "Seccomp:")),
        ("1", "2")
    );
}

#[test]
fn one_without_the_right_cannot_become_another() {
    let place = Place::with_bundle(&[]);
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        SHIM,
        "run",
        "--user=1001",
    ]);
    let output = command
        .arg("--dir")
        .arg(place.secrets())
        .args(["--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(text(&output.stderr).contains("become the user of --user"));
}

/// `--user` names all that the application is: groups that it was started with are none of it, not
/// even where the ids are the right ones already.
#[test]
fn the_groups_go_although_the_user_stays() {
    let place = Place::with_bundle(&[]);
    let mut command = Command::new("setpriv");
    command.args(["--groups=4,27", SHIM, "run", "--user=0:0"]);
    let output = command
        .arg("--dir")
        .arg(place.secrets())
        .args(["--", "cat", "/proc/self/status"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(field(&text(&output.stdout), "Groups:"), "");
}

/// Nobody else of the uid can read the shim's memory while it supervises.
#[test]
fn the_shim_is_undumpable() {
    let place = Place::with_bundle(&[]);
    std::fs::remove_file(place.secrets().join("..data")).unwrap();
    let child = place.shim(&["--user=12345", "--", "true"]).spawn().unwrap();
    let owner = format!("/proc/{}/mem", child.id());
    // The files of an undumpable process belong to root.
    wait_for(|| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        field(&status, "Seccomp:") == "2"
    });
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(owner).unwrap().uid(), 0);
    crate::support::send(&child, libc::SIGTERM);
    crate::support::end_of(child);
}
