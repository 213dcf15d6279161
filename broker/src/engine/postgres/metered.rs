//! A stream from which only so much is read: the client library takes in all that a server sends, rows,
//! notices and settings, also while nothing was asked.

use crate::engine::stream::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of the answers to one text. Of ours the longest is a list of a few names; each row of it
/// takes some hundred bytes of memory beside its own.
const MOST: usize = 1024 * 1024;

/// How many bytes may still come.
#[derive(Clone)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(MOST)))
    }

    /// Something new is asked.
    pub(super) fn renew(&self) {
        self.0.store(MOST, Ordering::Relaxed);
    }

    /// Whether more came than may.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(bytes);
        self.0.store(left, Ordering::Relaxed);
        if left == 0 {
            let over = "an answer beyond all limits";
            return Err(io::Error::new(io::ErrorKind::InvalidData, over));
        }
        Ok(())
    }
}

/// A stream, and the room for what it brings.
pub(super) struct Metered {
    stream: Stream,
    room: Room,
}

impl Metered {
    pub(super) fn new(stream: Stream, room: Room) -> Self {
        Self { stream, room }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(self.room.take(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_comes_without_an_end_is_not_taken_in() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let room = Room::new();
        let mut stream = Metered::new(Box::new(ours), room.clone());
        tokio::spawn(async move { while theirs.write_all(&[7; 4096]).await.is_ok() {} });
        let mut bytes = vec![0; MOST / 2];
        for _ in 0..4 {
            room.renew();
            stream.read_exact(&mut bytes).await.unwrap();
        }
        assert!(!room.is_over());
        let refused = stream.read_to_end(&mut bytes).await.unwrap_err();
        assert!(refused.to_string().contains("beyond all limits"));
        assert!(room.is_over() && bytes.len() <= MOST * 3 / 2);
    }
}
