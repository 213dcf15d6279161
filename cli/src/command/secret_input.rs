//! Secret values on their way in: from a file, a pipe, or a terminal that does not echo. Never from
//! the command line, which everybody on the host can read.

use crate::command::terminal::Quiet;
use crate::failure::Failure;
use crate::output::note;
use mayfly_wire::session::MAX_VALUE;
use mayfly_wire::{FieldName, Secret};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

const NEVER_IN_ARGUMENTS: &str = "values are never given as arguments, where every process on this \
    host can read them and the shell keeps them in its history. Give a file, or `-` for standard \
    input (a terminal asks without echo)";

/// A field and the file that its value comes from: `NAME=FILE`.
#[derive(Clone, Debug)]
pub struct FieldFile {
    /// The field.
    pub name: FieldName,
    /// The file; `-` is standard input.
    pub file: PathBuf,
}

/// Reads `NAME=FILE`. What stands after `=` may be a secret by mistake, so it is not repeated: that is
/// why the command line's own parser, which repeats what it refuses, is not asked to do this.
pub fn parse_field(text: &str) -> Result<FieldFile, Failure> {
    let usage = |message: String| Failure::Usage(format!("--field {message}"));
    let (name, file) = text
        .split_once('=')
        .ok_or_else(|| usage("expected NAME=FILE, such as password=./password.txt".to_owned()))?;
    let name: FieldName = name.parse().map_err(|error| usage(format!("{error}")))?;
    if file.is_empty() {
        return Err(usage(format!(
            "{name}=: expected a file after the equals sign"
        )));
    }
    if file != "-" && !Path::new(file).exists() {
        return Err(usage(format!(
            "{name}=…: what stands after the equals sign is not a file. Note: {NEVER_IN_ARGUMENTS}"
        )));
    }
    Ok(FieldFile {
        name,
        file: file.into(),
    })
}

/// Refuses a source that is neither a file nor `-`, without repeating it: it may be the value.
pub fn check_source(source: &Path) -> Result<(), Failure> {
    if source == Path::new("-") || source.exists() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "expected a file that exists, or `-`, after the path. Note: {NEVER_IN_ARGUMENTS}. For a \
         value of several fields, give --field NAME=FILE for each"
    )))
}

/// Reads one value. `None` and `-` are standard input.
pub fn read(source: Option<&Path>, trim: bool) -> Result<Secret, Failure> {
    let source = source.filter(|path| *path != Path::new("-"));
    let name = source.map_or_else(
        || "standard input".to_owned(),
        |path| path.display().to_string(),
    );
    let bytes = match source {
        Some(path) => {
            let doing = || Failure::doing(format!("cannot read {}", path.display()));
            limited(&mut File::open(path).map_err(doing())?, &name)?
        }
        None if io::stdin().is_terminal() => return without_echo(),
        None => limited(&mut io::stdin().lock(), &name)?,
    };
    Ok(Secret::from(without_line_feed(bytes, trim, &name)))
}

/// A value that ends in a line feed is seldom meant to, but a file is a file: say so.
fn without_line_feed(mut bytes: Vec<u8>, trim: bool, name: &str) -> Vec<u8> {
    if bytes.ends_with(b"\n") {
        if trim {
            bytes.pop();
        } else {
            note(&format!(
                "mayfly: note: {name} ends in a line feed, which is kept as part of the value"
            ));
        }
    }
    bytes
}

fn limited(from: &mut dyn Read, name: &str) -> Result<Vec<u8>, Failure> {
    // All the room at once, so that no copy is left behind by a vector that grows.
    let mut bytes = Vec::with_capacity(MAX_VALUE + 1);
    from.take(MAX_VALUE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(Failure::doing(format!("cannot read {name}")))?;
    if bytes.len() > MAX_VALUE {
        return Err(Failure::Usage(format!(
            "{name} has more than {MAX_VALUE} bytes, which is the most that a value can have"
        )));
    }
    Ok(bytes)
}

/// Asks on the terminal, twice as people expect of what they cannot see.
fn without_echo() -> Result<Secret, Failure> {
    let quiet = Quiet::new()?;
    let first = quiet.ask("Value (it is not shown): ")?;
    let second = quiet.ask("Once more: ")?;
    drop(quiet);
    if first.expose() != second.expose() {
        return Err(Failure::Usage(
            "the two values differ: nothing was stored".into(),
        ));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_an_argument_is_refused_and_not_repeated() {
        for text in ["password=hunter2", "hunter2"] {
            let error = parse_field(text).err().unwrap().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            let error = check_source(Path::new(text)).unwrap_err().to_string();
            assert!(
                !error.contains("hunter2") && error.contains("never"),
                "{error}"
            );
        }
        assert_eq!(
            parse_field("password=/dev/null").unwrap().name.as_str(),
            "password"
        );
        assert!(check_source(Path::new("-")).is_ok());
    }

    #[test]
    fn a_value_has_a_limit() {
        let mut endless = io::repeat(b'x');
        assert!(limited(&mut endless, "x").is_err());
        assert_eq!(limited(&mut &b"abc\n"[..], "x").unwrap(), b"abc\n");
        assert_eq!(without_line_feed(b"abc\n".to_vec(), true, "x"), b"abc");
        assert_eq!(without_line_feed(b"abc\n".to_vec(), false, "x"), b"abc\n");
    }
}
