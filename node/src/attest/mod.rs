//! Attestation: who is at the other end of the workload socket, by what the kernel says.
//!
//! | file | what |
//! |---|---|
//! | `host` | what the kernel has, and what counts as the host's, found once |
//! | `glimpse` | a first look at who connected, to hold floods off |
//! | `peer`, `process` | handles on processes, and what is read through them |
//! | `cgroups`, `line` | cgroups by id, and what they are inside of |
//! | `engine`, `bind` | what container engines say, and whether it is to be believed |
//! | `container`, `init`, `locate`, `located`, `turns` | containers as first seen, and how a peer's is found |
//! | `facts` → `posture`, `judge`, `sockets` | gathering → judging; the latter are pure |
//! | `evidence`, `sender`, `held` | what is said of a peer; who else may send; what is kept until its death |

mod bind;
mod capabilities;
mod cgroups;
mod container;
mod engine;
mod error;
mod evidence;
mod facts;
mod glimpse;
mod held;
mod host;
mod init;
mod judge;
mod line;
mod locate;
mod located;
mod peer;
mod posture;
mod process;
mod sender;
mod sockets;
mod turns;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mayfly_kernel::probe;
use mayfly_kernel::socket::{Received, pass_credentials, pass_pidfd};
use mayfly_wire::{Evidence, Facility};

pub use error::{AttestError, AttestSetupError};
pub use peer::{Origin, Peer};

pub(crate) use glimpse::Glimpse;
pub(crate) use held::{Held, Holder};

use crate::death::DeathTarget;
use engine::Engine;
use host::Host;
use locate::Registry;
use sockets::Exposed;

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

/// The engines' sockets as last looked for; `None` where that failed.
type Looked = Option<Arc<[Exposed]>>;

/// Attests peers. One for the whole node, shared.
#[derive(Debug)]
pub struct Attestor {
    host: Host,
    registry: Arc<Registry>,
    sockets: Mutex<Option<(Instant, Looked)>>,
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

    /// Lets go of the containers that have died. Call it now and then: one that was attested and is
    /// not watched dies unseen, and on a kernel without NS_GET_ID what is held of it keeps its mounts,
    /// and so what is on them.
    pub fn let_go_of_the_dead(&self) {
        self.registry.let_go_of_the_dead();
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
