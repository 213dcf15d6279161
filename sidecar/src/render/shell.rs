//! `env`, for a POSIX shell to source, and `dotenv`, for the libraries of many languages.

use super::{Buffer, Opened, Refused, named, names, put, put_escaped, refuse};
use mayfly_wire::FieldName;

/// Writes `NAME='value'`, as POSIX quotes (XCU 2.2.2): every character stands for itself but the
/// quote, which ends the quoted part and is written escaped between two of them.
pub fn env(opened: &Opened, prefix: Option<&str>, out: &mut Buffer) -> Result<(), Refused> {
    for (name, _, value) in variables(opened, prefix)? {
        put(out, name.as_bytes())?;
        put(out, b"='")?;
        put_escaped(out, value, |letter| (letter == '\'').then_some("'\\''"))?;
        put(out, b"'\n")?;
    }
    Ok(())
}

/// Writes only what readers of `.env` files agree on. Within single quotes all take a value as it
/// is, but some read backslashes, line ends and `${…}` there; within double quotes all read `\n`
/// and `\r`, but not other escapes. What neither can say is refused.
pub fn dotenv(opened: &Opened, prefix: Option<&str>, out: &mut Buffer) -> Result<(), Refused> {
    for (name, field, value) in variables(opened, prefix)? {
        put(out, name.as_bytes())?;
        if !value.contains(['\'', '\\', '\n', '\r']) && !value.contains("${") {
            put(out, b"='")?;
            put(out, value.as_bytes())?;
            put(out, b"'\n")?;
        } else if !value.contains(['"', '\\', '$', '`']) {
            put(out, b"=\"")?;
            put_escaped(out, value, |letter| match letter {
                '\n' => Some("\\n"),
                '\r' => Some("\\r"),
                _ => None,
            })?;
            put(out, b"\"\n")?;
        } else {
            return Err(refuse(
                field.as_str(),
                "has characters that readers of .env files do not agree on; use `env` or `json`",
            ));
        }
    }
    Ok(())
}

/// The values by the names of environment variables: upper case, `_` for what is no letter or digit.
fn variables<'a>(
    opened: &'a Opened,
    prefix: Option<&str>,
) -> Result<Vec<(String, &'a FieldName, &'a str)>, Refused> {
    let name = |field: &FieldName| {
        let name = named(opened, prefix, "_", field).to_ascii_uppercase();
        name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_")
    };
    let named = names(opened, name)?;
    for (name, field, _) in &named {
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(Refused::BadName((*field).clone(), name.clone()));
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{opened, refuses_what_is_no_text, text, with};
    use super::super::{Choices, Format, render};
    use std::process::Command;

    const NASTY: &[&str] = &[
        "plain",
        "",
        "'",
        "''\\''",
        "a'b\"c$d`e`$(id)\\",
        "line\nline\r\nend\n",
        " # not a comment; \t",
        "é😀\u{7f}\u{1}",
        "-n",
        "!history!",
        "*?[a]~",
    ];

    #[test]
    fn a_shell_reads_what_was_meant() {
        for value in NASTY {
            let file = text(
                Format::Env,
                &[("password", value.as_bytes()), ("user", b"app")],
            );
            let script =
                file.unwrap() + "printf '%s|%s' \"$ORDERS_DB_PASSWORD\" \"$ORDERS_DB_USER\"";
            for shell in ["dash", "bash"] {
                let said = Command::new(shell).args(["-c", &script]).output().unwrap();
                let said = String::from_utf8(said.stdout).unwrap();
                assert_eq!(said, format!("{value}|app"), "{shell}: {value:?}");
            }
        }
        refuses_what_is_no_text(Format::Env, &[("password", b"")], true);
    }

    #[test]
    fn dotenv_says_only_what_all_understand() {
        for (value, expected) in [
            ("plain", Some("'plain'")),
            ("", Some("''")),
            ("a\"b$c`d #e", Some("'a\"b$c`d #e'")),
            ("it's", Some("\"it's\"")),
            ("-----BEGIN\nx\n", Some("\"-----BEGIN\\nx\\n\"")),
            ("a\r\nb", Some("\"a\\r\\nb\"")),
            ("back\\slash", None),
            ("${HOME}", None),
            ("'\"", None),
            ("'$x", None),
            ("line\n\"", None),
        ] {
            let said = text(Format::Dotenv, &[("password", value.as_bytes())]);
            match expected {
                Some(expected) => {
                    assert_eq!(said.unwrap(), format!("ORDERS_DB_PASSWORD={expected}\n"));
                }
                None => {
                    let said = said.unwrap_err();
                    assert!(
                        said.contains("`password`") && said.contains("do not agree"),
                        "{said}"
                    );
                }
            }
        }
        refuses_what_is_no_text(Format::Dotenv, &[("password", b"")], true);
    }

    #[test]
    fn names_are_variables_and_differ() {
        let prefix = |prefix: &str| Choices {
            prefix: Some(prefix.to_owned()),
            ..Choices::default()
        };
        let said = with(Format::Env, &[("tls.crt", b"x")], &prefix("DB_")).unwrap();
        assert_eq!(said, "DB_TLS_CRT='x'\n");
        let said = with(Format::Env, &[("a.b", b"x"), ("a_b", b"y")], &prefix("")).unwrap_err();
        assert!(
            said.contains("a.b and a_b") && said.contains("A_B"),
            "{said}"
        );
        for (field, before) in [("1x", ""), ("x", "9")] {
            let said = with(Format::Dotenv, &[(field, b"x")], &prefix(before)).unwrap_err();
            assert!(said.contains("prefix"), "{said}");
        }
        let mut one = opened(&[("value", b"t0ken")]);
        one.one_value = true;
        let said = render(Format::Env, &one, &Choices::default()).unwrap();
        assert_eq!(said.expose(), b"ORDERS_DB='t0ken'\n");
    }
}
