//! Watches for the deaths of workloads.
//!
//! A workload is dead when the first process of its pid namespace is: the kernel tells that only
//! after it has killed all the others. In the host's pid namespace, where the first process takes
//! nobody with it, it is dead when the process that the engine started is, or when its cgroup has no
//! process any more, whichever is first.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mayfly_kernel::pidfd::Pidfd;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::Watched;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::attest::{Attestor, Held};

/// What tells when one workload is dead.
#[derive(Debug)]
pub struct DeathTarget {
    key: WorkloadKey,
    first: Pidfd,
    /// `cgroup.events` of v2 (cgroups(7)).
    events: Option<File>,
    /// What attestation remembers of the container, and lets go of then.
    held: Option<Held>,
}

impl DeathTarget {
    pub(crate) fn new(
        key: WorkloadKey,
        first: Pidfd,
        events: Option<File>,
        held: Option<Held>,
    ) -> Self {
        Self {
            key,
            first,
            events,
            held,
        }
    }

    /// Whose death it tells.
    #[must_use]
    pub fn workload(&self) -> &WorkloadKey {
        &self.key
    }
}

/// Waits until one of these says that its workload is dead.
async fn dead(first: Pidfd, events: Option<File>) -> io::Result<()> {
    let first = when_ready(first.into(), Interest::READABLE)?;
    let exited = async { first.readable().await.map(|_| ()) };
    match events {
        None => exited.await,
        Some(events) => tokio::select! {
            exited = exited => exited,
            emptied = emptied(events) => emptied,
        },
    }
}

/// Waits until a cgroup and all below it have no process.
async fn emptied(events: File) -> io::Result<()> {
    let watched = when_ready(events.try_clone()?.into(), Interest::PRIORITY)?;
    while is_populated(&events) {
        watched.ready(Interest::PRIORITY).await?.clear_ready();
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "what replaces it needs a promise that the descriptor never changes; an OwnedFd keeps it by itself"
)]
fn when_ready(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

/// A cgroup that is gone has none.
fn is_populated(events: &File) -> bool {
    let mut text = [0; 256];
    let read = events.read_at(&mut text, 0).unwrap_or(0);
    text[..read]
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"populated 1")
}

/// Watches any number of workloads. Dropping it ends the watching.
#[derive(Debug)]
pub struct DeathWatch {
    dead: mpsc::UnboundedSender<WorkloadKey>,
    watched: Arc<Mutex<HashMap<WorkloadKey, AbortHandle>>>,
}

impl DeathWatch {
    /// A watch, and where it says who is dead, once each.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<WorkloadKey>) {
        let (dead, told) = mpsc::unbounded_channel();
        let watched = Arc::default();
        (Self { dead, watched }, told)
    }

    /// Watches a workload from now on; one that is watched already stays watched as it is. Must be
    /// called within a tokio runtime.
    pub fn watch(&self, target: DeathTarget) {
        let mut watched = self.watched();
        if watched.contains_key(&target.key) {
            return;
        }
        let DeathTarget {
            key,
            first,
            events,
            held,
        } = target;
        let (tell, all, of) = (self.dead.clone(), Arc::clone(&self.watched), key.clone());
        let task = tokio::spawn(async move {
            // What cannot be watched is told dead: nobody would ever tell otherwise.
            if let Err(error) = dead(first, events).await {
                tracing::error!(workload = %of, %error, "cannot watch a workload");
            }
            if let Some(held) = held {
                held.let_go();
            }
            lock(&all).remove(&of);
            let _closed = tell.send(of);
        });
        watched.insert(key, task.abort_handle());
    }

    /// Watches a workload that was attested before this node's process started: the same first
    /// process, found again by its pid, start time, cgroup and pid namespace. If it is not there any
    /// more, it is told dead at once.
    pub fn resume(&self, attestor: &Attestor, watched: &Watched) {
        if self.watched().contains_key(&watched.workload) {
            return;
        }
        match attestor.find_again(watched) {
            Some(target) => self.watch(target),
            None => {
                let _closed = self.dead.send(watched.workload.clone());
            }
        }
    }

    /// Stops watching a workload.
    pub fn unwatch(&self, key: &WorkloadKey) {
        if let Some(task) = self.watched().remove(key) {
            task.abort();
        }
    }

    /// How many are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.watched().len()
    }

    /// Whether none is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watched().is_empty()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<WorkloadKey, AbortHandle>> {
        lock(&self.watched)
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        for task in self.watched().values() {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    /// In the host's pid namespace: the first process lives on, elsewhere.
    #[test]
    fn an_emptied_cgroup_is_a_dead_workload() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let mount = mayfly_kernel::mountinfo::mounts(&text)
            .filter_map(Result::ok)
            .find(|mount| mount.filesystem == b"cgroup2")
            .expect("a cgroup2 hierarchy");
        let root = String::from_utf8(mount.point.into_owned()).unwrap();
        let cgroup = format!("{root}/mayfly-death-{}", std::process::id());
        std::fs::create_dir(&cgroup).unwrap();
        let join = format!("echo $$ > {cgroup}/cgroup.procs && echo && exec sleep 60");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &join])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut joined = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut joined).unwrap();
        let key = WorkloadKey {
            boot_id: String::new(),
            cgroup_id: 1,
            pidns_id: 1,
        };
        let first = Pidfd::open(std::process::id()).unwrap();
        let events = File::open(format!("{cgroup}/cgroup.events")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (watch, mut dead) = DeathWatch::new();
            watch.watch(DeathTarget::new(key.clone(), first, Some(events), None));
            let early = tokio::time::timeout(Duration::from_millis(100), dead.recv()).await;
            assert!(early.is_err());
            child.kill().unwrap();
            child.wait().unwrap();
            let told = tokio::time::timeout(Duration::from_secs(30), dead.recv()).await;
            assert_eq!(told.unwrap(), Some(key));
        });
        std::fs::remove_dir(&cgroup).unwrap();
    }
}
