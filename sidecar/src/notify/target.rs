//! The application's process: found anew for each signal, held by a pidfd from before it is checked
//! until after it is signalled, so that a pid that is used again is never hit.

use crate::config::Process;
use mayfly_kernel::pidfd::Pidfd;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use std::fs;
use std::io::Read as _;
use std::path::Path;

/// Why the application was not found.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// There is no such process (any more).
    #[error("the application is not running")]
    Gone,
    /// The sidecar would signal itself.
    #[error(
        "process 1 is the sidecar itself: let it join the application's PID namespace (`pid: \
         \"service:app\"` in compose, `shareProcessNamespace: true` in a pod)"
    )]
    Ourselves,
    /// More than one process tree has the name.
    #[error("{0} processes that do not descend from each other are called {1:?}; expected one")]
    Several(usize, String),
    /// The configuration does not say which it is.
    #[error("expected [application] in the configuration, found none")]
    Unknown,
    /// The kernel refused.
    #[error("cannot look for the application: {0}")]
    Io(#[from] std::io::Error),
}

/// Signals the application.
///
/// # Errors
/// A sentence.
pub fn signal(process: Option<&Process>, signal: Signal, proc: &Path) -> Result<(), String> {
    let found = find(process, proc).map_err(|error| error.to_string())?;
    found
        .send_signal(signal as i32)
        .map_err(|error| format!("cannot signal the application: {error}"))
}

/// Finds the application.
///
/// # Errors
/// [`NotFound`].
pub fn find(process: Option<&Process>, proc: &Path) -> Result<Pidfd, NotFound> {
    match process {
        None => Err(NotFound::Unknown),
        Some(Process::Init) if getpid().as_raw() == 1 => Err(NotFound::Ourselves),
        Some(Process::Init) => open(1)?.ok_or(NotFound::Gone),
        Some(Process::Parent(parent)) => {
            let found = open(u32::try_from(*parent).unwrap_or(0))?;
            // It is still our parent, so the pid was its own all the time.
            match found {
                Some(found) if getppid().as_raw() == *parent => Ok(found),
                _ => Err(NotFound::Gone),
            }
        }
        Some(Process::Named(name)) => named(name, proc),
    }
}

fn open(pid: u32) -> Result<Option<Pidfd>, NotFound> {
    match Pidfd::open(pid) {
        Ok(found) => Ok(found.alive()?.then_some(found)),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process of that name whose parent has another. Held first, then looked at, then seen alive:
/// what was looked at is what is held.
fn named(name: &str, proc: &Path) -> Result<Pidfd, NotFound> {
    let mut found: Vec<(u32, u32, Pidfd)> = Vec::new();
    for entry in fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let (Ok(Some(held)), Some((called, parent))) = (open(pid), look(proc, pid)) else {
            continue;
        };
        if called == name && held.alive()? {
            found.push((pid, parent, held));
        }
    }
    let pids: Vec<u32> = found.iter().map(|(pid, ..)| *pid).collect();
    found.retain(|(_, parent, _)| !pids.contains(parent));
    match found.len() {
        0 => Err(NotFound::Gone),
        1 => found.pop().map(|(.., held)| held).ok_or(NotFound::Gone),
        several => Err(NotFound::Several(several, name.to_owned())),
    }
}

/// A process's name and parent (proc_pid_stat(5)). The name may hold anything, so its end is the
/// last `)`.
fn look(proc: &Path, pid: u32) -> Option<(String, u32)> {
    let mut stat = Vec::new();
    let file = fs::File::open(proc.join(pid.to_string()).join("stat")).ok()?;
    file.take(4096).read_to_end(&mut stat).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
    let name = stat.get(begin + 1..end)?.to_owned();
    let parent = stat.get(end + 1..)?.split_whitespace().nth(1)?;
    Some((name, parent.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    /// A process of a name of its own, which ends when it is dropped.
    struct Named(std::process::Child, std::path::PathBuf);

    fn start(name: &str) -> Named {
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&path);
        // By another process: what we have open for writing, another test's child may have open too, and
        // then it cannot be executed.
        let copied = Command::new("cp").arg("/bin/sleep").arg(&path).status();
        assert!(copied.unwrap().success());
        let mut command = Command::new(&path);
        command.arg("60").stdin(Stdio::null());
        Named(command.spawn().unwrap(), path)
    }

    impl Drop for Named {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
            let _ = fs::remove_file(&self.1);
        }
    }

    #[test]
    fn a_named_process_is_found_and_two_are_none() {
        let name = format!("mf-{}", std::process::id());
        let process = Some(Process::Named(name.clone()));
        let proc = Path::new("/proc");
        assert!(matches!(find(process.as_ref(), proc), Err(NotFound::Gone)));
        let mut one = start(&name);
        // It has its name once it has executed.
        while find(process.as_ref(), proc).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut command = Command::new(&one.1);
        let mut two = command.arg("60").spawn().unwrap();
        while look(proc, two.id()).unwrap().0 != name {
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = signal(process.as_ref(), Signal::SIGTERM, proc).unwrap_err();
        assert!(said.contains("2 processes"), "{said}");
        two.kill().unwrap();
        two.wait().unwrap();
        signal(process.as_ref(), Signal::SIGTERM, proc).unwrap();
        let status = one.0.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(15)
        );
        assert!(
            signal(process.as_ref(), Signal::SIGTERM, proc)
                .unwrap_err()
                .contains("not running")
        );
    }

    #[test]
    fn a_parent_is_ours() {
        let proc = Path::new("/proc");
        let pid = getppid().as_raw();
        let parent = find(Some(&Process::Parent(pid)), proc).unwrap();
        assert_eq!(parent.pid().unwrap(), u32::try_from(pid).ok());
        // One that lives and is not our parent any more: whoever adopted us is not the application.
        let mut other = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let former = Process::Parent(i32::try_from(other.id()).unwrap());
        let found = find(Some(&former), proc);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(matches!(found, Err(NotFound::Gone)));
        assert!(matches!(
            find(None, Path::new("/proc")),
            Err(NotFound::Unknown)
        ));
    }

    #[test]
    fn names_can_hold_anything() {
        let dir = std::env::temp_dir().join(format!("mayfly-proc-{}", std::process::id()));
        fs::create_dir_all(dir.join("7")).unwrap();
        fs::write(dir.join("7/stat"), "7 (a) R 1 (x) y) S 42 7 7").unwrap();
        assert_eq!(look(&dir, 7), Some(("a) R 1 (x) y".to_owned(), 42)));
        assert_eq!(look(&dir, 8), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
