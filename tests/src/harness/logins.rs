//! A client that logs in to PostgreSQL again and again with whatever its files say, as an application
//! that opens a connection for each of its requests does.

use std::fs::File;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};

use super::reader::READABLE;

/// Threads that log in.
const THREADS: u32 = 8;
/// Logins a second, of all threads.
const RATE: u32 = 200;

/// Logs in 200 times a second to the server on a unix socket, until the file `stop` is there. Prints a
/// line for each login that failed, `failed READ_AT FAILED_AT USER CAUSE`, with the times at which it
/// read its files and failed in milliseconds since the Unix epoch; and at the end `logins COUNT
/// MILLISECONDS`.
///
/// # Errors
/// When the files cannot be read, or nothing can be printed.
pub fn logins(socket: &str, port: u16, credential: &Path, stop: &Path) -> Result<()> {
    let begun = Instant::now();
    let count = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| again_and_again(socket, port, credential, stop)))
            .collect();
        let ended = threads.into_iter().map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(anyhow!("a thread of logins ended")))
        });
        ended.sum::<Result<u64>>()
    })?;
    print(&format!("logins {count} {}", begun.elapsed().as_millis()))
}

fn again_and_again(socket: &str, port: u16, credential: &Path, stop: &Path) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pace = Duration::from_secs(1) * THREADS / RATE;
    let (mut count, mut next) = (0, Instant::now());
    while !stop.exists() {
        let (read_at, reading) = (now()?, Instant::now());
        let found = read(credential);
        // Who was kept from running for as long reads again: it may have found what was replaced, and wiped.
        if reading.elapsed() >= READABLE {
            continue;
        }
        let (user, password) = found?;
        let mut config = Config::new();
        config.host_path(socket).port(port).dbname("postgres");
        config
            .user(&user)
            .password(password)
            .ssl_mode(SslMode::Disable);
        config.connect_timeout(Duration::from_secs(30));
        count += 1;
        // The connection ends as it is dropped.
        if let Err(error) = runtime.block_on(config.connect(NoTls)) {
            let cause = error.as_db_error().map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| format!("{error}: {error:?}"));
            print(&format!("failed {read_at} {} {user} {cause}", now()?))?;
        }
        next += pace;
        match next.checked_duration_since(Instant::now()) {
            Some(early) => std::thread::sleep(early),
            // Late: what was missed is not made up for.
            None => next = Instant::now(),
        }
    }
    Ok(count)
}

/// User and password, of one generation: through one descriptor of it.
fn read(credential: &Path) -> Result<(String, String)> {
    let root = credential.parent().context("no directory")?;
    let name = credential.file_name().context("no name")?;
    let generation = File::open(root.join("..data")).context("opening ..data")?;
    let read = |field: &str| -> Result<String> {
        let path = Path::new(name).join(field);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&generation, &path, flags, Mode::empty())
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(std::io::read_to_string(File::from(file))?)
    };
    Ok((read("username")?, read("password")?))
}

fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())
}

fn print(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
