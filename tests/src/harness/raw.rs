//! A client that sends whatever bytes it likes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One connection without a protocol.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    /// When the socket is not there or takes no more connections.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self { stream })
    }

    /// Sends as many of the bytes as the other side takes within `limit`, and gives their number:
    /// a server that cuts garbage off is no error.
    ///
    /// # Errors
    /// When the socket cannot be used at all.
    pub fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<usize> {
        self.stream.set_write_timeout(Some(limit))?;
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => break,
                Ok(count) => sent += count,
                Err(error) if gone(error.kind()) => break,
                Err(error) => return Err(error).context("sending"),
            }
        }
        Ok(sent)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection is already gone.
    pub fn finish(&self) -> Result<()> {
        self.stream
            .shutdown(Shutdown::Write)
            .context("closing the sending half")
    }

    /// All that comes until the other side closes.
    ///
    /// # Errors
    /// When it has not closed within `limit`.
    pub fn read_to_close(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                bail!("the other side has not closed within {limit:?}, and sent {all:?}");
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(all),
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if gone(error.kind()) => return Ok(all),
                Err(error) => return Err(error).context("reading"),
            }
        }
    }
}

fn gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::WouldBlock
    )
}
