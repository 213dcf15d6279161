//! Binds what an engine says to the processes that the kernel attested, or does not believe it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::Container;
use super::engine::{Engine, EngineError, Inspected};
use super::host::Host;
use super::line::CgroupId;
use super::process::Process;

/// Most that a container's first process may seem younger than the engine says that the container is:
/// the kernel counts its start in ticks of 10 ms.
const TICK: Duration = Duration::from_millis(20);
/// USER_HZ: what start times count in, on every architecture that Linux still has (time(7)).
const TICKS_A_SECOND: u64 = 100;
/// How long to wait before the engine is asked again about a process that seems younger than its
/// container. Either the clock was set since the container started, or the container's first process
/// has died, another got its pid, and the engine (which takes 40 ms for it) has not noticed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Which cgroup a container should have.
pub(crate) enum Expected {
    /// This one: the container's first process is in it or below it.
    Within(CgroupId),
    /// Whichever its first process is in.
    Any,
}

/// A container as an engine has described it once.
pub(crate) struct Met {
    container: Container,
    first: Inspected,
    /// Its first process seems younger than it: not to be confirmed before [`PATIENCE`] has passed.
    pub younger: bool,
}

/// Asks an engine about a container, takes hold of the first process that it names, and asks again: it
/// is that container's if both answers are the same and the process is where the container should be,
/// and lives. `None` if the engine knows no such container, or it does not fit.
pub(crate) async fn bind(
    host: &Host,
    engine: &Engine,
    id: &str,
    expected: Expected,
) -> Result<Option<Arc<Container>>, EngineError> {
    let Some(met) = meet(host, engine, id, expected).await? else {
        return Ok(None);
    };
    if met.younger {
        tokio::time::sleep(PATIENCE).await;
    }
    met.confirm(engine).await
}

/// Asks an engine about a container for the first time, and takes hold of its first process.
pub(crate) async fn meet(
    host: &Host,
    engine: &Engine,
    id: &str,
    expected: Expected,
) -> Result<Option<Met>, EngineError> {
    let Some(first) = engine.inspect(id).await? else {
        return Ok(None);
    };
    let Some(container) = hold(host, &first, &expected) else {
        return Ok(None);
    };
    let younger = seems_younger(&container, &first.state.started_at);
    if younger {
        tracing::warn!(
            container = id,
            "its first process seems younger than the engine says: asking again in a second"
        );
    }
    Ok(Some(Met {
        container,
        first,
        younger,
    }))
}

impl Met {
    /// Asks again.
    pub(crate) async fn confirm(
        self,
        engine: &Engine,
    ) -> Result<Option<Arc<Container>>, EngineError> {
        let Some(second) = engine.inspect(&self.first.id).await? else {
            return Ok(None);
        };
        if second != self.first || !self.container.alive() {
            return Ok(None);
        }
        let metadata = engine.describe(second).await?;
        Ok(Some(Arc::new(Container {
            metadata: Some(metadata),
            ..self.container
        })))
    }
}

/// Takes hold of the process that the engine names, if it is where it should be.
fn hold(host: &Host, found: &Inspected, expected: &Expected) -> Option<Container> {
    if found.state.pid == 0 {
        return None;
    }
    let main = Process::open(host, found.state.pid).ok()?;
    let (cgroup, path) = match expected {
        Expected::Any => {
            let line = host.cgroups.line(host, &main).ok()??;
            (line.own(), line.path())
        }
        Expected::Within(outer) => {
            let line = host.cgroups.line_in(host, &main, outer.tree).ok()??;
            let level = line.ids().position(|id| id == *outer)?;
            (*outer, line.path_to(level + 1))
        }
    };
    let container = Container::first_seen(host, main, cgroup, path, None).ok()?;
    // A cgroup that is not named after a container may be others' as well (`--cgroups=disabled`), and
    // in the host's pid namespace nothing else would tell them apart.
    let vague = matches!(expected, Expected::Any) && container.pid_namespace.is_none();
    (!vague).then_some(container)
}

/// Whether a process was started after the engine says that its container was.
fn seems_younger(container: &Container, started_at: &str) -> bool {
    let Ok(claimed) = OffsetDateTime::parse(started_at, &Rfc3339) else {
        return true;
    };
    let Some(since_boot) = uptime() else {
        return true;
    };
    let at = Duration::from_millis(
        container
            .init_start_time
            .saturating_mul(1000 / TICKS_A_SECOND),
    );
    let started = SystemTime::now() - since_boot.saturating_sub(at);
    OffsetDateTime::from(started) - claimed > TICK
}

/// How long ago the host was booted, by the clock that processes' start times count in.
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}
