//! What an attacker tries with the kernel's keyrings, for tests that run it in containers.
//!
//! `keyring_attack leave DESCRIPTION VALUE` tries to leave a key where others of the uid find it.
//! `keyring_attack take DESCRIPTION` tries to find and read it, from another container of the uid.
//!
//! Prints one line of JSON, each step with `"ok"` or the error's number. `take` adds `"payload"`,
//! a string, if it read one (meant for plain letters and digits). Exit status 0 means that the steps were run, whatever they achieved.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::ffi::{CStr, CString};
use std::io;
use std::process::ExitCode;

use mayfly_kernel::keyring::{self, Key};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let report = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["leave", description, value] => {
            CString::new(*description).map(|name| leave(&name, value.as_bytes()))
        }
        ["take", description] => CString::new(*description).map(|name| take(&name)),
        _ => {
            eprintln!("usage: keyring_attack leave DESCRIPTION VALUE | take DESCRIPTION");
            return ExitCode::from(64);
        }
    };
    match report {
        Ok(report) => {
            println!("{{{}}}", report.join(","));
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::from(64),
    }
}

fn leave(description: &CStr, value: &[u8]) -> Vec<String> {
    let mut report = vec![step("join_session", &keyring::join_anonymous_session())];
    let rings = [
        ("user", Key::USER),
        ("session", Key::SESSION),
        ("user_session", Key::USER_SESSION),
    ];
    for (name, ring) in rings {
        report.push(step(
            &format!("add_{name}"),
            &keyring::add(description, value, ring),
        ));
    }
    report
}

fn take(description: &CStr) -> Vec<String> {
    let mut report = vec![step("join_session", &keyring::join_anonymous_session())];
    let mut found = Vec::new();
    for (name, ring) in [("user", Key::USER), ("user_session", Key::USER_SESSION)] {
        let result = keyring::search(ring, description);
        report.push(step(&format!("search_{name}"), &result));
        found.extend(result.ok());
        // A key that the session keyring leads to is possessed, and then it may be read.
        report.push(step(
            &format!("link_{name}"),
            &keyring::link(ring, Key::SESSION),
        ));
    }
    let requested = keyring::request(description, Key::SESSION);
    report.push(step("request_key", &requested));
    found.extend(requested.ok());
    let read = found
        .into_iter()
        .map(|key| keyring::read(key, 4096))
        .reduce(Result::or);
    let read = read.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
    report.push(step("read", &read));
    if let Ok(payload) = read {
        let text = String::from_utf8_lossy(&payload)
            .escape_default()
            .to_string();
        report.push(format!("\"payload\":\"{text}\""));
    }
    report
}

fn step<T>(name: &str, result: &io::Result<T>) -> String {
    match result {
        Ok(_) => format!("\"{name}\":\"ok\""),
        Err(error) => format!("\"{name}\":{}", error.raw_os_error().unwrap_or(0)),
    }
}
