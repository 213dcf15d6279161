//! What `java.util.Properties.load` reads: Latin-1, with escapes, and `\uXXXX` for all the rest.

use super::{Buffer, Opened, Refused, named, names, put};

/// Writes `NAME=value` lines.
pub fn write(opened: &Opened, prefix: Option<&str>, out: &mut Buffer) -> Result<(), Refused> {
    for (name, _, value) in names(opened, |field| named(opened, prefix, ".", field))? {
        escaped(out, &name, true)?;
        put(out, b"=")?;
        escaped(out, value, false)?;
        put(out, b"\n")?;
    }
    Ok(())
}

/// In a key, blanks and what ends a key are escaped everywhere; in a value, only a blank at its
/// beginning would be lost.
fn escaped(out: &mut Buffer, text: &str, key: bool) -> Result<(), Refused> {
    let mut units = [0; 2];
    for (at, letter) in text.chars().enumerate() {
        match letter {
            '\\' => put(out, b"\\\\")?,
            '\n' => put(out, b"\\n")?,
            '\r' => put(out, b"\\r")?,
            '\t' => put(out, b"\\t")?,
            ' ' if key || at == 0 => put(out, b"\\ ")?,
            '=' | ':' if key => put(out, &[b'\\', letter as u8])?,
            '#' | '!' if at == 0 => put(out, &[b'\\', letter as u8])?,
            ' '..='~' => put(out, &[letter as u8])?,
            _ => {
                for unit in letter.encode_utf16(&mut units) {
                    put(out, format!("\\u{unit:04X}").as_bytes())?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refuses_what_is_no_text, text, with};
    use super::super::{Choices, Format};

    /// A reader after the documentation of `Properties.load`, for one line.
    fn read(line: &str) -> (String, String) {
        let (mut key, mut value, mut in_key) = (Vec::new(), Vec::new(), true);
        let mut letters = line.encode_utf16();
        while let Some(unit) = letters.next() {
            let mut escaped = false;
            let unit = match char::from_u32(u32::from(unit)).unwrap() {
                '\\' => {
                    escaped = true;
                    match char::from_u32(u32::from(letters.next().unwrap())).unwrap() {
                        'n' => 10,
                        'r' => 13,
                        't' => 9,
                        'f' => 12,
                        'u' => {
                            let digits: Vec<u16> = letters.by_ref().take(4).collect();
                            u16::from_str_radix(&String::from_utf16(&digits).unwrap(), 16).unwrap()
                        }
                        other => other as u16,
                    }
                }
                _ => unit,
            };
            match (in_key, unit == u16::from(b'=') && !escaped) {
                (true, true) => in_key = false,
                (true, false) => key.push(unit),
                // Blanks before a value are skipped.
                (false, _) if value.is_empty() && unit == 32 && !escaped => {}
                (false, _) => value.push(unit),
            }
        }
        let text = |units: &[u16]| String::from_utf16(units).unwrap();
        (text(&key), text(&value))
    }

    #[test]
    fn values_come_back_as_they_were() {
        for value in [
            "plain",
            "",
            "  two blanks",
            "a=b:c#d!e",
            "#x",
            "back\\slash\\",
            "line\nline\r\n\tend\u{c}\u{1}",
            "é\u{ff}😀",
            "trailing ",
        ] {
            let said = text(Format::Properties, &[("password", value.as_bytes())]).unwrap();
            assert_eq!(said.lines().count(), 1, "{said:?}");
            assert!(said.is_ascii());
            let (key, read) = read(said.trim_end_matches('\n'));
            assert_eq!((key.as_str(), read.as_str()), ("orders-db.password", value));
        }
        refuses_what_is_no_text(Format::Properties, &[("password", b"")], true);
    }

    #[test]
    fn a_prefix_is_escaped_as_a_key() {
        let choices = Choices {
            prefix: Some("spring data:".to_owned()),
            ..Choices::default()
        };
        let said = with(Format::Properties, &[("url", b"x")], &choices).unwrap();
        assert_eq!(said, "spring\\ data\\:url=x\n");
    }
}
