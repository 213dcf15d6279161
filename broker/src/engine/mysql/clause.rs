//! How a statement gives a user its password: the server is to get what it checks a password with, in
//! the form that it keeps, and never the password.

use super::verifier::Plugin;

const PLACEHOLDER: &str = "{{password}}";

/// A statement as the server is to see it, and what `{{password}}` in it must become, if it is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) text: String,
    pub(super) plugin: Option<Plugin>,
}

/// Understands `IDENTIFIED BY {{password}}`, which becomes what the kind of server has for a password
/// that is hashed already, and `IDENTIFIED VIA|WITH plugin USING|AS {{password}}`.
///
/// # Errors
/// What was expected.
pub(super) fn prepare(text: &str, mariadb: bool) -> Result<Prepared, String> {
    let mut prepared = Prepared {
        text: String::new(),
        plugin: None,
    };
    let mut rest = text;
    while let Some(at) = rest.find(PLACEHOLDER) {
        let (before, after) = rest.split_at(at);
        let quote = before
            .chars()
            .next_back()
            .filter(|last| "'\"".contains(*last));
        let clause = before.strip_suffix(['\'', '"']).unwrap_or(before);
        let (kept, plugin) = understand(clause, mariadb)?;
        if prepared.plugin.is_some_and(|other| other != plugin) {
            return Err("expected one kind of password in one statement".to_owned());
        }
        prepared.plugin = Some(plugin);
        prepared.text.push_str(&kept);
        prepared.text.extend(quote);
        prepared.text.push_str(PLACEHOLDER);
        rest = &after[PLACEHOLDER.len()..];
    }
    prepared.text.push_str(rest);
    Ok(prepared)
}

/// What stands before a placeholder, as the server is to see it.
fn understand(clause: &str, mariadb: bool) -> Result<(String, Plugin), String> {
    let mut words = clause.split_whitespace().rev();
    let mut next = || words.next().unwrap_or_default();
    let is = |word: &str, known: &[&str]| known.iter().any(|one| word.eq_ignore_ascii_case(one));
    let (last, second, third) = (next(), next(), next());
    if is(last, &["BY"]) && is(second, &["IDENTIFIED"]) {
        let kept = clause.trim_end();
        return Ok(if mariadb {
            (format!("{kept} PASSWORD "), Plugin::Native)
        } else {
            let kept = &kept[..kept.len() - "BY".len()];
            (
                format!("{kept}WITH caching_sha2_password AS "),
                Plugin::CachingSha2,
            )
        });
    }
    if is(last, &["PASSWORD"]) && is(second, &["BY"]) && is(third, &["IDENTIFIED"]) {
        return Ok((clause.to_owned(), Plugin::Native));
    }
    let name = second.trim_matches(['\'', '"', '`']);
    match Plugin::named(name) {
        Some(plugin) if is(last, &["USING", "AS"]) && is(third, &["VIA", "WITH"]) => {
            Ok((clause.to_owned(), plugin))
        }
        _ => {
            let names = Plugin::ALL.map(Plugin::as_str).join(", ");
            Err(format!(
                "expected IDENTIFIED BY {PLACEHOLDER}, or IDENTIFIED VIA (MySQL: WITH) one of {names} \
                 USING (MySQL: AS) {PLACEHOLDER}: it becomes what the server keeps of a password"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_given_a_verifier_in_every_form() {
        for (mariadb, text, expected, plugin) in [
            (
                true,
                "CREATE USER {{name}}@'%' IDENTIFIED BY {{password}} REQUIRE SSL",
                "CREATE USER {{name}}@'%' IDENTIFIED BY PASSWORD {{password}} REQUIRE SSL",
                Plugin::Native,
            ),
            (
                false,
                "CREATE USER {{name}} identified by '{{password}}'",
                "CREATE USER {{name}} identified WITH caching_sha2_password AS '{{password}}'",
                Plugin::CachingSha2,
            ),
            (
                true,
                "CREATE USER {{name}} IDENTIFIED VIA ed25519 USING {{password}}",
                "CREATE USER {{name}} IDENTIFIED VIA ed25519 USING {{password}}",
                Plugin::Ed25519,
            ),
            (
                false,
                "ALTER USER {{name}} IDENTIFIED\nWITH 'mysql_native_password'\nAS {{password}}",
                "ALTER USER {{name}} IDENTIFIED\nWITH 'mysql_native_password'\nAS {{password}}",
                Plugin::Native,
            ),
            (
                true,
                "CREATE USER x IDENTIFIED BY PASSWORD {{password}}",
                "CREATE USER x IDENTIFIED BY PASSWORD {{password}}",
                Plugin::Native,
            ),
        ] {
            let prepared = prepare(text, mariadb).unwrap();
            assert_eq!(prepared.text, expected);
            assert_eq!(prepared.plugin, Some(plugin));
        }
        let without = prepare("GRANT SELECT ON shop.* TO {{name}}", true).unwrap();
        assert_eq!(without.plugin, None);
    }

    #[test]
    fn what_would_make_the_verifier_a_password_is_refused() {
        for text in [
            "SET PASSWORD FOR {{name}} = {{password}}",
            "SET PASSWORD FOR {{name}} = PASSWORD({{password}})",
            "{{password}}",
            "CREATE USER {{name}} IDENTIFIED VIA pam USING {{password}}",
            "CREATE USER {{name}} IDENTIFIED VIA mysql_native_password USING PASSWORD({{password}})",
            "INSERT INTO secrets VALUES ({{password}})",
            "CREATE USER a IDENTIFIED BY {{password}}, b IDENTIFIED VIA ed25519 USING {{password}}",
        ] {
            assert!(prepare(text, true).is_err(), "{text}");
        }
    }
}
