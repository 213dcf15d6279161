//! Holding a process still from outside, as a debugger does: to look at it in its last moment, to have
//! it make a system call, or to make it crash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a process may take to stop or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A process whose first thread is held by the thread that made this, which alone may use it. Dropped,
/// it goes on as before.
#[derive(Debug)]
pub struct Traced {
    pid: Pid,
    attached: bool,
}

impl Traced {
    /// Takes hold of a process, which goes on meanwhile.
    ///
    /// # Errors
    /// When it is gone, or is traced already: it needs root.
    pub fn seize(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT)
            .with_context(|| format!("tracing pid {pid}"))?;
        Ok(Self {
            pid,
            attached: true,
        })
    }

    /// Has the process end by `end`, and looks at it when it has done all that it does and before the
    /// kernel takes its memory. It is gone when this returns.
    ///
    /// # Errors
    /// Those of both, and when it does not end.
    pub fn at_exit<T>(
        mut self,
        end: impl FnOnce() -> Result<()>,
        look: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        end()?;
        loop {
            match self.next()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => break,
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.pid, signal)?,
                WaitStatus::PtraceEvent(..) => ptrace::cont(self.pid, None)?,
                other => bail!("pid {} was lost: {other:?}", self.pid),
            }
        }
        let seen = look();
        ptrace::cont(self.pid, None)?;
        // Its parent learns of its end when we have.
        while !matches!(
            self.next()?,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..)
        ) {}
        self.attached = false;
        seen
    }

    /// Has the process make a system call with two arguments that are plain numbers.
    ///
    /// # Errors
    /// The call's own, and on a processor that this was not written for.
    #[cfg(target_arch = "x86_64")]
    pub fn call(&self, number: i64, arguments: [u64; 2]) -> Result<()> {
        self.stop()?;
        let before = ptrace::getregs(self.pid)?;
        let mut registers = before;
        registers.rip = self.instruction(&[0x0F, 0x05])?;
        registers.rax = number.cast_unsigned();
        // In no system call, so that none is begun again.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi] = arguments;
        ptrace::setregs(self.pid, registers)?;
        ptrace::step(self.pid, None)?;
        self.stopped()?;
        let answer = ptrace::getregs(self.pid)?.rax.cast_signed();
        ptrace::setregs(self.pid, before)?;
        ptrace::cont(self.pid, None)?;
        if answer < 0 {
            bail!(
                "system call {number} of pid {} gave error {}",
                self.pid,
                -answer
            );
        }
        Ok(())
    }

    /// Makes the process jump to where nothing is, so that it ends by SIGSEGV, whatever it blocks or
    /// ignores, and also as the first process of a container.
    ///
    /// # Errors
    /// When it cannot be stopped, and on a processor that this was not written for.
    #[cfg(target_arch = "x86_64")]
    pub fn crash(mut self) -> Result<()> {
        self.stop()?;
        let mut registers = ptrace::getregs(self.pid)?;
        registers.rip = 0;
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.pid, registers)?;
        self.attached = false;
        Ok(ptrace::detach(self.pid, None)?)
    }

    /// See the other one.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn call(&self, _: i64, _: [u64; 2]) -> Result<()> {
        bail!("registers are known of x86_64 alone")
    }

    /// See the other one.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn crash(self) -> Result<()> {
        bail!("registers are known of x86_64 alone")
    }

    /// Where an instruction stands in the process.
    #[cfg(target_arch = "x86_64")]
    fn instruction(&self, bytes: &[u8]) -> Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let memory = File::open(format!("/proc/{}/mem", self.pid))?;
        for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
            let (start, rest) = line.split_once('-').context("a line of a memory map")?;
            let end = rest.split(' ').next().unwrap_or_default();
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16));
            let (start, end) = (start?, end?);
            let mut code = vec![0; usize::try_from(end - start)?];
            memory.read_exact_at(&mut code, start)?;
            let found = code.windows(bytes.len()).position(|window| window == bytes);
            if let Some(at) = found {
                return Ok(start + at as u64);
            }
        }
        bail!("pid {} has no such instruction", self.pid)
    }

    fn stop(&self) -> Result<()> {
        ptrace::interrupt(self.pid)?;
        self.stopped()
    }

    /// Waits until it stands still; signals on the way are passed on.
    fn stopped(&self) -> Result<()> {
        loop {
            match self.next()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP)
                | WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.pid, signal)?,
                other => bail!("pid {} was lost: {other:?}", self.pid),
            }
        }
    }

    fn next(&self) -> Result<WaitStatus> {
        let begun = Instant::now();
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        loop {
            match waitpid(self.pid, Some(flags))? {
                WaitStatus::StillAlive if begun.elapsed() > LIMIT => {
                    bail!("pid {} goes on after {LIMIT:?}", self.pid)
                }
                WaitStatus::StillAlive => std::thread::sleep(Duration::from_micros(500)),
                other => return Ok(other),
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // One that runs must be stopped to be let go of. One that is gone needs nothing.
        if self.attached && ptrace::interrupt(self.pid).is_ok() && self.stopped().is_ok() {
            let _ = ptrace::detach(self.pid, None);
        }
    }
}
