//! What the commands print: tables for people, JSON for programs.

use crate::failure::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use nix::errno::Errno;
use serde::Serialize;
use std::io::{self, Write};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    // For people.
    Table,
    // For programs.
    Json,
}

/// Standard output, in the form that was asked for.
#[derive(Clone, Copy)]
pub struct Out {
    /// The form.
    pub format: Format,
}

impl Out {
    /// Whether JSON was asked for.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints a value as JSON if that was asked for, or else what `people` makes of it.
    pub fn show<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.is_json() {
            let json = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::Failed(format!("this is not JSON: {error}")))?;
            return self.line(&json);
        }
        self.line(people(value).trim_end_matches('\n'))
    }

    /// Prints text and a line feed.
    pub fn line(self, text: &str) -> Result<(), Failure> {
        self.bytes(&[text.as_bytes(), b"\n"])
    }

    /// Prints bytes as they are, which may be a secret.
    pub fn bytes(self, parts: &[&[u8]]) -> Result<(), Failure> {
        let written = parts.iter().try_for_each(|part| write_all(part));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Failed(format!("cannot write to standard output: {error}")),
        })
    }
}

/// Writes to standard output past the buffer that std keeps for it: what stands there is still there
/// when the process has ended, and the kernel does not wipe the memory that it takes back.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(io::stdout(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A list that may be long, told as it comes: as JSON at once, to people as a table when all of it is
/// there.
pub struct List {
    out: Out,
    heading: &'static [&'static str],
    empty: &'static str,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
    is_begun: bool,
}

impl List {
    /// None told yet.
    pub fn new(out: Out, heading: &'static [&'static str], empty: &'static str) -> Self {
        Self {
            out,
            heading,
            empty,
            rows: Vec::new(),
            notes: Vec::new(),
            is_begun: false,
        }
    }

    /// Tells one: as JSON, or with its row and what is to be said below the table.
    pub fn add<T: Serialize>(
        &mut self,
        value: &T,
        people: impl FnOnce(&T) -> (Vec<String>, Option<String>),
    ) -> Result<(), Failure> {
        if !self.out.is_json() {
            let (row, note) = people(value);
            self.rows.push(row);
            self.notes.extend(note);
            return Ok(());
        }
        let json = serde_json::to_string(value)
            .map_err(|error| Failure::Failed(format!("this is not JSON: {error}")))?;
        let before = if self.is_begun { ",\n" } else { "[\n" };
        self.is_begun = true;
        self.out.bytes(&[before.as_bytes(), json.as_bytes()])
    }

    /// That was all.
    pub fn end(self) -> Result<(), Failure> {
        if !self.out.is_json() {
            let out = self.out;
            return out.line(&self.text());
        }
        self.out.line(if self.is_begun { "\n]" } else { "[]" })
    }

    fn text(self) -> String {
        let table = table(self.heading, self.rows, self.empty);
        let lines = std::iter::once(table).chain(self.notes);
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Says something beside the output, on standard error. There is nobody to tell if that fails.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under a heading, or `empty` if there are none. Wraps to the terminal, if there is one.
pub fn table(heading: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let width = terminal_size::terminal_size().map(|(width, _)| width.0);
    layout(heading, rows, width)
}

fn layout(heading: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(heading.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Text that others chose (a cgroup's name, a label) without what would steer a terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if letter.is_control() {
                '\u{FFFD}'
            } else {
                letter
            }
        })
        .collect()
}

/// `1 lease`, `2 leases`.
pub fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_headings() {
        let rows = vec![
            vec!["orders".to_owned(), "1".to_owned()],
            vec!["billing-long".to_owned(), "22".to_owned()],
        ];
        let text = layout(&["NAME", "LEASES"], rows, None);
        assert_eq!(
            text,
            "NAME          LEASES\norders        1\nbilling-long  22"
        );
    }

    #[test]
    fn a_table_keeps_to_the_terminal() {
        let rows = vec![vec!["x ".repeat(80), "y".to_owned()]];
        let text = layout(&["A", "B"], rows, Some(80));
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn what_is_to_be_said_comes_after_the_table() {
        let out = Out {
            format: Format::Table,
        };
        let list = || List::new(out, &["A"], "none");
        assert_eq!(list().text(), "none");
        let mut some = list();
        for number in ["1", "2"] {
            let told = |it: &&str| {
                (
                    vec![(*it).to_owned()],
                    (*it == "1").then(|| "one".to_owned()),
                )
            };
            some.add(&number, told).unwrap();
        }
        let text = some.text();
        assert!(
            text.starts_with("A") && text.ends_with("1\n2\none"),
            "{text}"
        );
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31m\nb"), "a\u{FFFD}[31m\u{FFFD}b");
    }
}
