//! `--env`: for applications that read nothing but their environment.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::libc;

use crate::support::{Place, end_of, finish, publish, send, text, wait_for};

/// What a bundle's files hold, here.
const VALUE: &str = "a-value-that-is-found-nowhere-else";

fn place() -> Place {
    let place = Place::with_bundle(&["a"]);
    std::fs::write(place.secrets().join("..data/a"), VALUE).unwrap();
    place
}

#[test]
fn a_variable_is_what_the_file_holds() {
    let place = place();
    let options = ["--env", "A=file:a", "--", "sh", "-c", "printf %s \"$A\""];
    assert_eq!(text(&finish(&mut place.shim(&options)).stdout), VALUE);
    // Beside what was there, and in a directory too.
    publish(&place.secrets(), "2", &["b"]);
    std::fs::create_dir(place.secrets().join("..2/db")).unwrap();
    std::fs::write(place.secrets().join("..2/db/password"), "pass word").unwrap();
    let options = [
        "--env=P=file:db/password",
        "--",
        "sh",
        "-c",
        "echo \"$P,$Q\"",
    ];
    let output = finish(place.shim(&options).env("Q", "q"));
    assert_eq!(text(&output.stdout), "pass word,q\n");
}

#[test]
fn it_is_waited_for_and_must_be_one() {
    let place = place();
    let output = finish(&mut place.shim(&["--timeout=100ms", "--env=A=file:b", "--", "true"]));
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("a bundle without b"));
    let file = place.secrets().join("..data/b");
    for value in [b"a\0b".to_vec(), vec![0; 20], vec![b'x'; 127 * 1024]] {
        std::fs::write(&file, value).unwrap();
        let output = finish(&mut place.shim(&["--env=A=file:b", "--", "true"]));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("cannot set a variable to b"), "{said}");
    }
    std::fs::write(&file, vec![b'x'; 127 * 1024 - 2]).unwrap();
    let output = finish(&mut place.shim(&["--env=A=file:b", "--", "true"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = finish(&mut place.shim(&["--env=AB=file:b", "--", "true"]));
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stderr));
}

/// Each life has the values of its own time, and the shim, which passed them on, has none of them.
#[test]
fn a_restart_has_fresh_values_and_the_shim_has_none() {
    let place = place();
    let app = place.script(
        "app",
        "trap 'exit 0' TERM\necho \"$A\" >> $PLACE/values\nwhile :; do sleep 0.01; done",
    );
    let child = place
        .shim(&["--restart=on-rotate", "--env=A=file:a", "--", &app])
        .spawn()
        .unwrap();
    let values = || std::fs::read_to_string(place.path("values")).unwrap_or_default();
    wait_for(|| values().lines().count() == 1);
    // It forgets once it knows that the application has started.
    wait_for(|| !holds(child.id(), VALUE));
    publish(&place.secrets(), "2", &["a"]);
    wait_for(|| values().lines().count() == 2);
    assert_eq!(values(), format!("{VALUE}\nvalue\n"));
    wait_for(|| !holds(child.id(), VALUE));
    let environ = std::fs::read(format!("/proc/{}/environ", child.id())).unwrap();
    assert!(!text(&environ).contains(VALUE));
    // What is searched for would be found.
    assert!(holds(child.id(), &place.secrets().display().to_string()));
    send(&child, libc::SIGTERM);
    end_of(child);
}

/// Whether a process's memory holds a text.
fn holds(pid: u32, needle: &str) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (at(to) - at(from)) as usize];
        // Some special mappings cannot be read.
        let read = rest.starts_with('r') && memory.read_exact_at(&mut bytes, at(from)).is_ok();
        read && bytes
            .windows(needle.len())
            .any(|part| part == needle.as_bytes())
    })
}
