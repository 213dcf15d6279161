//! Attestation: who is at the other end of the workload socket, by what the kernel says.
//!
//! | file | what |
//! |---|---|
//! | `host` | what the kernel has, and what counts as the host's, found once |
//! | `peer`, `process` | handles on processes, and what is read through them |
//! | `cgroups` | cgroups by id, and what they are inside of |
//! | `engine`, `bind` | what container engines say, and whether it is to be believed |
//! | `container`, `init`, `locate` | containers as first seen, and how one is found |
//! | `facts` → `posture`, `judge`, `sockets` | gathering → judging; these are pure |

mod bind;
mod capabilities;
mod cgroups;
mod container;
mod engine;
mod error;
mod facts;
mod host;
mod init;
mod judge;
mod locate;
mod peer;
mod posture;
mod process;
mod sockets;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_kernel::ns::Namespace;
use mayfly_kernel::probe;
use mayfly_kernel::socket::{Received, pass_credentials, pass_pidfd};
use mayfly_wire::evidence::Companion;
use mayfly_wire::link::Watched;
use mayfly_wire::{Assurance, Evidence, Facility, Posture, WorkloadKey};

pub use error::{AttestError, AttestSetupError};
pub use peer::{Origin, Peer};

use crate::death::DeathTarget;
use cgroups::{CgroupId, Line};
use container::Container;
use engine::Engine;
use error::{PEER_EXITED, SENDER_IN_OTHER_CONTAINER, SENDER_UNKNOWN};
use facts::Facts;
use host::Host;
use judge::{Belongs, Seat};
use locate::Registry;
use posture::{Began, LimitTexts};
use process::Process;
use sockets::Exposed;

/// How long the list of engines' sockets is taken as it was.
const SOCKETS_AGE: Duration = Duration::from_secs(1);

/// How to attest.
#[derive(Clone, Debug, Default)]
pub struct AttestConfig {
    /// The node's name, as it stands in evidence.
    pub node: String,
    /// Sockets of container engines that speak the Docker Engine API.
    pub engine_sockets: Vec<PathBuf>,
    /// Facilities of the kernel that must not be used, so that tests reach what replaces them. Each
    /// is told in the evidence as lacking.
    pub forbid: Vec<Facility>,
}

/// Attests peers. One for the whole node, shared.
#[derive(Debug)]
pub struct Attestor {
    host: Host,
    registry: Arc<Registry>,
    sockets: Mutex<Option<(Instant, Arc<[Exposed]>)>>,
    config: AttestConfig,
}

/// Someone attested.
#[derive(Debug)]
pub struct Attested {
    /// What was established.
    pub evidence: Evidence,
    /// What tells when the workload is dead: hand it to [`crate::death::DeathWatch`].
    pub death: DeathTarget,
}

/// Whose a process is.
struct Located {
    /// The workload's container.
    workload: Arc<Container>,
    /// The companion's, where one asks for the workload.
    companion: Option<Guest>,
}

/// A companion.
struct Guest {
    /// Its cgroup; `None` for the root.
    cgroup: Option<CgroupId>,
    /// Its container, if an engine knows it.
    container: Option<Arc<Container>>,
}

impl Attestor {
    /// Finds out what this host has.
    ///
    /// # Errors
    ///
    /// [`AttestSetupError`] if nobody could be attested from here, with what to do.
    pub fn new(config: AttestConfig) -> Result<Self, AttestSetupError> {
        let engines = config.engine_sockets.iter().cloned().map(Engine::new);
        Ok(Self {
            host: Host::find(&config.forbid)?,
            registry: Arc::new(Registry::new(engines.collect())),
            sockets: Mutex::new(None),
            config,
        })
    }

    /// What the kernel lacks, or what must not be used.
    #[must_use]
    pub fn facilities_lacking(&self) -> BTreeSet<Facility> {
        self.host.lacking.clone()
    }

    /// This boot's id, as it stands in every workload's key.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.host.boot_id
    }

    /// Makes the kernel say who sent each message, on every connection that this listener accepts.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn listener_options(&self, listener: impl AsFd) -> io::Result<()> {
        pass_credentials(&listener)?;
        if self.host.facilities.has(probe::Facility::SenderPidfd) {
            pass_pidfd(&listener)?;
        }
        Ok(())
    }

    /// Takes hold of the peer of a connection. Right after the accept: until then, its pid may pass
    /// to another process, which on a kernel without SO_PEERPIDFD costs the peer its proof.
    ///
    /// # Errors
    ///
    /// `peer_exited`, `peer_unseen`, `unreadable`.
    pub fn connected(&self, stream: impl AsFd) -> Result<Peer, AttestError> {
        Peer::connected(&self.host, stream)
    }

    /// Establishes everything about a peer, afresh. The engine is asked once for each container.
    ///
    /// # Errors
    ///
    /// `peer_unproven`, `peer_exited`, `not_a_container`, `ambiguous_container`, `unreadable`,
    /// `engine_unavailable`.
    pub async fn attest(&self, peer: &Peer) -> Result<Attested, AttestError> {
        peer.check_proven()?;
        let named = |mut error: AttestError| {
            let line = self.host.cgroups.line(&self.host, peer.process());
            error.cgroup_path = line.ok().flatten().map(|line| line.path());
            peer.named(error)
        };
        let located = self.locate(peer.process()).await.map_err(named)?;
        let key = self.key_of(&located.workload);
        let evidence = self.evidence(peer, &located, key.clone());
        let evidence = evidence.map_err(|mut error| {
            error.workload = Some(key.clone());
            named(error)
        })?;
        let container = located.workload;
        let first = container.init.pidfd.try_clone();
        let first = first.map_err(|error| named(AttestError::reading("its pidfd", &error)))?;
        let events = self.events_of(&container.seat());
        let held = Held {
            registry: Arc::clone(&self.registry),
            container,
        };
        // The last thing: what was read was the peer's, and it has not exited.
        peer.check_alive()?;
        Ok(Attested {
            evidence,
            death: DeathTarget::new(key, first, events, Some(held)),
        })
    }

    /// Checks that a message came from the peer itself, or from another process of its container, and
    /// carried no descriptors. Cheap if it came from the peer itself.
    ///
    /// # Errors
    ///
    /// `descriptors_passed`, `sender_unknown`, `sender_in_other_container`, `peer_exited`.
    pub fn check_sender(&self, peer: &Peer, received: &Received) -> Result<(), AttestError> {
        if peer.sent(received)? {
            return Ok(());
        }
        self.check_other_sender(peer, received)
            .map_err(|error| peer.named(error))
    }
}

impl Attestor {
    /// Finds the workload that a process speaks for.
    async fn locate(&self, process: &Process) -> Result<Located, AttestError> {
        let host = &self.host;
        let line = host.cgroups.line(host, process)?;
        let own = self.inspected(line.as_deref()).await?;
        let seat = own.as_deref().map(Container::seat);
        let Some(namespace) = process.pid_namespaces(host)?.pop() else {
            judge::in_host_pid_namespace(seat)?;
            // Judged to be there.
            let workload = own.ok_or_else(|| AttestError::new(error::NOT_A_CONTAINER, ""))?;
            return Ok(Located::own(workload));
        };
        let id = host.namespace_id(&namespace);
        let id = id.map_err(|error| AttestError::reading("its pid namespace", &error))?;
        // The usual case needs no look at the first process: it is the one that the container was
        // found by.
        if let Some(container) = &own
            && container.began_pid_namespace(id)
        {
            return Ok(Located::own(Arc::clone(container)));
        }
        let first = self.container_of_first(&namespace, id).await?;
        let belongs = judge::in_pid_namespace(id, line.as_deref(), seat, first.seat())?;
        let companion = (belongs == Belongs::Joined).then(|| Guest {
            cgroup: seat
                .map(|seat| seat.cgroup)
                .or(line.as_deref().map(Line::own)),
            container: own,
        });
        Ok(Located {
            workload: first,
            companion,
        })
    }

    async fn inspected(&self, line: Option<&Line>) -> Result<Option<Arc<Container>>, AttestError> {
        match line {
            Some(line) => self.registry.inspected(&self.host, line).await,
            None => Ok(None),
        }
    }

    /// The container that a pid namespace's first process is in.
    async fn container_of_first(
        &self,
        namespace: &Namespace,
        id: u64,
    ) -> Result<Arc<Container>, AttestError> {
        let host = &self.host;
        let bare = self.registry.bare(host, namespace, id)?;
        let line = host.cgroups.line(host, &bare.init)?;
        match self.inspected(line.as_deref()).await? {
            // One and the same first process, or an engine's container with the host's pid
            // namespace, in which the namespace was made.
            Some(found) if found.pid_namespace.is_none() || found.init.pid == bare.init.pid => {
                Ok(found)
            }
            Some(_) => Err(AttestError::new(
                error::AMBIGUOUS,
                "the first process of its pid namespace is in an engine's container, but is not the \
                 one that the engine started",
            )),
            None => Ok(bare),
        }
    }

    fn key_of(&self, container: &Container) -> WorkloadKey {
        let host = &self.host;
        WorkloadKey {
            boot_id: host.boot_id.clone(),
            cgroup_id: container.cgroup.number(),
            pidns_id: container
                .pid_namespace_id()
                .unwrap_or(host.own_pid_namespace),
        }
    }

    fn evidence(
        &self,
        peer: &Peer,
        located: &Located,
        workload: WorkloadKey,
    ) -> Result<Evidence, AttestError> {
        let container = &located.workload;
        // What the peer itself stands in; unknown for a companion that no engine knows.
        let home = match &located.companion {
            None => Some(container),
            Some(guest) => guest.container.as_ref(),
        };
        let home = home.map(|home| &**home);
        let facts = Facts::read(&self.host, peer.process(), home, None)?;
        let own_namespaces = home.map(|home| posture::in_own_namespaces(&facts, Began::of(home)));
        let peer_posture = self.judge(&facts, home);
        let init = if located.companion.is_none() && peer.pid() == container.init.pid {
            peer_posture.clone()
        } else {
            let read = Facts::read(&self.host, &container.init, Some(container), Some(&facts));
            self.judge(&read?, Some(container))
        };
        Ok(Evidence {
            workload,
            node: self.config.node.clone(),
            assurance: match container.metadata {
                Some(_) => Assurance::Inspected,
                None => Assurance::Kernel,
            },
            lacking: self.lacking(container),
            cgroup_path: Some(container.cgroup_path.clone()),
            container: container.metadata.clone(),
            companion: located.companion.as_ref().map(|guest| Companion {
                cgroup_id: guest.cgroup.map_or(1, CgroupId::number),
                container: guest
                    .container
                    .as_ref()
                    .and_then(|found| found.metadata.clone()),
            }),
            own_namespaces,
            peer: peer_posture,
            init,
            init_pid: container.init.pid,
            init_start_time: container.init_start_time,
        })
    }

    fn judge(&self, facts: &Facts, home: Option<&Container>) -> Posture {
        let limits = home.map(LimitTexts::of).unwrap_or_default();
        posture::posture(facts, home.map(Began::of), &limits, &self.engines_sockets())
    }

    /// What the node's kernel lacks, and whether this container's cgroup is not one of v2.
    fn lacking(&self, container: &Container) -> BTreeSet<Facility> {
        let mut lacking = self.host.lacking.clone();
        if container.cgroup.tree != cgroups::Tree::V2 {
            lacking.insert(Facility::CgroupV2);
        }
        lacking
    }

    fn engines_sockets(&self) -> Arc<[Exposed]> {
        let mut known = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, sockets)) if at.elapsed() < SOCKETS_AGE => Arc::clone(sockets),
            _ => {
                let sockets: Arc<[Exposed]> = Exposed::find(&self.config.engine_sockets).into();
                *known = Some((Instant::now(), Arc::clone(&sockets)));
                sockets
            }
        }
    }

    /// Another process than the peer sent this: it must be in the same container.
    fn check_other_sender(&self, peer: &Peer, received: &Received) -> Result<(), AttestError> {
        peer.check_alive()?;
        let host = &self.host;
        let pid = received.sender.map_or(0, |sender| sender.pid);
        // By its pid alone it could be another process by now.
        let Some(pidfd) = &received.sender_pidfd else {
            return Err(AttestError::new(
                SENDER_UNKNOWN,
                format!(
                    "pid {pid} sent a message on the peer's connection, and this kernel gives no handle on it"
                ),
            ));
        };
        let failed = |error| AttestError::reading("a message's sender", &error);
        let sender = Process::new(host, pidfd.try_clone().map_err(failed)?)?;
        // Both are held open, so that what names them tells them apart.
        let outermost =
            |process: &Process| Ok::<_, AttestError>(process.pid_namespaces(host)?.pop());
        let (ours, theirs) = (outermost(peer.process())?, outermost(&sender)?);
        let id = |namespace: &Option<Namespace>| {
            let namespace = namespace.as_ref();
            namespace
                .map(|namespace| namespace.inode())
                .transpose()
                .map_err(failed)
        };
        let (ours, theirs) = (id(&ours)?, id(&theirs)?);
        let known = |process: &Process| -> Result<Option<Arc<Container>>, AttestError> {
            let line = host.cgroups.line(host, process)?;
            Ok(line.and_then(|line| self.registry.known(&line)))
        };
        let same_container = match (known(peer.process())?, known(&sender)?) {
            (Some(one), Some(other)) => Arc::ptr_eq(&one, &other),
            // In the host's pid namespace, nothing else tells containers apart.
            (None, None) => ours.is_some(),
            _ => false,
        };
        if ours != theirs || !same_container {
            return Err(AttestError::new(
                SENDER_IN_OTHER_CONTAINER,
                format!("pid {pid}, in another container, sent a message on the peer's connection"),
            ));
        }
        if sender.alive() {
            Ok(())
        } else {
            Err(AttestError::new(
                PEER_EXITED,
                "the sender of a message has exited",
            ))
        }
    }

    /// The file that tells when a container's cgroup has no process any more: for one in the host's
    /// pid namespace, whose first process does not take the others with it.
    fn events_of(&self, seat: &Seat) -> Option<std::fs::File> {
        if seat.pid_namespace.is_some() {
            return None;
        }
        let directory = self.host.cgroups.open(seat.cgroup).ok()?;
        mayfly_kernel::cgroup::open_in(directory, "cgroup.events").ok()
    }

    /// Finds a workload's first process again after this program was started anew: by its pid, and
    /// only if everything else fits too.
    pub(crate) fn find_again(&self, watched: &Watched) -> Option<DeathTarget> {
        let host = &self.host;
        let key = &watched.workload;
        if key.boot_id != host.boot_id {
            return None;
        }
        let init = Process::open(host, watched.init_pid).ok()?;
        let cgroup = CgroupId::from_number(key.cgroup_id);
        let line = host.cgroups.line_in(host, &init, cgroup.tree).ok()??;
        let namespace = init.pid_namespaces(host).ok()?.pop();
        let id = namespace
            .as_ref()
            .map(|namespace| host.namespace_id(namespace));
        let pid_namespace = id.transpose().ok()?;
        let same = init.start_time().ok()? == watched.init_start_time
            && line.is_within(cgroup)
            && pid_namespace.unwrap_or(host.own_pid_namespace) == key.pidns_id;
        if !same || !init.alive() {
            return None;
        }
        let events = self.events_of(&Seat {
            cgroup,
            pid_namespace,
        });
        Some(DeathTarget::new(key.clone(), init.pidfd, events, None))
    }
}

/// What is remembered of a container as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    registry: Arc<Registry>,
    container: Arc<Container>,
}

impl Held {
    /// Lets go of it.
    pub(crate) fn let_go(&self) {
        self.registry.forget(&self.container);
    }
}

impl Located {
    fn own(workload: Arc<Container>) -> Self {
        Self {
            workload,
            companion: None,
        }
    }
}
