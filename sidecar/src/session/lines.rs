//! One JSON message a line, both ways, with a limit and without a large buffer left behind.

use super::Failure;
use mayfly_wire::session::{ClientMessage, MAX_SERVER_LINE, ServerMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Most bytes of one read, so that a line that is too long is noticed soon.
const CHUNK: usize = 16 * 1024;

/// The stream of an open session.
pub struct Lines {
    stream: UnixStream,
    /// What was read and is not yet a whole line.
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no line's end.
    searched: usize,
}

impl Lines {
    /// Continues a stream of which `read` has been read already.
    pub fn new(stream: UnixStream, read: &[u8]) -> Self {
        Self {
            stream,
            buffer: read.to_vec(),
            searched: 0,
        }
    }

    /// The next message. Loses nothing if it is dropped before it is done.
    pub async fn next(&mut self) -> Result<ServerMessage, Failure> {
        loop {
            if let Some(line) = self.whole_line()? {
                return serde_json::from_slice(&line).map_err(|error| {
                    // serde_json's message can quote the line; its place cannot.
                    let place = format!("{:?} error at byte {}", error.classify(), error.column());
                    Failure::protocol("a message of the session protocol", place)
                });
            }
            self.buffer.reserve(CHUNK);
            let mut stream = (&mut self.stream).take(CHUNK as u64);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Failure::Closed);
            }
        }
    }

    fn whole_line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return match self.searched {
                0..=MAX_SERVER_LINE => Ok(None),
                _ => Err(too_long()),
            };
        };
        let end = self.searched + end;
        if end > MAX_SERVER_LINE {
            return Err(too_long());
        }
        // The line takes the large buffer with it; what follows gets one of its own size.
        let rest = self.buffer.split_off(end + 1);
        self.searched = 0;
        Ok(Some(std::mem::replace(&mut self.buffer, rest)))
    }

    /// Writes one message.
    pub async fn say(&mut self, message: &ClientMessage) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(message).map_err(std::io::Error::from)?;
        line.push(b'\n');
        Ok(self.stream.write_all(&line).await?)
    }
}

fn too_long() -> Failure {
    Failure::protocol("lines of at most 4 MiB", "a longer one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        run(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut lines = Lines::new(ours, b"{\"type\":\"pi");
            theirs
                .write_all(b"ng\"}\n{\"type\":\"ping\"}\n{\"ty")
                .await
                .unwrap();
            for _ in 0..2 {
                assert_eq!(lines.next().await.unwrap(), ServerMessage::Ping {});
            }
            drop(theirs);
            assert!(matches!(lines.next().await, Err(Failure::Closed)));
        });
    }

    #[test]
    fn a_long_line_is_cut_off_and_a_large_buffer_is_not_kept() {
        run(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut lines = Lines::new(ours, b"");
            let flood = tokio::spawn(async move {
                let padding = " ".repeat(1 << 20);
                let line = format!("{{\"type\":\"ping\"{padding}}}\n");
                theirs.write_all(line.as_bytes()).await.unwrap();
                while theirs.write_all(&[b'x'; 65536]).await.is_ok() {}
            });
            assert_eq!(lines.next().await.unwrap(), ServerMessage::Ping {});
            assert!(lines.buffer.capacity() <= 2 * CHUNK);
            let failure = lines.next().await.unwrap_err();
            assert!(matches!(failure, Failure::Protocol { .. }));
            assert!(lines.buffer.len() <= MAX_SERVER_LINE + CHUNK);
            drop(lines);
            flood.await.unwrap();
        });
    }

    #[test]
    fn what_is_no_message_is_not_repeated() {
        run(async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let mut lines = Lines::new(ours, b"{\"type\":\"hunter2\"}\n");
            let failure = lines.next().await.unwrap_err();
            assert!(!failure.to_string().contains("hunter2"));
        });
    }
}
