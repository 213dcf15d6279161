//! The harness' side of a session, against a node that is played here.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::harness::{Opened, Session};
use mayfly_wire::sealed::Sealer;
use mayfly_wire::session::{
    Bundle, ClientMessage, Hello, Layout, SealedCredential, SealedField, ServerMessage,
};
use mayfly_wire::workload::{LeaseId, WorkloadKey};
use mayfly_wire::{Code, Refusal, Secret};

const SOON: Duration = Duration::from_secs(30);

/// One request's header lines, and its body.
fn request(lines: &mut BufReader<UnixStream>) -> Result<(String, Hello)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(lines.read_line(&mut head)? > 0, "the request ended: {head}");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.context("no length")?.parse()?];
    std::io::Read::read_exact(lines, &mut body)?;
    Ok((head, serde_json::from_slice(&body)?))
}

fn refuse(lines: &mut BufReader<UnixStream>, code: Code, header: &str) -> Result<()> {
    let body = serde_json::to_string(&Refusal::from(code))?;
    let status = code.http_status();
    let length = body.len();
    let answer = format!("HTTP/1.1 {status} no\r\n{header}content-length: {length}\r\n\r\n{body}");
    Ok(lines.get_mut().write_all(answer.as_bytes())?)
}

fn say(lines: &mut BufReader<UnixStream>, message: &ServerMessage) -> Result<()> {
    let line = format!("{}\n", serde_json::to_string(message)?);
    Ok(lines.get_mut().write_all(line.as_bytes())?)
}

fn answer(lines: &mut BufReader<UnixStream>) -> Result<ClientMessage> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Demands a nonce, pings, and sends one bundle of one value.
fn node(stream: UnixStream) -> Result<()> {
    let mut lines = BufReader::new(stream);
    request(&mut lines)?;
    refuse(&mut lines, Code::NonceRequired, "mayfly-nonce: 0123\r\n")?;
    let (head, hello) = request(&mut lines)?;
    ensure!(head.contains("Mayfly-Nonce: 0123\r\n"), "{head}");
    ensure!(hello.want == Some(vec!["db".parse()?]), "{hello:?}");

    lines
        .get_mut()
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: mayfly-session\r\n\r\n")?;
    let workload = WorkloadKey {
        boot_id: "boot".into(),
        cgroup_id: 5,
        pidns_id: 6,
    };
    say(
        &mut lines,
        &ServerMessage::Hello {
            protocol: 1,
            workload: workload.clone(),
        },
    )?;
    say(&mut lines, &ServerMessage::Ping {})?;
    ensure!(answer(&mut lines)? == ClientMessage::Pong {}, "no pong");

    let (mut sealer, encapsulated) = Sealer::new(&hello.public_key, &workload, 1)?;
    let (lease, name) = (LeaseId::from_random([1; 16]), "password".parse()?);
    let sealed = sealer.seal(&lease, &name, &Secret::from("swordfish".to_string()))?;
    let credential = SealedCredential {
        name: "db".parse()?,
        lease,
        expires_at: 0,
        renews_at: 0,
        layout: Layout::Fields,
        fields: vec![SealedField { name, sealed }],
    };
    let credentials = vec![credential];
    let bundle = Bundle {
        generation: 1,
        now: 0,
        encapsulated,
        credentials,
        missing: Vec::new(),
    };
    say(&mut lines, &ServerMessage::Bundle(bundle))?;
    ensure!(
        answer(&mut lines)? == ClientMessage::Ack { generation: 1 },
        "no ack"
    );
    Ok(())
}

#[test]
fn it_answers_a_nonce_and_a_ping_and_opens_what_is_sealed_to_it() -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let node = thread::spawn(move || node(theirs));
    let Opened::Session(mut session) = Session::attempt(ours, &["db"], SOON)? else {
        bail!("refused");
    };
    assert_eq!(session.workload().cgroup_id, 5);
    let values = session.bundle(SOON)?;
    assert_eq!(values.len(), 1);
    assert_eq!(
        (values[0].field.as_str(), &values[0].bytes[..]),
        ("password", &b"swordfish"[..])
    );
    assert!(session.next(SOON)?.is_none(), "the node has closed");
    node.join().unwrap()
}

#[test]
fn it_tells_a_refusal_from_an_error() -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let node = thread::spawn(move || {
        let mut lines = BufReader::new(theirs);
        request(&mut lines)?;
        refuse(&mut lines, Code::NotAttested, "")
    });
    match Session::attempt(ours, &[], SOON)? {
        Opened::Refused(refusal) => assert_eq!(refusal.code, Code::NotAttested),
        Opened::Session(_) => bail!("a refusal was taken for a session"),
    }
    node.join().unwrap()
}
