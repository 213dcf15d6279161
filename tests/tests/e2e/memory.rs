//! The memory scanner, which others trust when it finds nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use mayfly_tests::harness::{Needle, Scan, binary, random_text, scan_memory};

/// Searches a process that holds `bytes` on its heap.
fn scan_holder(bytes: &[u8], needles: &[Needle]) -> Result<Scan> {
    let mut holder = Command::new(binary("mayfly-probe")?)
        .args(["hold", &bytes.len().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let scan = hold_and_scan(&mut holder, bytes, needles);
    drop(holder.stdin.take());
    holder.wait()?;
    scan
}

fn hold_and_scan(holder: &mut Child, bytes: &[u8], needles: &[Needle]) -> Result<Scan> {
    holder
        .stdin
        .as_mut()
        .context("no input")?
        .write_all(bytes)?;
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut line)?;
    assert_eq!(line, "held\n");
    scan_memory(i32::try_from(holder.id())?, needles)
}

#[test]
fn it_finds_what_a_process_holds_and_nothing_that_it_does_not() -> Result<()> {
    let (held, absent) = (random_text(40)?, random_text(40)?);
    // Far into a large allocation, so that the match crosses from one read to the next.
    for offset in [0, 100_000, (1 << 20) - 20, (3 << 20) - 1] {
        let bytes = [
            vec![b'.'; offset],
            held.clone().into_bytes(),
            vec![b'.'; 100],
        ]
        .concat();
        let needles = [
            Needle::new("held", held.as_bytes()),
            Needle::new("absent", absent.as_bytes()),
        ];
        let scan = scan_holder(&bytes, &needles)?;
        assert!(
            scan.hits
                .iter()
                .any(|hit| hit.offset == 0 && hit.length == 40),
            "{scan:?}"
        );
        assert!(scan.hits.iter().all(|hit| hit.needle == "held"), "{scan:?}");
        assert!(scan.searched > bytes.len() as u64, "{}", scan.searched);
    }
    Ok(())
}

#[test]
fn it_finds_a_part_of_16_bytes_and_other_forms() -> Result<()> {
    let secret = random_text(40)?;
    let scan = scan_holder(
        &secret.as_bytes()[7..23],
        &[Needle::new("it", secret.as_bytes())],
    )?;
    assert!(
        scan.hits
            .iter()
            .any(|hit| hit.offset == 7 && hit.length == 16),
        "{scan:?}"
    );
    let scan = scan_holder(
        &secret.as_bytes()[7..22],
        &[Needle::new("it", secret.as_bytes())],
    )?;
    assert_eq!(scan.hits, [], "15 bytes are no hit");

    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let scan = scan_holder(hex.as_bytes(), &Needle::forms("it", secret.as_bytes()))?;
    assert!(
        scan.hits
            .iter()
            .any(|hit| hit.needle == "it in hexadecimal"),
        "{scan:?}"
    );
    Ok(())
}

#[test]
fn what_it_could_not_read_is_only_what_the_kernel_keeps() -> Result<()> {
    let secret = random_text(40)?;
    let scan = scan_holder(b"....", &[Needle::new("it", secret.as_bytes())])?;
    for region in &scan.unreadable {
        assert!(
            region.contains("[vvar") || region.contains("[vsyscall]"),
            "{region}"
        );
    }
    assert_eq!(scan.hits, []);
    Ok(())
}
