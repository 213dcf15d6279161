//! As much of RESP2, the protocol of Redis, as asking and answering needs
//! (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).

use super::super::pool::Failure;
use super::super::stream::Stream;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use zeroize::Zeroizing;

/// Longest line of an answer, in bytes.
const MAX_LINE: usize = 4096;
/// Most bytes of all answers to what is asked in one breath, with what keeping an item takes: a list of
/// very many clients.
const MAX_ANSWERS: usize = 16 * 1024 * 1024;
/// What an item takes beside its bytes.
const EACH: usize = 64;
/// How deep lists may stand in each other.
const MAX_DEPTH: usize = 8;

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Text, or bytes that should be some.
    Text(String),
    /// A number.
    Number(i64),
    /// Several answers.
    List(Vec<Answer>),
    /// There is none.
    Nothing,
    /// No: the server's own words.
    No(String),
}

/// A connection.
pub(super) struct Client {
    // Only so that `is_closed` can look at it: whoever asks has it alone.
    stream: Mutex<BufReader<Stream>>,
}

impl Client {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream: Mutex::new(BufReader::new(stream)),
        }
    }

    /// Whether the other side has closed it, or says something that nobody asked for.
    pub(super) fn is_closed(&self) -> bool {
        let Ok(mut stream) = self.stream.lock() else {
            return true;
        };
        super::super::stream::is_closed(&mut *stream)
    }

    /// Asks one thing.
    pub(super) async fn ask(&mut self, command: &[&[u8]]) -> Result<Answer, Failure> {
        let mut answers = self.ask_all(&[command]).await?;
        answers
            .pop()
            .ok_or_else(|| Failure::Broken("there is no answer".to_owned()))
    }

    /// Asks several things in one breath. There is an answer to each, in the same order.
    pub(super) async fn ask_all(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Answer>, Failure> {
        let stream = self.stream.get_mut();
        let stream = stream.map_err(|_| Failure::Broken("its state is not known".to_owned()))?;
        let outcome = async {
            stream.write_all(&encode(commands)).await?;
            stream.flush().await?;
            let mut answers = Vec::with_capacity(commands.len());
            let mut room = MAX_ANSWERS;
            for _ in commands {
                answers.push(read(stream, MAX_DEPTH, &mut room).await?);
            }
            Ok(answers)
        };
        let outcome: io::Result<_> = outcome.await;
        outcome.map_err(|error| Failure::Broken(error.to_string()))
    }
}

/// Lengths stand before texts, so nothing in a text can be taken for anything else.
fn encode(commands: &[&[&[u8]]]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::new());
    for command in commands {
        bytes.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for word in *command {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("expected an answer of Redis, found {what}"),
    )
}

type Reading<'a> = Pin<Box<dyn Future<Output = io::Result<Answer>> + Send + 'a>>;

/// Reads an answer for which there is so much `room` left.
fn read<'a>(stream: &'a mut BufReader<Stream>, depth: usize, room: &'a mut usize) -> Reading<'a> {
    Box::pin(async move {
        let line = line(stream).await?;
        let left = room.checked_sub(line.len() + EACH);
        *room = left.ok_or_else(|| wrong("an answer beyond all limits"))?;
        let mut letters = line.chars();
        let kind = letters.next();
        let rest = letters.as_str();
        match kind {
            Some('+') => Ok(Answer::Text(rest.to_owned())),
            Some('-') => Ok(Answer::No(rest.to_owned())),
            Some(':') => Ok(Answer::Number(number(rest)?)),
            Some('$') => match length(rest, *room)? {
                None => Ok(Answer::Nothing),
                Some(length) => {
                    *room -= length;
                    text(stream, length).await.map(Answer::Text)
                }
            },
            Some('*') => match length(rest, *room / EACH)? {
                None => Ok(Answer::Nothing),
                Some(_) if depth == 0 => Err(wrong("lists that stand too deep in each other")),
                Some(count) => {
                    let mut items = Vec::new();
                    for _ in 0..count {
                        items.push(read(stream, depth - 1, room).await?);
                    }
                    Ok(Answer::List(items))
                }
            },
            _ => Err(wrong("a line of an unknown kind")),
        }
    })
}

fn number(text: &str) -> io::Result<i64> {
    text.parse()
        .map_err(|_| wrong("no number where one must be"))
}

/// A length; none is -1.
fn length(text: &str, most: usize) -> io::Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= most => Ok(Some(length)),
            _ => Err(wrong("a length beyond all limits")),
        },
    }
}

async fn line(stream: &mut BufReader<Stream>) -> io::Result<String> {
    let mut line = Vec::new();
    let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    stream.take(most).read_until(b'\n', &mut line).await?;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None if line.is_empty() => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection",
        )),
        None => Err(wrong("a line without an end")),
    }
}

async fn text(stream: &mut BufReader<Stream>, length: usize) -> io::Result<String> {
    // Grows as bytes come, whatever length was announced.
    let mut bytes = Vec::new();
    let whole = u64::try_from(length + 2).unwrap_or(u64::MAX);
    stream.take(whole).read_to_end(&mut bytes).await?;
    match bytes.strip_suffix(b"\r\n") {
        Some(text) if text.len() == length => Ok(String::from_utf8_lossy(text).into_owned()),
        _ => Err(wrong("a text that is cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &[u8]) -> Result<Answer, String> {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let mut client = Client::new(Box::new(ours));
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let mut asked = [0; 14];
            theirs.read_exact(&mut asked).await.unwrap();
            let _ = theirs.write_all(&bytes).await;
        });
        match client.ask(&[b"PING"]).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Broken(cause) | Failure::Refused(cause)) => Err(cause),
        }
    }

    #[tokio::test]
    async fn answers_of_every_kind_are_read() {
        let text = |text: &str| Answer::Text(text.to_owned());
        for (bytes, expected) in [
            (&b"+OK\r\n"[..], text("OK")),
            (b"-ERR no\r\n", Answer::No("ERR no".to_owned())),
            (b":-5\r\n", Answer::Number(-5)),
            (b"$4\r\na\r\nb\r\n", text("a\r\nb")),
            (b"$0\r\n\r\n", text("")),
            (b"$-1\r\n", Answer::Nothing),
            (b"*-1\r\n", Answer::Nothing),
            (
                b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
                Answer::List(vec![Answer::List(vec![Answer::Number(1)]), text("x")]),
            ),
        ] {
            assert_eq!(answer(bytes).await, Ok(expected));
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_refused_and_nothing_waits_for_more() {
        let deep = [b"*1\r\n".repeat(20), b":1\r\n".to_vec()].concat();
        let long = [b"+".to_vec(), b"a".repeat(10_000), b"\r\n".to_vec()].concat();
        for (bytes, expected) in [
            (&b""[..], "closed"),
            (b"hello\r\n", "unknown kind"),
            (b":12a\r\n", "no number"),
            (b"$99999999999\r\n", "limits"),
            (b"*99999999\r\n", "limits"),
            (b"$-2\r\n", "limits"),
            (b"$5\r\nabc\r\n", "cut short"),
            (b"$3\r\nabcde", "cut short"),
            (&deep, "too deep"),
            (&long, "without an end"),
        ] {
            let found = answer(bytes).await.unwrap_err();
            assert!(found.contains(expected), "{found:?}, not {expected:?}");
        }
    }

    #[tokio::test]
    async fn all_of_an_answer_has_one_limit() {
        let text = [
            b"$1000000\r\n".to_vec(),
            vec![b'x'; 1_000_000],
            b"\r\n".to_vec(),
        ]
        .concat();
        let few = [b"*10\r\n".to_vec(), text.repeat(10)].concat();
        assert!(answer(&few).await.is_ok());
        let texts = [b"*20\r\n".to_vec(), text.repeat(20)].concat();
        let items = [
            &b"*20\r\n"[..],
            &[&b"*20000\r\n"[..], &b":1\r\n".repeat(20_000)]
                .concat()
                .repeat(20),
        ]
        .concat();
        for bytes in [texts, items] {
            let found = answer(&bytes).await.unwrap_err();
            assert!(found.contains("limits"), "{found}");
        }
    }

    #[test]
    fn no_text_can_become_a_command() {
        let command: &[&[u8]] = &[b"ACL", b"x\r\n*1\r\n$8\r\nFLUSHALL\r\n"];
        let bytes = encode(&[command]);
        assert_eq!(
            bytes.as_slice(),
            b"*2\r\n$3\r\nACL\r\n$21\r\nx\r\n*1\r\n$8\r\nFLUSHALL\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn a_closed_connection_is_known_to_be_closed() {
        let (ours, theirs) = tokio::io::duplex(64);
        let client = Client::new(Box::new(ours));
        assert!(!client.is_closed());
        drop(theirs);
        assert!(client.is_closed());
    }
}
