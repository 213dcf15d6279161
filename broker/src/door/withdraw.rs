//! Leases that operators end: one, a workload's, a credential's, a node's, all.
//!
//! The holders lose them at once. A session that is open does not get the same credential again; a new
//! session of the same workload does, and so does everybody once the credential is rotated. Who shall
//! never have it again is denied by policy.

use super::ends::{CLAIM, End, end_of, ending};
use super::operator::Act;
use super::which::fits;
use super::{Change, Door, Operator, lock, store_failed};
use crate::policy::entity;
use crate::store::{Lease, LeaseState, Op, Source};
use mayfly_wire::admin::{LeaseFilter, Progress, Revoke};
use mayfly_wire::audit::Event;
use mayfly_wire::{Code, CredentialName, LeaseId, Refusal, WorkloadKey};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Leases on their way at once: enough to keep the connections to a target busy while others share
/// commits.
const AT_ONCE: usize = 512;
/// Leases read in one go.
const PAGE: u32 = 1000;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);
/// Failures that are told one by one.
const PROBLEMS: usize = 10;
/// Lines of progress that may wait.
const LINES: usize = 64;

/// What sessions do not get again, in memory alone: a broker that starts has no old sessions.
#[derive(Default)]
pub struct Barred(Mutex<HashMap<WorkloadKey, BTreeSet<CredentialName>>>);

impl Barred {
    fn add(&self, workload: &WorkloadKey, credential: &CredentialName) {
        let mut all = lock(&self.0);
        all.entry(workload.clone())
            .or_default()
            .insert(credential.clone());
    }

    /// What a workload's open sessions do not get.
    pub fn of(&self, workload: &WorkloadKey) -> BTreeSet<CredentialName> {
        lock(&self.0).get(workload).cloned().unwrap_or_default()
    }

    /// It died, or has a new session.
    pub fn forget(&self, workload: &WorkloadKey) {
        lock(&self.0).remove(workload);
    }

    /// A credential is made anew for everybody.
    pub fn lift(&self, credential: &CredentialName) {
        lock(&self.0).retain(|_, names| {
            names.remove(credential);
            !names.is_empty()
        });
    }
}

/// Tells how far a long act is. Who listens may go; the act goes on.
pub(super) struct Teller {
    sender: mpsc::Sender<Progress>,
    so_far: Progress,
    told: tokio::time::Instant,
}

impl Teller {
    pub(super) fn new(total: usize) -> (Self, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(LINES);
        let so_far = Progress {
            total: total as u64,
            ..Progress::default()
        };
        let told = tokio::time::Instant::now();
        let teller = Self {
            sender,
            so_far,
            told,
        };
        (teller, receiver)
    }

    pub(super) fn count(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.so_far.done += 1,
            Err(problem) => {
                self.so_far.failed += 1;
                if self.so_far.problems.len() < PROBLEMS {
                    self.so_far.problems.push(problem);
                }
            }
        }
        if self.told.elapsed() >= TELL {
            self.told = tokio::time::Instant::now();
            let problems = Vec::new();
            let line = Progress {
                problems,
                ..self.so_far.clone()
            };
            let _ = self.sender.try_send(line);
        }
    }

    pub(super) async fn end(mut self) {
        self.so_far.end = true;
        let _ = self.sender.send(self.so_far).await;
    }
}

/// Does something with each of `all`, some at once, and tells how far it is.
pub(super) async fn each<T, F>(all: Vec<T>, mut teller: Teller, work: impl Fn(T) -> F)
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for one in all {
        if running.len() >= AT_ONCE
            && let Some(result) = running.join_next().await
        {
            teller.count(result.unwrap_or_else(|error| Err(error.to_string())));
        }
        running.spawn(work(one));
    }
    while let Some(result) = running.join_next().await {
        teller.count(result.unwrap_or_else(|error| Err(error.to_string())));
    }
    teller.end().await;
}

/// Which workloads the beginning of an id has named. What is ended by it must be of one alone: somebody
/// meant that one, or a name that none has.
struct Named<'a> {
    asked: Option<&'a str>,
    by_id: BTreeSet<String>,
}

impl<'a> Named<'a> {
    fn new(filter: &'a LeaseFilter) -> Self {
        Self {
            asked: filter.workload.as_deref(),
            by_id: BTreeSet::new(),
        }
    }

    fn note(&mut self, lease: &Lease) {
        if self.asked.is_some_and(|asked| lease.name != asked) {
            self.by_id.insert(lease.workload.id());
        }
    }

    fn is_clear(&self) -> Result<(), Refusal> {
        if self.by_id.len() < 2 {
            return Ok(());
        }
        let asked = self.asked.unwrap_or_default();
        let some: Vec<&str> = self.by_id.iter().take(5).map(String::as_str).collect();
        let message = format!(
            "{asked:?} begins the ids of {} workloads ({}, …): expected a name, or more of one id",
            self.by_id.len(),
            some.join(", ")
        );
        Err(Refusal::because(Code::Conflict, message))
    }
}

impl Door {
    /// Ends leases for an operator, and tells how far it is until the last line, which has `end`. Those
    /// that fail are tried again by themselves; with `forget` what they hold at a target stays there.
    ///
    /// # Errors
    /// [`Code::Denied`]; [`Code::BadRequest`] when every lease is meant and it is not said so;
    /// [`Code::Unavailable`].
    pub async fn revoke(
        self: &Arc<Self>,
        operator: &Operator,
        revoke: Revoke,
    ) -> Result<mpsc::Receiver<Progress>, Refusal> {
        let Revoke { which, all, forget } = revoke;
        if which == LeaseFilter::default() && !all {
            let message = "expected which leases, or all = true for every one";
            return Err(Refusal::because(Code::BadRequest, message));
        }
        let what = described(&which);
        let broker = || entity::broker().map_err(super::inside);
        let act = Act::on("revoke", "revoke", &what);
        self.allow(operator, act, broker()?).await?;
        if forget {
            let act = Act::on("forget", "forget", &what);
            self.allow(operator, act, broker()?).await?;
        }
        let leases = self.meant(&which).await?;
        let (teller, progress) = Teller::new(leases.len());
        let (door, label) = (Arc::clone(self), forget.then(|| operator.label()));
        self.spawn(async move {
            each(leases, teller, |(id, workload)| {
                let (door, label) = (Arc::clone(&door), label.clone());
                async move { door.revoke_one(id, workload, label).await }
            })
            .await;
        });
        Ok(progress)
    }

    /// The leases that fit, and whose they are.
    pub(super) async fn meant(
        &self,
        filter: &LeaseFilter,
    ) -> Result<Vec<(LeaseId, WorkloadKey)>, Refusal> {
        let some = match (&filter.lease, &filter.credential) {
            (Some(id), _) => {
                let lease = self.store.lease(id.clone()).await;
                Some(lease.map(|lease| lease.into_iter().collect()))
            }
            (None, Some(name)) => Some(self.store.leases_on(name.clone()).await),
            (None, None) if filter.stuck => Some(self.store.leases_in(LeaseState::Revoking).await),
            (None, None) => None,
        };
        let mut found = Vec::new();
        let mut named = Named::new(filter);
        let mut take = |leases: Vec<Lease>| {
            for lease in leases {
                let lease = self.with_problem(lease);
                if fits(filter, &lease) {
                    named.note(&lease);
                    found.push((lease.id, lease.workload));
                }
            }
        };
        if let Some(some) = some {
            take(some.map_err(store_failed)?);
            named.is_clear()?;
            return Ok(found);
        }
        let mut after = None;
        loop {
            let page = self.store.leases(after.take(), PAGE).await;
            let page: Vec<Lease> = page.map_err(store_failed)?;
            let last = page.last().map(|lease| lease.id.clone());
            let full = page.len() >= PAGE as usize;
            take(page);
            match last {
                Some(last) if full => after = Some(last),
                _ => break,
            }
        }
        named.is_clear()?;
        Ok(found)
    }

    /// A lease that could not even be tried, with what keeps its target from it.
    pub(super) fn with_problem(&self, lease: Lease) -> Lease {
        let Source::Account { connection, .. } = &lease.source else {
            return lease;
        };
        if lease.state != LeaseState::Revoking || !lease.problem.is_empty() {
            return lease;
        }
        let problem = self.lanes.of(connection).problem().unwrap_or_default();
        Lease { problem, ..lease }
    }

    /// Ends one. `forget` names who has it forgotten if that fails.
    async fn revoke_one(
        self: Arc<Self>,
        id: LeaseId,
        workload: WorkloadKey,
        forget: Option<String>,
    ) -> Result<(), String> {
        let Some(lease) = self.take_away(&id, &workload).await? else {
            return Ok(());
        };
        if !lease.source.has_target() {
            return Ok(());
        }
        let name = format!("{} of {}", lease.credential, lease.name);
        if forget.is_none() || lease.attempts == 0 {
            let asked = match self.place_soon(&lease).await {
                Ok(pass) => self.ask_back(&lease, pass.as_ref()).await,
                Err(problem) => Err(problem),
            };
            let problem = asked.clone().err();
            if self.put_down(&lease, asked).await {
                return Ok(());
            }
            if forget.is_none() {
                let why = problem.unwrap_or_else(|| "its end is not on disk yet".to_owned());
                return Err(format!("{name}: {why}"));
            }
        }
        match forget {
            Some(operator) => {
                let forgotten = self.forget_lease(lease, operator).await;
                forgotten.map_err(|problem| format!("{name}: {problem}"))
            }
            None => Ok(()),
        }
    }

    /// Takes a lease from its holder: it has ended, or must end on disk. What is left to do is the
    /// caller's, who gets it as it stands.
    async fn take_away(
        &self,
        id: &LeaseId,
        workload: &WorkloadKey,
    ) -> Result<Option<Lease>, String> {
        let failed = |problem: &dyn std::fmt::Display| format!("{id}: {problem}");
        let _turn = self.locks.turn(workload).await;
        let found = self.store.lease(id.clone()).await;
        let Some(lease) = found.map_err(|error| failed(&error))? else {
            return Ok(None);
        };
        if lease.state == LeaseState::Planned {
            self.creations.cancel(workload, &lease.credential).await;
        }
        if matches!(lease.state, LeaseState::Planned | LeaseState::Active) {
            self.barred.add(workload, &lease.credential);
        }
        let now = self.now_ms();
        let due_at = now + CLAIM;
        let End { op, event } = end_of(&lease, "revoked", now, due_at);
        // Its end does not wait for the record.
        let recorded = self.record_all(event.into_iter().collect()).await;
        let stored = self.store.commit(ending(&lease, op)).await;
        stored.map_err(|error| failed(&error))?;
        self.say(Change::Workload(workload.clone()));
        recorded.map_err(|refusal| failed(&refusal))?;
        if lease.source.has_target() {
            Ok(Some(lease.must_end("revoked", due_at)))
        } else {
            Ok(Some(lease))
        }
    }

    /// What a lease holds at its target stays there: on record, with who wanted that.
    async fn forget_lease(&self, lease: Lease, operator: String) -> Result<(), String> {
        let event = Event::Operator {
            operator,
            action: "lease.forget".to_owned(),
            resource: lease.id.to_string(),
            allowed: true,
            version: None,
            value_hmac: None,
        };
        let events = vec![event, super::ended(&lease, "forgotten")];
        let recorded = self.record_all(events).await;
        recorded.map_err(|refusal| refusal.to_string())?;
        let end = vec![Op::LeaseEnd(lease.id, self.now_ms())];
        match self.store.commit(end).await {
            Ok(()) | Err(crate::store::StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What an operator meant, for the record.
fn described(filter: &LeaseFilter) -> String {
    let LeaseFilter {
        lease,
        workload,
        credential,
        node,
        stuck,
    } = filter;
    let parts = [
        lease.as_ref().map(|id| format!("lease {id}")),
        workload.as_ref().map(|name| format!("workload {name}")),
        credential.as_ref().map(|name| format!("credential {name}")),
        node.as_ref().map(|name| format!("node {name}")),
        stuck.then(|| "stuck".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "all leases".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_away_is_barred_until_it_is_lifted() {
        let barred = Barred::default();
        let key = |number| crate::testing::evidence(number).workload;
        let name = |name: &str| name.parse::<CredentialName>().unwrap();
        barred.add(&key(1), &name("a"));
        barred.add(&key(1), &name("b"));
        barred.add(&key(2), &name("a"));
        assert_eq!(barred.of(&key(1)).len(), 2);
        barred.lift(&name("a"));
        assert_eq!(barred.of(&key(1)), BTreeSet::from([name("b")]));
        barred.forget(&key(1));
        assert!(lock(&barred.0).is_empty());
    }

    #[tokio::test]
    async fn progress_counts_everything_and_ends() {
        let (teller, mut lines) = Teller::new(200);
        each((0..200).collect(), teller, |number| async move {
            match number % 10 {
                0 => Err(format!("{number} fails")),
                _ => Ok(()),
            }
        })
        .await;
        let mut last = Progress::default();
        while let Some(line) = lines.recv().await {
            last = line;
        }
        assert_eq!((last.done, last.failed, last.total), (180, 20, 200));
        assert!(last.end && last.problems.len() == PROBLEMS);
    }

    #[test]
    fn the_record_says_what_was_meant() {
        assert_eq!(described(&LeaseFilter::default()), "all leases");
        let filter = LeaseFilter {
            node: Some("n1".into()),
            stuck: true,
            ..LeaseFilter::default()
        };
        assert_eq!(described(&filter), "node n1, stuck");
    }
}
