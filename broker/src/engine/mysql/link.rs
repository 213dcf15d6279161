//! One connection to MariaDB or MySQL: logging in, and statements one at a time.
//!
//! What the protocol has beyond that is not spoken: several statements in one text, files of the
//! client's, passwords in the clear outside of TLS.

use super::super::pool::Failure;
use super::super::stream::{self, Stream};
use super::packet::{self, Reader, wrong};
use super::proof::{self, CACHING, NATIVE};
use mayfly_wire::connection::Tls;
use mayfly_wire::{ConnectionConfig, Secret};
use std::io;
use std::sync::Mutex;
use zeroize::Zeroizing;

const PORT: u16 = 3306;
/// ER_ACCESS_DENIED_ERROR.
const ACCESS_DENIED: u64 = 1045;
/// Most bytes of one answer, with what keeping a row and a field takes. Of ours the largest is the list
/// of a user's connections.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// What a row, a field and a column take beside their bytes.
const EACH: usize = 32;
/// utf8mb4_general_ci.
const CHARSET: u8 = 45;
const QUERY: u8 = 3;
/// There is another result after this one.
const MORE: u64 = 8;
const OK: u8 = 0;
const ERROR: u8 = 0xFF;
const END: u8 = 0xFE;
const FILE: u8 = 0xFB;

/// Capabilities of client and server.
mod can {
    pub(super) const DATABASE: u32 = 0x8;
    pub(super) const TLS: u32 = 0x800;
    /// Long passwords, protocol 4.1, transactions, its kind of proofs, several results of a procedure,
    /// plugins.
    pub(super) const NEEDED: u32 = 0x1 | 0x200 | 0x2000 | 0x8000 | 0x2_0000 | 0x8_0000;
}

/// Why somebody does not get in.
pub(super) enum Denied {
    /// The password is wrong, or the user is.
    Password(String),
    Other(String),
}

impl Denied {
    pub(super) fn cause(self) -> String {
        match self {
            Self::Password(cause) | Self::Other(cause) => cause,
        }
    }
}

impl From<io::Error> for Denied {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// An open connection. Dropping it closes it.
pub(super) struct Link {
    // Only so that `is_closed` can look at it: whoever asks has it alone.
    stream: Mutex<Stream>,
    /// Whether it is MariaDB, not MySQL.
    pub(super) mariadb: bool,
}

/// What the server says first.
struct Greeting {
    mariadb: bool,
    capabilities: u32,
    challenge: Vec<u8>,
    plugin: String,
}

/// A statement's answer, or a part of it.
enum Part {
    Done { more: bool },
    Columns(usize),
}

impl Link {
    /// Opens one and logs in.
    pub(super) async fn open(config: &ConnectionConfig, password: &Secret) -> Result<Self, Denied> {
        let stream = stream::plain(config, PORT).await;
        let mut stream = stream.map_err(Denied::Other)?;
        let mut number = 0;
        let greeting = greeting(&packet::read(&mut stream, &mut number).await?)?;
        let mut capabilities = can::NEEDED;
        if config.database.is_some() {
            capabilities |= can::DATABASE;
        }
        let is_socket = stream::is_socket(config);
        let with_tls = config.tls == Tls::Verify && !is_socket;
        if with_tls {
            capabilities |= can::TLS;
        }
        let lacks = capabilities & !greeting.capabilities & !1;
        if lacks & can::TLS != 0 {
            let cause = "the server has no TLS; expected it, because tls is not \"off\"";
            return Err(Denied::Other(cause.to_owned()));
        }
        if lacks != 0 {
            return Err(wrong("a server that is too old").into());
        }
        let mut head = capabilities.to_le_bytes().to_vec();
        head.extend_from_slice(&u32::try_from(packet::MAX).unwrap_or(u32::MAX).to_le_bytes());
        head.push(CHARSET);
        head.extend_from_slice(&[0; 23]);
        if with_tls {
            packet::write(&mut stream, &mut number, &head).await?;
            let secured = stream::secure(config, stream).await;
            stream = secured.map_err(Denied::Other)?;
        }
        let plugin = match greeting.plugin.as_str() {
            CACHING => CACHING,
            _ => NATIVE,
        };
        let proof = proof::proof(plugin, password, &greeting.challenge).unwrap_or_default();
        let mut response = head;
        response.extend_from_slice(config.username.as_bytes());
        response.push(0);
        response.push(u8::try_from(proof.len()).unwrap_or_default());
        response.extend_from_slice(&proof);
        if let Some(database) = &config.database {
            response.extend_from_slice(database.as_bytes());
            response.push(0);
        }
        response.extend_from_slice(plugin.as_bytes());
        response.push(0);
        packet::write(&mut stream, &mut number, &response).await?;
        let private = with_tls || is_socket;
        prove(&mut stream, &mut number, plugin, password, private).await?;
        Ok(Self {
            stream: Mutex::new(stream),
            mariadb: greeting.mariadb,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        let stream = self.stream.lock();
        stream.map_or(true, |mut stream| stream::is_closed(&mut *stream))
    }

    /// Runs one statement and forgets its rows.
    pub(super) async fn run(&mut self, statement: &str) -> Result<(), Failure> {
        self.rows(statement).await.map(|_| ())
    }

    /// Runs one statement and gives its rows; NULL is `None`.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let stream = self.stream.get_mut();
        let stream = stream.map_err(|_| Failure::Broken("its state is not known".to_owned()))?;
        let asked = ask(stream, sql).await;
        let outcome = asked.map_err(|error| Failure::Broken(error.to_string()))?;
        outcome.map_err(|said| Failure::Refused(said.1))
    }
}

/// A number, and the server's words with it.
type Said = (u64, String);

async fn ask(stream: &mut Stream, sql: &str) -> io::Result<Result<Vec<Vec<Option<String>>>, Said>> {
    let mut number = 0;
    let text = Zeroizing::new([&[QUERY], sql.as_bytes()].concat());
    packet::write(stream, &mut number, &text).await?;
    let mut rows = Vec::new();
    let mut room = MAX_ANSWER;
    loop {
        let first = packet::read(stream, &mut number).await?;
        spend(&mut room, first.len())?;
        let more = match part(&first)? {
            Err(said) => return Ok(Err(said)),
            Ok(Part::Done { more }) => more,
            Ok(Part::Columns(columns)) => {
                // What they are called, and the end of that.
                for _ in 0..=columns {
                    let column = packet::read(stream, &mut number).await?;
                    spend(&mut room, column.len())?;
                }
                match rows_of(stream, &mut number, columns, &mut rows, &mut room).await? {
                    Err(said) => return Ok(Err(said)),
                    Ok(more) => more,
                }
            }
        };
        if !more {
            return Ok(Ok(rows));
        }
    }
}

/// Takes what an answer holds from the room that is left for it.
fn spend(room: &mut usize, bytes: usize) -> io::Result<()> {
    let left = room.checked_sub(bytes.saturating_add(EACH));
    *room = left.ok_or_else(|| wrong("an answer beyond all limits"))?;
    Ok(())
}

/// Reads rows up to their end. Says whether another result follows.
async fn rows_of(
    stream: &mut Stream,
    number: &mut u8,
    columns: usize,
    rows: &mut Vec<Vec<Option<String>>>,
    room: &mut usize,
) -> io::Result<Result<bool, Said>> {
    loop {
        let bytes = packet::read(stream, number).await?;
        match bytes.first() {
            Some(&END) if bytes.len() < 9 => {
                let mut rest = Reader(&bytes[1..]);
                rest.number(2)?;
                return Ok(Ok(rest.number(2)? & MORE != 0));
            }
            Some(&ERROR) => return Ok(Err(said(&bytes)?)),
            _ => spend(room, bytes.len() + columns * EACH)?,
        }
        let mut fields = Reader(&bytes);
        let row = (0..columns).map(|_| fields.field());
        rows.push(row.collect::<io::Result<_>>()?);
    }
}

fn part(bytes: &[u8]) -> io::Result<Result<Part, Said>> {
    let mut rest = Reader(bytes);
    Ok(Ok(match bytes.first() {
        Some(&ERROR) => return Ok(Err(said(bytes)?)),
        Some(&OK) => {
            rest.byte()?;
            rest.length()?;
            rest.length()?;
            let more = rest.number(2)? & MORE != 0;
            Part::Done { more }
        }
        Some(&FILE) => return Err(wrong("a wish for a file of ours")),
        _ => match rest.length()? {
            Some(columns @ 1..=4096) => Part::Columns(usize::try_from(columns).unwrap_or(4096)),
            _ => return Err(wrong("an answer of no columns")),
        },
    }))
}

/// What an error packet says. The text may repeat a part of the statement, which holds no secret.
fn said(bytes: &[u8]) -> io::Result<Said> {
    let mut rest = Reader(bytes);
    rest.byte()?;
    let code = rest.number(2)?;
    let words = match rest.0.split_first_chunk::<6>() {
        // With an SQLSTATE before it.
        Some(([b'#', ..], words)) => words,
        _ => rest.0,
    };
    Ok((code, format!("{} ({code})", String::from_utf8_lossy(words))))
}

fn greeting(bytes: &[u8]) -> Result<Greeting, Denied> {
    let mut rest = Reader(bytes);
    match bytes.first() {
        Some(10) => {}
        Some(&ERROR) => return Err(Denied::Other(said(bytes)?.1)),
        _ => return Err(wrong("another protocol").into()),
    }
    rest.byte()?;
    let version = String::from_utf8_lossy(rest.text()).into_owned();
    rest.take(4)?;
    let mut challenge = rest.take(8)?.to_vec();
    rest.take(1)?;
    let low = rest.number(2)?;
    rest.take(3)?;
    let capabilities = u32::try_from(low | rest.number(2)? << 16).unwrap_or_default();
    let length = usize::from(rest.byte()?);
    rest.take(10)?;
    // Eight bytes stood before; a NUL ends it.
    let second = rest.take(length.saturating_sub(8).max(13))?;
    challenge.extend_from_slice(second.strip_suffix(&[0]).unwrap_or(second));
    let plugin = String::from_utf8_lossy(rest.text()).into_owned();
    Ok(Greeting {
        mariadb: version.contains("MariaDB"),
        capabilities,
        challenge,
        plugin,
    })
}

/// Answers what the server asks until it lets us in. `private` says that nobody can listen.
async fn prove(
    stream: &mut Stream,
    number: &mut u8,
    plugin: &str,
    password: &Secret,
    private: bool,
) -> Result<(), Denied> {
    let mut plugin = plugin.to_owned();
    // A server asks for another plugin once, and for the whole password once.
    for _ in 0..4 {
        let bytes = packet::read(stream, number).await?;
        match &bytes[..] {
            [OK, ..] => return Ok(()),
            [ERROR, ..] => {
                let (code, words) = said(&bytes)?;
                return Err(match code {
                    ACCESS_DENIED => Denied::Password(words),
                    _ => Denied::Other(words),
                });
            }
            [END, asked @ ..] => {
                let mut rest = Reader(asked);
                plugin = String::from_utf8_lossy(rest.text()).into_owned();
                let challenge = rest.0.strip_suffix(&[0]).unwrap_or(rest.0);
                let proof = proof::proof(&plugin, password, challenge).ok_or_else(|| {
                    Denied::Other(format!(
                        "the server asks the broker to prove itself by {plugin:?}; expected an \
                         account with {NATIVE} or {CACHING}"
                    ))
                })?;
                packet::write(stream, number, &proof).await?;
            }
            // It knows enough already.
            [1, 3] if plugin == CACHING => {}
            [1, 4] if plugin == CACHING && private => {
                let whole = Zeroizing::new([password.expose(), &[0]].concat());
                packet::write(stream, number, &whole).await?;
            }
            [1, 4] if plugin == CACHING => {
                return Err(Denied::Other(format!(
                    "the server asks for the password itself, which is only said over TLS or a unix \
                     socket; expected one of those, or an account with {NATIVE}"
                )));
            }
            _ => return Err(wrong("an unknown question").into()),
        }
    }
    Err(wrong("ever more questions").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Answers a statement with one column and rows without an end.
    async fn endless(row: Vec<u8>) -> io::Error {
        let (ours, mut theirs) = tokio::io::duplex(1024 * 1024);
        let mut ours: Stream = Box::new(ours);
        let packet = |number: u8, bytes: &[u8]| {
            let [a, b, c, ..] = bytes.len().to_le_bytes();
            [&[a, b, c, number], bytes].concat()
        };
        let head = [
            packet(1, &[1]),
            packet(2, b"column"),
            packet(3, &[END, 0, 0, 0, 0]),
        ];
        tokio::spawn(async move {
            let mut sent = theirs.write_all(&head.concat()).await;
            let mut number = 4_u8;
            while sent.is_ok() {
                sent = theirs.write_all(&packet(number, &row)).await;
                number = number.wrapping_add(1);
            }
        });
        let asked = ask(&mut ours, "SELECT 1").await;
        asked.map(|_| ()).unwrap_err()
    }

    #[tokio::test]
    async fn an_answer_has_one_limit_for_all_of_it() {
        let long = [&[0xFD, 0, 0, 8][..], &vec![b'x'; 512 * 1024]].concat();
        for row in [long, vec![0]] {
            let refused = endless(row).await.to_string();
            assert!(refused.contains("beyond all limits"), "{refused}");
        }
    }
}
