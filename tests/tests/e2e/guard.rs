//! What a test started ends with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use mayfly_tests::harness::{Guard, TempDir, binary, wait_until};
use nix::sys::signal::Signal;

#[test]
fn a_test_process_that_is_killed_leaves_nothing_running() -> Result<()> {
    let dir = TempDir::new()?;
    let mut test = Command::new(binary("mayfly-probe")?)
        .arg("guard")
        .arg(dir.join("log"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pid = String::new();
    BufReader::new(test.stdout.take().context("no output")?).read_line(&mut pid)?;
    let process = format!("/proc/{}", pid.trim());
    assert!(Path::new(&process).exists(), "{process} was not started");
    test.kill()?;
    test.wait()?;
    wait_until(
        Duration::from_secs(30),
        "the guarded process to end",
        || Ok((!Path::new(&process).exists()).then_some(())),
    )
}

#[test]
fn it_tells_how_a_process_ended_and_what_it_printed() -> Result<()> {
    let dir = TempDir::new()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo out; echo err >&2; echo $SET; exit 9"])
        .env("SET", "set");
    let mut guard = Guard::spawn(&command, &dir.join("log"), Signal::SIGTERM, 1)?;
    assert_eq!(guard.wait(Duration::from_secs(30))?.code(), Some(9));
    assert_eq!(guard.log(), "out\nerr\nset\n");
    assert!(guard.failure("more").to_string().ends_with("out\nerr\nset"));
    Ok(())
}

#[test]
fn a_program_that_is_not_there_is_a_failure_that_names_it() -> Result<()> {
    let dir = TempDir::new()?;
    let command = Command::new("/nowhere/at-all");
    let mut guard = Guard::spawn(&command, &dir.join("log"), Signal::SIGTERM, 1)?;
    assert_eq!(guard.wait(Duration::from_secs(30))?.code(), Some(127));
    assert!(guard.log().contains("/nowhere/at-all"), "{}", guard.log());
    Ok(())
}
