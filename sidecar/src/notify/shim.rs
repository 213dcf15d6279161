//! The shim that started us, on the socket that is our standard input: one line there (`signal N`,
//! `restart`, `stop`), one back (`ok`, or what went wrong). One request at a time, and the next one only
//! when the answer to the last one is here: an answer does not say to what it is one.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as Blocking;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 1024;

/// Of which attempts a request is one: those to tell the same in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// Which way.
    pub line: usize,
    /// How often it was asked for so far.
    pub count: u64,
}

/// The shim.
#[derive(Default)]
pub struct Shim(Mutex<State>);

#[derive(Default)]
struct State {
    stream: Option<UnixStream>,
    /// Whose answer is outstanding.
    asked: Option<Telling>,
    /// What of it is here.
    answer: Vec<u8>,
}

impl Shim {
    /// Asks, after whoever asked before. It can be given up at any time; the answer is then waited for
    /// by whoever is next, and counts if it is to an earlier attempt of the same telling.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn ask(&self, telling: Telling, what: &str) -> Result<(), String> {
        let mut state = self.0.lock().await;
        let failed = |error: io::Error| format!("cannot ask the shim: {error}");
        let mut answer = None;
        if let Some(earlier) = state.asked {
            let late = state.hear().await.map_err(failed)?;
            answer = (earlier == telling).then_some(late);
        }
        let answer = match answer {
            Some(answer) => answer,
            None => {
                state.say(telling, what).await.map_err(failed)?;
                state.hear().await.map_err(failed)?
            }
        };
        match answer.as_str() {
            "ok" => Ok(()),
            other => Err(format!("the shim could not {what}: {other}")),
        }
    }
}

impl State {
    /// Writes a line whole or not at all, however often it is dropped meanwhile.
    async fn say(&mut self, telling: Telling, what: &str) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = Blocking::from(io::stdin().as_fd().try_clone_to_owned()?);
            stream.set_nonblocking(true)?;
            self.stream = Some(UnixStream::from_std(stream)?);
        }
        let Some(stream) = &self.stream else {
            return Err(ErrorKind::NotConnected.into());
        };
        let line = format!("{what}\n");
        loop {
            stream.writable().await?;
            match stream.try_write(line.as_bytes()) {
                Ok(written) if written == line.len() => break,
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.asked = Some(telling);
        Ok(())
    }

    /// The answer. What of it is here stays here if this is dropped.
    async fn hear(&mut self) -> io::Result<String> {
        let Some(stream) = &mut self.stream else {
            return Err(ErrorKind::NotConnected.into());
        };
        let end = loop {
            if let Some(end) = self.answer.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if self.answer.len() >= MAX_ANSWER {
                return Err(io::Error::other("its answer is too long"));
            }
            if stream.read_buf(&mut self.answer).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        };
        let rest = self.answer.split_off(end + 1);
        let line = std::mem::replace(&mut self.answer, rest);
        self.asked = None;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}
