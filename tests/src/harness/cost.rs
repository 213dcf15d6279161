//! What a process costs, and what makes it cost something.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::broker::Broker;
use super::wait::random_text;

const LIMIT: Duration = Duration::from_secs(30);

/// Resident memory in KiB (proc_pid_status(5)).
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.trim().strip_suffix("kB"));
    let size = size.with_context(|| format!("pid {pid} has no memory"))?;
    Ok(size.trim().parse()?)
}

/// How many descriptors it has open.
///
/// # Errors
/// When the process is gone.
pub fn open_files(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The processor time of a process since some moment.
#[derive(Debug)]
pub struct IdleCost {
    pid: i32,
    begun: Instant,
    before: Duration,
    slept: u64,
}

/// Begins to count, of a process of one thread.
///
/// # Errors
/// When the process is gone.
pub fn idle_cost(pid: i32) -> Result<IdleCost> {
    Ok(IdleCost {
        pid,
        begun: Instant::now(),
        before: worked(pid)?,
        slept: slept(pid)?,
    })
}

impl IdleCost {
    /// What a minute of the time since then cost.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn a_minute(&self) -> Result<Duration> {
        let worked = worked(self.pid)?.saturating_sub(self.before);
        let minutes = self.begun.elapsed().as_secs_f64() / 60.0;
        Ok(worked.div_f64(minutes))
    }

    /// How often it has gone back to sleep since then: each time it had woken up to do something.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn wakes(&self) -> Result<u64> {
        Ok(slept(self.pid)?.saturating_sub(self.slept))
    }
}

/// How often it has given up the processor to wait for something (proc_pid_status(5)).
fn slept(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let times = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let times = times.context("no voluntary_ctxt_switches")?;
    Ok(times.trim().parse()?)
}

/// Time on a processor so far, to the nanosecond: the first number of `/proc/PID/schedstat`
/// (Documentation/scheduler/sched-stats.rst of the kernel).
fn worked(pid: i32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds = text.split(' ').next().context("no schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// Stores new values, one after the other, each under the next of these names (`PREFIX/NAME`), and
/// waits for each until its file under `dir` holds it: as many generations.
///
/// # Errors
/// When a value is refused, or does not come within 30 seconds.
pub fn rotate(
    broker: &Broker,
    dir: &Path,
    prefix: &str,
    names: &[String],
    count: usize,
) -> Result<()> {
    let stream = UnixStream::connect(broker.admin_socket()).context("connecting")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut admin = BufReader::new(stream);
    for name in names.iter().cycle().take(count) {
        let value = random_text(40)?;
        let fields = URL_SAFE_NO_PAD.encode(&value);
        let body = format!("{{\"fields\":{{\"value\":\"{fields}\"}}}}");
        let request = format!(
            "PUT /v1/kv/{prefix}/{name} HTTP/1.1\r\nHost: mayfly\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        admin.get_mut().write_all(request.as_bytes())?;
        answered(&mut admin)?;
        let file = dir.join(name);
        let begun = Instant::now();
        while std::fs::read(&file).ok().as_deref() != Some(value.as_bytes()) {
            ensure!(
                begun.elapsed() < LIMIT,
                "{} does not change",
                file.display()
            );
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    Ok(())
}

/// Reads one answer, which must be a yes.
fn answered(admin: &mut BufReader<UnixStream>) -> Result<()> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(
            admin.read_line(&mut head)? > 0,
            "the answer ends in its head: {head:?}"
        );
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim())
    });
    let mut body = vec![0; length.context("an answer without a length")?.parse()?];
    admin.read_exact(&mut body)?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{head}{}",
        String::from_utf8_lossy(&body)
    );
    Ok(())
}
