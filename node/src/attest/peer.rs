//! The one at the other end of a connection, by handles that stay its own.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::probe::Facility;
use mayfly_kernel::socket::{Credentials, Received, peer_credentials};

use super::error::{
    AttestError, DESCRIPTORS_PASSED, PEER_EXITED, PEER_UNPROVEN, PEER_UNSEEN, SENDER_UNKNOWN,
};
use super::host::Host;
use super::process::Process;

/// Who connected. It stays that process, whoever holds the descriptor now and whatever happens to
/// its pid.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    credentials: Credentials,
    origin: Origin,
    nonce: Option<String>,
    proven: AtomicBool,
}

/// Where a connection comes from, to count connections by: cheap, and nothing that a container can
/// change about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The outermost pid namespace below the host's, by its id.
    PidNamespace(u64),
    /// A cgroup, by its id in v2: of a process in the host's pid namespace, and of a connection that
    /// was only glimpsed.
    Cgroup(u64),
    /// A process in the host's pid namespace whose cgroup the kernel does not tell, by its user id.
    HostUser(u32),
    /// A process that was gone before it was looked at.
    Gone,
}

impl Peer {
    /// Takes hold of who connected.
    pub(crate) fn connected(host: &Host, stream: impl AsFd) -> Result<Self, AttestError> {
        let credentials = peer_credentials(&stream)
            .map_err(|error| AttestError::reading("the peer's credentials", &error))?;
        let named = |error: AttestError| error.with_credentials(&credentials);
        // Without SO_PEERPIDFD, this may be another process that has got the pid since: the nonce
        // will tell.
        let by_socket = host.facilities.has(Facility::PeerPidfd);
        let opened = if by_socket {
            Pidfd::peer(&stream)
        } else if credentials.pid == 0 {
            return Err(named(unseen()));
        } else {
            Pidfd::open(credentials.pid)
        };
        let pidfd = opened.map_err(|error| named(AttestError::reading("its pidfd", &error)))?;
        let process = Process::new(host, pidfd).map_err(named)?;
        let origin = process.origin(host, credentials.uid).map_err(named)?;
        let nonce = if by_socket { None } else { Some(nonce()?) };
        Ok(Self {
            proven: AtomicBool::new(nonce.is_none()),
            process,
            credentials,
            origin,
            nonce,
        })
    }

    /// Its pid in the node's pid namespace, while it lives.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Its effective user id when it connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// What it must send back before it can be attested, on a kernel that does not name the peer by
    /// itself; see [`Peer::prove`].
    #[must_use]
    pub fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    /// Whether it is proven who connected: at once where the kernel says so, else by the nonce.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    /// Takes the nonce that came back in a message. If its sender has the pid that connected, and the
    /// process held since then lives, then that process is the sender.
    ///
    /// # Errors
    ///
    /// `peer_unproven` for another nonce or another sender, `peer_exited`.
    pub fn prove(&self, nonce: &str, message: &Received) -> Result<(), AttestError> {
        let Some(expected) = &self.nonce else {
            return Ok(());
        };
        let sender = message.sender.map(|sender| sender.pid);
        let unproven = |detail: String| Err(self.named(AttestError::new(PEER_UNPROVEN, detail)));
        if nonce != expected {
            return unproven("the nonce that came back is not the one that was sent".to_owned());
        }
        if sender != Some(self.pid()) {
            return unproven(format!(
                "the nonce came back from pid {sender:?}, not from the one that connected"
            ));
        }
        // Last: alive now, it had the pid all the while.
        self.check_alive()?;
        self.proven.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it has not exited.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.process.alive()
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin_hint(&self) -> Origin {
        self.origin
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn check_proven(&self) -> Result<(), AttestError> {
        if self.is_proven() {
            return Ok(());
        }
        let detail = "the nonce has not come back yet";
        Err(self.named(AttestError::new(PEER_UNPROVEN, detail)))
    }

    pub(crate) fn check_alive(&self) -> Result<(), AttestError> {
        if self.alive() {
            return Ok(());
        }
        Err(self.named(AttestError::new(PEER_EXITED, "the peer has exited")))
    }

    /// What can be said about a message without looking for the sender's container: `Ok(true)` if the
    /// peer itself sent it.
    pub(crate) fn sent(&self, message: &Received) -> Result<bool, AttestError> {
        if message.descriptors > 0 {
            let detail = format!("a message carried {} descriptors", message.descriptors);
            return Err(self.named(AttestError::new(DESCRIPTORS_PASSED, detail)));
        }
        let Some(sender) = message.sender else {
            let detail = "a message came without its sender's credentials";
            return Err(self.named(AttestError::new(SENDER_UNKNOWN, detail)));
        };
        // The pid is the peer's own only as long as the peer lives.
        Ok(sender.pid == self.pid() && self.alive())
    }

    /// Says in an error whose it is.
    pub(crate) fn named(&self, error: AttestError) -> AttestError {
        error.with_credentials(&self.credentials)
    }
}

pub(crate) fn unseen() -> AttestError {
    AttestError::new(
        PEER_UNSEEN,
        "the peer is not seen from the node's pid namespace: run the node in the host's",
    )
}

/// 128 random bits in hexadecimal.
fn nonce() -> Result<String, AttestError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| AttestError::new(super::error::UNREADABLE, error.to_string()))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(random)))
}
