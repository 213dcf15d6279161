//! Whether another process than the peer may send on its connection.

use std::sync::Arc;

use mayfly_kernel::ns::Namespace;
use mayfly_kernel::socket::Received;

use super::Attestor;
use super::container::Container;
use super::error::{AttestError, PEER_EXITED, SENDER_IN_OTHER_CONTAINER, SENDER_UNKNOWN};
use super::peer::Peer;
use super::process::Process;

impl Attestor {
    /// Another process than the peer sent this: it must be in the same container.
    pub(super) fn check_other_sender(
        &self,
        peer: &Peer,
        received: &Received,
    ) -> Result<(), AttestError> {
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
}
