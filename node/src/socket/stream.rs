//! A connection whose every message is checked: who sent it, and that it carries no descriptors.

use super::admission::Place;
use crate::attest::{AttestError, Attestor, Origin, Peer};
use crate::refusals::Refusals;
use mayfly_kernel::socket::{Received, recv};
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::NodeRefusal;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Who is at the other end, and what is held against it.
pub(super) struct Caller {
    pub(super) attestor: Arc<Attestor>,
    pub(super) peer: Peer,
    pub(super) refusals: Arc<Refusals>,
    /// The last message, for the proof that a kernel without SO_PEERPIDFD needs.
    last: Mutex<Option<Received>>,
}

impl Caller {
    pub(super) fn new(attestor: Arc<Attestor>, peer: Peer, refusals: Arc<Refusals>) -> Self {
        Self {
            attestor,
            peer,
            refusals,
            last: Mutex::new(None),
        }
    }

    /// Reports that this caller was not attested.
    pub(super) fn not_attested(&self, error: AttestError) {
        self.refusals
            .report(Some(self.peer.origin_hint()), error.into());
    }

    /// Reports another refusal of this caller.
    pub(super) fn refuse(&self, reason: &str, detail: impl Into<String>) {
        self.report(reason, detail.into(), None);
    }

    /// Reports that this caller's workload asks too fast. Counted by the workload, which its processes
    /// cannot change, and not by where the connection comes from.
    pub(super) fn too_fast(&self, workload: &WorkloadKey) {
        let detail = "more requests than one container may make".to_owned();
        self.report("too_many_requests", detail, Some(workload));
    }

    fn report(&self, reason: &str, detail: String, workload: Option<&WorkloadKey>) {
        let refusal = NodeRefusal {
            reason: reason.to_owned(),
            detail,
            pid: Some(self.peer.pid()),
            uid: Some(self.peer.uid()),
            cgroup_path: None,
            workload: workload.cloned(),
            count: 1,
        };
        let origin = workload.map_or_else(
            || self.peer.origin_hint(),
            |workload| Origin::PidNamespace(workload.pidns_id),
        );
        self.refusals.report(Some(origin), refusal);
    }

    /// Takes the nonce that came back in the last message, on a kernel that does not name the peer.
    pub(super) fn prove(&self, nonce: &str) -> Result<(), AttestError> {
        match &*self.last.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(last) => self.peer.prove(nonce, last),
            // Then it stays unproven, and attestation refuses it.
            None => Ok(()),
        }
    }

    fn check(&self, received: Received) -> io::Result<usize> {
        let length = received.len;
        // The end of the stream is nobody's message.
        if length > 0 || received.descriptors > 0 {
            if let Err(error) = self.attestor.check_sender(&self.peer, &received) {
                self.not_attested(error);
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if !self.peer.is_proven() {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(received);
            }
        }
        Ok(length)
    }
}

/// One accepted connection.
pub(super) struct CheckedStream {
    stream: UnixStream,
    caller: Arc<Caller>,
    _place: Place,
}

impl CheckedStream {
    pub(super) fn new(stream: UnixStream, caller: Arc<Caller>, place: Place) -> Self {
        Self {
            stream,
            caller,
            _place: place,
        }
    }

    /// Reads what there is, at most one sender's; 0 at the end. Cancel safe.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let receive = || recv(&self.stream, buffer);
        let received = self.stream.async_io(Interest::READABLE, receive).await?;
        self.caller.check(received)
    }

    /// Writes all of it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsyncRead for CheckedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let receive = || recv(&self.stream, buffer.initialize_unfilled());
            match self.stream.try_io(Interest::READABLE, receive) {
                Ok(received) => {
                    buffer.advance(self.caller.check(received)?);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for CheckedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    // Without this hyper would copy a body, which can be a secret, into its own buffer first.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
