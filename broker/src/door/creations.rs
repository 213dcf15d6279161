//! Accounts that are being made, one at a time for each (workload, credential), and those that could not
//! be made a moment ago.

use super::lock;
use mayfly_wire::{Code, ConnectionName, CredentialName, LeaseId, WorkloadKey};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Workloads beyond which old failures are forgotten.
const MANY: usize = 4096;

/// All of them.
#[derive(Clone, Default)]
pub struct Creations(Arc<Mutex<Map>>);

type Map = HashMap<WorkloadKey, BTreeMap<CredentialName, Entry>>;

enum Entry {
    Running(Running),
    /// Made, and not given to anybody yet.
    Made(LeaseId),
    Failed(Failure),
}

#[derive(Clone)]
struct Running {
    cancel: Arc<watch::Sender<bool>>,
    calling: watch::Receiver<bool>,
    done: watch::Receiver<()>,
}

/// Why one could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the client.
    pub code: Code,
    /// For the operator.
    pub cause: String,
    /// How often in a row.
    pub attempts: u32,
    /// When it is tried again: milliseconds since the Unix epoch.
    pub until: u64,
    /// The target.
    pub connection: ConnectionName,
}

/// How a creation stands.
pub enum Standing {
    /// None runs, and one may begin. `attempts` failed before.
    Idle { attempts: u32 },
    /// One runs.
    Running(Done),
    /// It failed, and is not tried again yet.
    Failed(Failure),
}

/// Tells when a creation has ended, however it did.
#[derive(Clone)]
pub struct Done(watch::Receiver<()>);

impl Done {
    /// Completes then.
    pub async fn wait(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// The right to make one, held by the task that makes it.
pub struct Ticket {
    creations: Creations,
    workload: WorkloadKey,
    credential: CredentialName,
    cancelled: watch::Receiver<bool>,
    calling: watch::Sender<bool>,
    attempts: u32,
    // Dropped with the ticket, which is what tells of its end.
    _done: watch::Sender<()>,
}

impl Creations {
    /// How one stands at `now`.
    pub fn standing(
        &self,
        workload: &WorkloadKey,
        credential: &CredentialName,
        now: u64,
    ) -> Standing {
        let map = lock(&self.0);
        let entry = map.get(workload).and_then(|all| all.get(credential));
        match entry {
            Some(Entry::Running(running)) => Standing::Running(Done(running.done.clone())),
            Some(Entry::Failed(failure)) if now < failure.until => {
                Standing::Failed(failure.clone())
            }
            Some(Entry::Failed(failure)) => Standing::Idle {
                attempts: failure.attempts,
            },
            Some(Entry::Made(_)) | None => Standing::Idle { attempts: 0 },
        }
    }

    /// Whether one runs.
    pub fn runs(&self, workload: &WorkloadKey, credential: &CredentialName) -> bool {
        let map = lock(&self.0);
        let entry = map.get(workload).and_then(|all| all.get(credential));
        matches!(entry, Some(Entry::Running(_)))
    }

    /// Begins one, unless one runs.
    pub fn begin(
        &self,
        workload: &WorkloadKey,
        credential: &CredentialName,
        attempts: u32,
    ) -> Option<(Ticket, Done)> {
        let (cancel, cancelled) = watch::channel(false);
        let (calling, is_calling) = watch::channel(false);
        let (done, is_done) = watch::channel(());
        let running = Running {
            cancel: Arc::new(cancel),
            calling: is_calling,
            done: is_done.clone(),
        };
        let mut map = lock(&self.0);
        let entries = map.entry(workload.clone()).or_default();
        if matches!(entries.get(credential), Some(Entry::Running(_))) {
            return None;
        }
        entries.insert(credential.clone(), Entry::Running(running));
        let ticket = Ticket {
            creations: self.clone(),
            workload: workload.clone(),
            credential: credential.clone(),
            cancelled,
            calling,
            attempts,
            _done: done,
        };
        Some((ticket, Done(is_done)))
    }

    /// Notes that one cannot even begin.
    pub fn fail(&self, workload: &WorkloadKey, credential: &CredentialName, failure: Failure) {
        self.set(workload, credential, Some(Entry::Failed(failure)));
    }

    /// Gives one up: its engine is asked nothing more about it when this returns.
    pub async fn cancel(&self, workload: &WorkloadKey, credential: &CredentialName) {
        let running = {
            let map = lock(&self.0);
            let entry = map.get(workload).and_then(|all| all.get(credential));
            match entry {
                Some(Entry::Running(running)) => running.clone(),
                _ => return,
            }
        };
        running.give_up().await;
    }

    /// Gives up all of a workload that died, and forgets it.
    pub async fn cancel_all(&self, workload: &WorkloadKey) {
        let running: Vec<_> = {
            let mut map = lock(&self.0);
            let Some(entries) = map.get_mut(workload) else {
                return;
            };
            entries.retain(|_, entry| matches!(entry, Entry::Running(_)));
            let running = entries.values().filter_map(|entry| match entry {
                Entry::Running(running) => Some(running.clone()),
                Entry::Made(_) | Entry::Failed(_) => None,
            });
            let running = running.collect();
            if entries.is_empty() {
                map.remove(workload);
            }
            running
        };
        for one in running {
            one.give_up().await;
        }
    }

    /// Says once whether a lease was made and given to nobody yet: its record stands already.
    pub fn take_made(
        &self,
        workload: &WorkloadKey,
        credential: &CredentialName,
        lease: &LeaseId,
    ) -> bool {
        let is_it = {
            let map = lock(&self.0);
            let entry = map.get(workload).and_then(|all| all.get(credential));
            matches!(entry, Some(Entry::Made(made)) if made == lease)
        };
        if is_it {
            self.set(workload, credential, None);
        }
        is_it
    }

    /// Has what failed at a target tried again now, and gives the workloads that wait for it.
    pub fn retry(&self, connection: &ConnectionName) -> Vec<WorkloadKey> {
        let mut map = lock(&self.0);
        let mut waiting = Vec::new();
        for (workload, entries) in &mut *map {
            let mut waits = false;
            for entry in entries.values_mut() {
                if let Entry::Failed(failure) = entry
                    && failure.connection == *connection
                {
                    failure.until = 0;
                    waits = true;
                }
            }
            if waits {
                waiting.push(workload.clone());
            }
        }
        waiting
    }

    fn set(&self, workload: &WorkloadKey, credential: &CredentialName, entry: Option<Entry>) {
        let mut map = lock(&self.0);
        if let Some(Entry::Failed(failure)) = &entry
            && map.len() > MANY
        {
            // Workloads that went without a word leave their failures behind.
            let old = failure.until.saturating_sub(15 * 60 * 1000);
            map.retain(|_, entries| {
                entries.retain(|_, entry| match entry {
                    Entry::Failed(failure) => failure.until > old,
                    Entry::Running(_) | Entry::Made(_) => true,
                });
                !entries.is_empty()
            });
        }
        let entries = map.entry(workload.clone()).or_default();
        match entry {
            Some(entry) => {
                entries.insert(credential.clone(), entry);
            }
            None => {
                entries.remove(credential);
            }
        }
        if entries.is_empty() {
            map.remove(workload);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Running {
    async fn give_up(mut self) {
        self.cancel.send_replace(true);
        // An error says that the task is gone, which is as good.
        let _ = self.calling.wait_for(|calling| !calling).await;
    }
}

impl Ticket {
    /// How often it failed before.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Tells whether it was given up.
    pub fn cancelled(&self) -> watch::Receiver<bool> {
        self.cancelled.clone()
    }

    /// Whether it was given up.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Asks an engine, unless this is given up: then what was asked is dropped, and there is no answer.
    pub async fn call<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        self.calling.send_replace(true);
        let answer = if self.is_cancelled() {
            None
        } else {
            tokio::select! {
                biased;
                _ = self.cancelled.wait_for(|cancelled| *cancelled) => None,
                answer = work => Some(answer),
            }
        };
        // The future is dropped by now.
        self.calling.send_replace(false);
        answer
    }

    /// It was made. Of what was given up nothing stays: nobody would come for it.
    pub fn made(self, lease: LeaseId) {
        if self.is_cancelled() {
            return;
        }
        let entry = Some(Entry::Made(lease));
        self.creations.set(&self.workload, &self.credential, entry);
    }

    /// It was not.
    pub fn failed(self, failure: Failure) {
        if self.is_cancelled() {
            return;
        }
        self.creations
            .fail(&self.workload, &self.credential, failure);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.creations.runs(&self.workload, &self.credential) {
            self.creations.set(&self.workload, &self.credential, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::evidence;

    fn failure(until: u64) -> Failure {
        Failure {
            code: Code::Unavailable,
            cause: "no answer".into(),
            attempts: 1,
            until,
            connection: "shop".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let creations = Creations::default();
        let (key, name) = (evidence(1).workload, "db".parse().unwrap());
        let (ticket, done) = creations.begin(&key, &name, 0).unwrap();
        assert!(creations.begin(&key, &name, 0).is_none());
        assert!(matches!(
            creations.standing(&key, &name, 0),
            Standing::Running(_)
        ));
        drop(ticket);
        done.wait().await;
        assert_eq!(creations.len(), 0);

        let (ticket, _) = creations.begin(&key, &name, 0).unwrap();
        ticket.failed(failure(50));
        assert!(matches!(
            creations.standing(&key, &name, 49),
            Standing::Failed(_)
        ));
        assert!(matches!(
            creations.standing(&key, &name, 50),
            Standing::Idle { attempts: 1 }
        ));
        assert_eq!(creations.retry(&"other".parse().unwrap()), []);
        assert_eq!(
            creations.retry(&"shop".parse().unwrap()),
            std::slice::from_ref(&key)
        );
        assert!(matches!(
            creations.standing(&key, &name, 0),
            Standing::Idle { .. }
        ));

        let (ticket, _) = creations.begin(&key, &name, 1).unwrap();
        let lease = LeaseId::from_random([1; 16]);
        ticket.made(lease.clone());
        assert!(creations.take_made(&key, &name, &lease));
        assert!(!creations.take_made(&key, &name, &lease));
        assert_eq!(creations.len(), 0);
    }

    #[tokio::test]
    async fn what_is_given_up_is_dropped_before_that_is_said() {
        let creations = Creations::default();
        let (key, name): (_, CredentialName) = (evidence(1).workload, "db".parse().unwrap());
        let (mut ticket, done) = creations.begin(&key, &name, 0).unwrap();
        let asked = Arc::new(());
        let held = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let hangs = async move {
                let _held = held;
                std::future::pending::<()>().await;
            };
            assert!(ticket.call(hangs).await.is_none());
            assert!(ticket.call(async {}).await.is_none());
        });
        while Arc::strong_count(&asked) != 2 {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        creations.cancel_all(&key).await;
        assert_eq!(Arc::strong_count(&asked), 1);
        done.wait().await;
        task.await.unwrap();
        assert_eq!(creations.len(), 0);
    }

    #[test]
    fn failures_of_workloads_that_went_are_forgotten() {
        let creations = Creations::default();
        let name: CredentialName = "db".parse().unwrap();
        for number in 0..2 * MANY as u64 {
            let until = number * 1000;
            creations.fail(&evidence(number).workload, &name, failure(until));
        }
        assert!(creations.len() <= MANY + 1, "{}", creations.len());
    }
}
