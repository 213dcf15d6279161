//! The volumes that this node owns. A sidecar publishes into one and says in `..data/..expiry` when
//! each file must go; the node does it when the sidecar does not, because it is frozen, killed, or gone
//! with its container. What has to be known for it stands in the volume and with the kernel, so a node
//! that was started anew goes on as if nothing had been.
//!
//! | file | what |
//! |---|---|
//! | `config`, `mount` | what is configured, and made or found at the start |
//! | `users` | who has a volume, by the kernel and by attestation |
//! | `clear` | emptying one that nobody has any more |
//! | `outbox` | what was done, on its way to the audit log |

mod clear;
mod config;
mod mount;
mod outbox;
mod users;

pub use config::VolumeConfig;
pub(crate) use config::check;
pub use mount::VolumeError;
pub(crate) use mount::{Volume, prepare};
pub(crate) use outbox::Outbox;

use crate::attest::{Attestor, Holder};
use crate::served::Served;
use mayfly_kernel::expiry::{Sweep, lines};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::OverdueAct;
use nix::libc::{SIGKILL, SIGTERM};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use users::Having;

/// A sidecar that lives removes its files at the very moment, and so does the shim a second later; the
/// node goes last.
const SLACK_MS: u64 = 2_000;
/// How often the records are read, at least: a new one can end before all that were there.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is asked who has a volume in which there is something, without a death that says so.
const ASK: Duration = Duration::from_secs(60);
/// How long a workload that is to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How many times as long as looking at a volume took it is left alone then: whoever writes into one
/// can make that long, and must not take the node's time.
const REST: u32 = 10;
/// Least time between two rounds.
const LEAST: Duration = Duration::from_millis(20);
/// Most things that are remembered as told, of one volume.
const MOST_TOLD: usize = 4096;

/// Watches over the volumes.
pub(crate) struct Keeper {
    pub(crate) volumes: Vec<Volume>,
    pub(crate) attestor: Arc<Attestor>,
    pub(crate) served: Arc<Served>,
    pub(crate) outbox: Arc<Outbox>,
}

/// What is known of one volume between two looks.
#[derive(Default)]
struct State {
    /// What was reported that is found again at each look: the act, the path, and when it ended.
    told: HashSet<(OverdueAct, String, u64)>,
    /// The workloads that were told to end, and when they are killed.
    ending: HashMap<WorkloadKey, (Pidfd, Option<Instant>)>,
    /// When it is asked next who has it.
    ask: Option<Instant>,
    /// Processes that had it when it was asked, one of each mount namespace. Not all of them are of
    /// workloads whose deaths are told.
    having: Vec<Having>,
    /// It is left alone until then.
    rests: Option<Instant>,
}

/// What is found at one look.
#[derive(Default)]
struct Looked {
    sweep: Sweep,
    /// Expired and kept, and when it expired.
    stale: Vec<(String, u64)>,
    /// Expired, and with it the application.
    stopping: Vec<String>,
    empty: bool,
    /// How long that took a processor.
    took: Duration,
}

impl Keeper {
    /// Never ends.
    pub(crate) async fn run(self) {
        let keeper = Arc::new(self);
        let mut states: Vec<State> = keeper.volumes.iter().map(|_| State::default()).collect();
        loop {
            let wait = match keeper.round(&mut states).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "cannot look after the volumes");
                    LOOK
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = keeper.served.deaths() => {
                    for state in &mut states {
                        state.ask = None;
                    }
                    // Those who die together are asked about together.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    /// Looks once at every volume that does not rest. Returns how long the next look has time.
    async fn round(self: &Arc<Self>, states: &mut [State]) -> io::Result<Duration> {
        let now = now_ms();
        let awake: Vec<_> = states
            .iter()
            .map(|state| state.rest_left().is_zero())
            .collect();
        let this = Arc::clone(self);
        let looked = blocking(move || {
            let volumes = this.volumes.iter().zip(awake);
            let looked = volumes.map(|(one, awake)| awake.then(|| look(one, now)));
            looked.collect()
        });
        let looked: Vec<Option<Looked>> = looked.await?;
        for state in &mut *states {
            if !state.having.iter().all(Having::alive) {
                state.ask = None;
            }
        }
        let users = self.users(&looked, states).await;
        // What was removed is reported all the same.
        let known = users.is_ok();
        let (mut users, asking) = users.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell who has the volumes");
            Default::default()
        });
        let mut wait = LOOK;
        let mut least = LEAST.max(asking);
        for (at, (looked, state)) in looked.iter().zip(states).enumerate() {
            wait = wait.min(state.end_due());
            let (Some(volume), Some(looked)) = (self.volumes.get(at), looked) else {
                wait = wait.min(state.rest_left());
                continue;
            };
            least += looked.took;
            let mut rest = looked.took;
            if let Some(having) = users.remove(&at) {
                rest += asking;
                state.ask = Some(Instant::now() + ASK);
                let holders = users::workloads(&self.attestor, volume, &having).await;
                let unused = having.is_empty();
                state.having = having;
                self.act(volume, looked, state, &holders, unused).await?;
            } else if !known && state.news(looked) {
                self.act(volume, looked, state, &[], false).await?;
            }
            state.rests = Some(Instant::now() + rest * REST);
            if let Some(next) = looked.sweep.next {
                let due = next.saturating_add(SLACK_MS).saturating_sub(now_ms());
                wait = wait.min(Duration::from_millis(due).max(state.rest_left()));
            }
        }
        Ok(wait.max(least))
    }

    /// The processes that have those volumes about which it matters now, and how long it took a
    /// processor to find them.
    async fn users(
        self: &Arc<Self>,
        looked: &[Option<Looked>],
        states: &[State],
    ) -> io::Result<(HashMap<usize, Vec<Having>>, Duration)> {
        let now = Instant::now();
        let matters = |(looked, state): (&Option<Looked>, &State)| {
            let due = || state.ask.is_none_or(|at| at <= now);
            let looked = looked.as_ref();
            looked.is_some_and(|looked| state.news(looked) || (!looked.empty && due()))
        };
        let all = looked.iter().zip(states).enumerate();
        let matters: Vec<_> = all
            .filter_map(|(at, one)| matters(one).then_some(at))
            .collect();
        if matters.is_empty() {
            return Ok(Default::default());
        }
        let this = Arc::clone(self);
        blocking(move || {
            let begun = cpu_time();
            let volumes = matters.iter().filter_map(|at| this.volumes.get(*at));
            let found = users::processes(&volumes.collect::<Vec<_>>())?;
            let found = matters.into_iter().zip(found).collect();
            Ok((found, cpu_time().saturating_sub(begun)))
        })
        .await?
    }

    /// Does, and reports, what a look calls for.
    async fn act(
        self: &Arc<Self>,
        volume: &Volume,
        looked: &Looked,
        state: &mut State,
        holders: &[Holder],
        unused: bool,
    ) -> io::Result<()> {
        let who: Vec<_> = holders
            .iter()
            .map(|holder| holder.workload.clone())
            .collect();
        let put = |act, items: &[String], who: &[WorkloadKey]| {
            if !items.is_empty() {
                self.outbox.put(&volume.name, act, items, who);
            }
        };
        put(OverdueAct::ExpiredRemoved, &looked.sweep.removed, &who);
        let failed = looked.sweep.failed.iter().map(|(path, _)| (path, 0));
        put(
            OverdueAct::NotRemoved,
            &state.untold(OverdueAct::NotRemoved, failed),
            &who,
        );
        let stale = looked.stale.iter().map(|(path, at)| (path, *at));
        put(
            OverdueAct::KeptStale,
            &state.untold(OverdueAct::KeptStale, stale),
            &who,
        );
        if let Some(ended) = looked.sweep.stop {
            let ran_on = |holder: &&Holder| started_ms(holder.started) < ended;
            for holder in holders.iter().filter(ran_on) {
                if !state.ending.contains_key(&holder.workload) {
                    let workload = std::slice::from_ref(&holder.workload);
                    put(OverdueAct::StoppedStale, &looked.stopping, workload);
                    state.end(holder);
                }
            }
        }
        if unused && !looked.empty {
            self.clear(volume).await?;
        }
        Ok(())
    }

    async fn clear(self: &Arc<Self>, volume: &Volume) -> io::Result<()> {
        let (this, name) = (Arc::clone(self), volume.name.clone());
        let cleared = blocking(move || {
            let volume = this.volumes.iter().find(|volume| volume.name == name)?;
            // Others were asked about since, and that can take seconds, in which a container started.
            let unused =
                users::processes(&[volume]).is_ok_and(|found| found.iter().all(Vec::is_empty));
            unused.then(|| clear::clear(&volume.area))
        })
        .await?;
        let Some(cleared) = cleared else {
            return Ok(());
        };
        if let Some((name, errno)) = &cleared.failed {
            tracing::error!(volume = volume.name, name, %errno, "cannot clear a volume");
        }
        tracing::info!(
            volume = volume.name,
            files = cleared.files,
            "cleared a volume"
        );
        if !cleared.items.is_empty() {
            self.outbox
                .put(&volume.name, OverdueAct::Cleared, &cleared.items, &[]);
        }
        Ok(())
    }
}

impl State {
    fn rest_left(&self) -> Duration {
        let now = Instant::now();
        self.rests
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Whether a look has found what is to be acted upon.
    fn news(&self, looked: &Looked) -> bool {
        let told = |act, path: &String, at| self.told.contains(&(act, path.clone(), at));
        let failed = looked.sweep.failed.iter();
        let mut failed = failed.map(|(path, _)| told(OverdueAct::NotRemoved, path, 0));
        let mut stale = looked
            .stale
            .iter()
            .map(|(path, at)| told(OverdueAct::KeptStale, path, *at));
        !looked.sweep.removed.is_empty()
            || looked.sweep.stop.is_some()
            || failed.any(|told| !told)
            || stale.any(|told| !told)
    }

    /// Those paths that were not told of yet.
    fn untold<'a>(
        &mut self,
        act: OverdueAct,
        items: impl Iterator<Item = (&'a String, u64)>,
    ) -> Vec<String> {
        if self.told.len() > MOST_TOLD {
            self.told.clear();
        }
        let new = items.filter(|(path, at)| self.told.insert((act, (*path).clone(), *at)));
        new.map(|(path, _)| path.clone()).collect()
    }

    /// Tells a workload to end.
    fn end(&mut self, holder: &Holder) {
        let workload = &holder.workload;
        tracing::warn!(workload = workload.id(), "stopping a workload");
        if let Err(error) = holder.first.send_signal(SIGTERM) {
            tracing::error!(%error, workload = workload.id(), "cannot stop a workload");
        }
        if let Ok(first) = holder.first.try_clone() {
            let kill_at = Some(Instant::now() + GRACE);
            self.ending.insert(workload.clone(), (first, kill_at));
        }
    }

    /// Kills those that had their time. Returns how long the next one has.
    fn end_due(&mut self) -> Duration {
        self.ending
            .retain(|_, (first, _)| first.alive().unwrap_or(false));
        let now = Instant::now();
        let mut wait = LOOK;
        for (workload, (first, kill_at)) in &mut self.ending {
            let Some(at) = *kill_at else { continue };
            if at > now {
                wait = wait.min(at - now);
                continue;
            }
            *kill_at = None;
            tracing::warn!(workload = workload.id(), "killing a workload");
            if let Err(error) = first.send_signal(SIGKILL) {
                tracing::error!(%error, workload = workload.id(), "cannot kill a workload");
            }
        }
        wait
    }
}

/// Removes what is overdue in a volume, and looks what else there is.
fn look(volume: &Volume, now: u64) -> Looked {
    let begun = cpu_time();
    let until = now.saturating_sub(SLACK_MS);
    let record = volume.area.record();
    let stale = lines(&record).filter(|line| line.expires_at <= until && line.gone_at > until);
    let stopping = lines(&record).filter(|line| line.gone_at <= until && line.stop);
    let path = |line: mayfly_kernel::expiry::Line<'_>| line.path.to_owned();
    Looked {
        stale: stale.map(|line| (path(line), line.expires_at)).collect(),
        stopping: stopping.map(path).collect(),
        sweep: volume.area.sweep(until),
        empty: clear::is_empty(&volume.area),
        took: cpu_time().saturating_sub(begun),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// How long this thread has run: on a busy machine that is less than what has passed.
fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// The time of day that sidecars write their records by.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Clock ticks since boot as a time of day.
fn started_ms(ticks: u64) -> u64 {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second = per_second
        .ok()
        .flatten()
        .and_then(|per| u64::try_from(per).ok());
    let started = ticks.saturating_mul(1000) / per_second.unwrap_or(100).max(1);
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let up = boot.map_or(Duration::ZERO, Duration::from);
    let up = u64::try_from(up.as_millis()).unwrap_or(u64::MAX);
    now_ms().saturating_sub(up).saturating_add(started)
}
