//! What a test runs inside a container, where there may be no shell: static, one job a call.
//!
//! - `mayfly-probe http SOCKET METHOD PATH [BODY]` prints the status, a newline, and the body.
//! - `mayfly-probe hold COUNT` reads that many bytes from standard input, says `held`, and keeps
//!   them in its memory until standard input ends.
//! - `mayfly-probe say TEXT…` prints it, and then waits to be killed.

use std::io::{Read, Write, stdin, stdout};

use anyhow::{Context, Result, bail};
use mayfly_tests::harness::Http;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["http", socket, method, path] => http(socket, method, path, ""),
        ["http", socket, method, path, body] => http(socket, method, path, body),
        ["hold", count] => hold(count.parse().context("COUNT is a number of bytes")?),
        ["say", ref words @ ..] => {
            print(words.join(" ").as_bytes())?;
            loop {
                std::thread::park();
            }
        }
        _ => bail!("expected http, hold or say: see the head of mayfly-probe.rs"),
    }
}

fn http(socket: &str, method: &str, path: &str, body: &str) -> Result<()> {
    let headers = [("content-type", "application/json")];
    let headers = if body.is_empty() {
        &headers[..0]
    } else {
        &headers[..]
    };
    let reply = Http::new(socket).request(method, path, headers, body.to_string())?;
    print(reply.status.as_str().as_bytes())?;
    print(&reply.body)
}

fn hold(count: usize) -> Result<()> {
    let mut held = vec![0; count];
    stdin()
        .read_exact(&mut held)
        .context("reading what to hold")?;
    print(b"held")?;
    stdin().read_to_end(&mut Vec::new())?;
    // Used once more, so that it is kept until here.
    std::hint::black_box(held);
    Ok(())
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
