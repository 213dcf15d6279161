//! Forms that database clients read: `pgpass`, `my.cnf`, connection URLs and JDBC URLs.
//!
//! The fields have the names of servicebinding.io: `type`, `host`, `port`, `database`, `username`,
//! `password`.

use super::{Buffer, Opened, Refused, put, put_escaped, put_percent, refuse};

/// Writes `host:port:database:username:password` (PostgreSQL, "The Password File"): `:` and `\` are
/// escaped, and what is not known is `*`.
pub fn pgpass(opened: &Opened, out: &mut Buffer) -> Result<(), Refused> {
    for field in ["host", "port", "database", "username", "password"] {
        let text = match field {
            "username" | "password" => Some(opened.need(field)?),
            _ => opened.text(field)?,
        };
        let Some(text) = text else {
            put(out, b"*:")?;
            continue;
        };
        if text.contains(['\n', '\r']) {
            return Err(refuse(
                field,
                "has a line break, which this format cannot say",
            ));
        }
        // A lone `*` is a wildcard, and there is no way to say that it is not.
        if text == "*" || text.is_empty() && field != "password" {
            return Err(refuse(
                field,
                "is empty or `*`, which stands for anything here",
            ));
        }
        put_escaped(out, text, |letter| match letter {
            ':' => Some("\\:"),
            '\\' => Some("\\\\"),
            _ => None,
        })?;
        put(out, if field == "password" { b"\n" } else { b":" })?;
    }
    Ok(())
}

/// Writes an option file with a `[client]` group (MySQL, "Using Option Files"): values in double
/// quotes, where `\` begins an escape.
pub fn my_cnf(opened: &Opened, out: &mut Buffer) -> Result<(), Refused> {
    put(out, b"[client]\n")?;
    for (field, option) in [
        ("host", "host"),
        ("port", "port"),
        ("username", "user"),
        ("password", "password"),
        ("database", "database"),
    ] {
        let text = match field {
            "username" | "password" => Some(opened.need(field)?),
            _ => opened.text(field)?,
        };
        let Some(text) = text else { continue };
        put(out, option.as_bytes())?;
        put(out, b"=\"")?;
        put_escaped(out, text, |letter| match letter {
            '\\' => Some("\\\\"),
            '"' => Some("\\\""),
            '\'' => Some("\\'"),
            '\n' => Some("\\n"),
            '\r' => Some("\\r"),
            '\t' => Some("\\t"),
            '\u{8}' => Some("\\b"),
            _ => None,
        })?;
        put(out, b"\"\n")?;
    }
    Ok(())
}

/// Writes `scheme://username:password@host:port/database` (RFC 3986), without a line's end: many read
/// the whole file as the URL.
pub fn url(opened: &Opened, scheme: Option<&str>, out: &mut Buffer) -> Result<(), Refused> {
    put(out, known_scheme(opened, scheme)?.as_bytes())?;
    put(out, b"://")?;
    // Redis has passwords without a user.
    if let Some(user) = opened.text("username")? {
        put_percent(out, user)?;
    }
    put(out, b":")?;
    put_percent(out, opened.need("password")?)?;
    put(out, b"@")?;
    place(opened, out)?;
    // RabbitMQ has virtual hosts and no databases.
    if let Some(vhost) = opened.text("vhost")? {
        put(out, b"/")?;
        put_percent(out, vhost)?;
    }
    sslmode(opened, "?", out)
}

/// Writes `jdbc:scheme://host:port/database?user=…&password=…`, likewise.
pub fn jdbc(opened: &Opened, scheme: Option<&str>, out: &mut Buffer) -> Result<(), Refused> {
    put(out, b"jdbc:")?;
    put(out, known_scheme(opened, scheme)?.as_bytes())?;
    put(out, b"://")?;
    place(opened, out)?;
    if opened.get("database").is_none() {
        put(out, b"/")?;
    }
    put(out, b"?user=")?;
    put_percent(out, opened.need("username")?)?;
    put(out, b"&password=")?;
    put_percent(out, opened.need("password")?)?;
    sslmode(opened, "&", out)
}

/// Whether PostgreSQL's client demands TLS: what the credential says must not get lost.
fn sslmode(opened: &Opened, before: &str, out: &mut Buffer) -> Result<(), Refused> {
    let Some(mode) = opened.text("sslmode")? else {
        return Ok(());
    };
    put(out, before.as_bytes())?;
    put(out, b"sslmode=")?;
    put_percent(out, mode)
}

/// What the URL begins with: as configured, or after the field `type`.
fn known_scheme<'a>(opened: &Opened, scheme: Option<&'a str>) -> Result<&'a str, Refused> {
    if let Some(scheme) = scheme {
        return Ok(scheme);
    }
    match opened.need("type")? {
        "postgres" | "postgresql" => Ok("postgresql"),
        "mysql" => Ok("mysql"),
        "mariadb" => Ok("mariadb"),
        "redis" if is_secured(opened, "rediss://")? => Ok("rediss"),
        "redis" => Ok("redis"),
        "mongodb" => Ok("mongodb"),
        "amqp" | "rabbitmq" if is_secured(opened, "amqps://")? => Ok("amqps"),
        "amqp" | "rabbitmq" => Ok("amqp"),
        _ => Err(refuse(
            "type",
            "is of no kind that is known here; set `scheme`",
        )),
    }
}

/// Whether the credential's own `uri` demands TLS by its scheme, which must not get lost either.
fn is_secured(opened: &Opened, scheme: &str) -> Result<bool, Refused> {
    let uri = opened.text("uri")?;
    Ok(uri.is_some_and(|uri| uri.starts_with(scheme)))
}

/// Host, port and database.
fn place(opened: &Opened, out: &mut Buffer) -> Result<(), Refused> {
    let host = opened.need("host")?;
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        put(out, b"[")?;
        put(out, host.as_bytes())?;
        put(out, b"]")?;
    } else if !host.is_empty() && host.bytes().all(word) {
        put(out, host.as_bytes())?;
    } else {
        return Err(refuse("host", "is neither a host's name nor an IP address"));
    }
    if let Some(port) = opened.text("port")? {
        if port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse("port", "is no port's number"));
        }
        put(out, b":")?;
        put(out, port.as_bytes())?;
    }
    if let Some(database) = opened.text("database")? {
        put(out, b"/")?;
        put_percent(out, database)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Choices;
    use super::super::Format::{Jdbc, MyCnf, Pgpass, Url};
    use super::super::testing::{refuses_what_is_no_text, text, with};

    fn database<'a>(user: &'a str, password: &'a str) -> Vec<(&'a str, &'a [u8])> {
        vec![
            ("database", b"orders"),
            ("host", b"db.example"),
            ("password", password.as_bytes()),
            ("port", b"5432"),
            ("type", b"postgresql"),
            ("username", user.as_bytes()),
        ]
    }

    #[test]
    fn pgpass_escapes_what_separates() {
        let said = text(Pgpass, &database("a:b", "p:w\\d é\t'\"")).unwrap();
        assert_eq!(said, "db.example:5432:orders:a\\:b:p\\:w\\\\d é\t'\"\n");
        let said = text(Pgpass, &[("password", b"p"), ("username", b"u")]).unwrap();
        assert_eq!(said, "*:*:*:u:p\n");
        for (user, password, field) in [
            ("u", "a\nb", "password"),
            ("*", "p", "username"),
            ("u", "*", "password"),
        ] {
            let said = text(Pgpass, &database(user, password)).unwrap_err();
            assert!(said.contains(&format!("`{field}`")), "{said}");
        }
        let said = text(Pgpass, &[("password", b"p")]).unwrap_err();
        assert!(said.contains("expected a field `username`"), "{said}");
        refuses_what_is_no_text(Pgpass, &database("u", "p"), true);
    }

    #[test]
    fn my_cnf_escapes_within_quotes() {
        let said = text(MyCnf, &database("app", "a\"b'c\\n#d;e\nf\t ")).unwrap();
        let expected = "[client]\nhost=\"db.example\"\nport=\"5432\"\nuser=\"app\"\n\
                        password=\"a\\\"b\\'c\\\\n#d;e\\nf\\t \"\ndatabase=\"orders\"\n";
        assert_eq!(said, expected);
        refuses_what_is_no_text(MyCnf, &database("u", "p"), true);
    }

    #[test]
    fn urls_are_encoded_and_keep_their_shape() {
        let said = text(Url, &database("a@b", "p/w:d?#[]%é \n&+=")).unwrap();
        let user = "a%40b:p%2Fw%3Ad%3F%23%5B%5D%25%C3%A9%20%0A%26%2B%3D";
        assert_eq!(said, format!("postgresql://{user}@db.example:5432/orders"));
        let said = text(Jdbc, &database("a&b", "p=w&x+y z")).unwrap();
        let expected = "jdbc:postgresql://db.example:5432/orders\
                        ?user=a%26b&password=p%3Dw%26x%2By%20z";
        assert_eq!(said, expected);
        for format in [Url, Jdbc] {
            refuses_what_is_no_text(format, &database("u", "p"), true);
        }
    }

    #[test]
    fn demands_of_tls_do_not_get_lost() {
        let mut fields = database("u", "p");
        fields.insert(4, ("sslmode", b"verify-full"));
        let said = text(Url, &fields).unwrap();
        assert!(said.ends_with("/orders?sslmode=verify-full"), "{said}");
        let said = text(Jdbc, &fields).unwrap();
        assert!(said.ends_with("&password=p&sslmode=verify-full"), "{said}");
    }

    fn replaced<'a>(name: &str, value: &'a [u8]) -> Vec<(&'a str, &'a [u8])> {
        let mut fields = database("u", "p");
        for field in &mut fields {
            if field.0 == name {
                field.1 = value;
            }
        }
        fields
    }

    #[test]
    fn hosts_and_ports_cannot_smuggle() {
        let said = text(Url, &replaced("host", b"::1")).unwrap();
        assert_eq!(said, "postgresql://u:p@[::1]:5432/orders");
        for (name, bad) in [
            ("host", "evil/@x"),
            ("host", "a b"),
            ("host", ""),
            ("host", "h\n"),
            ("port", "5432/x"),
            ("port", "+1"),
            ("port", "99999"),
            ("type", "oracle"),
        ] {
            for format in [Url, Jdbc] {
                let said = text(format, &replaced(name, bad.as_bytes())).unwrap_err();
                assert!(said.contains(&format!("`{name}`")), "{said}");
                assert!(
                    bad.is_empty() || !said.contains(bad),
                    "{said} quotes a value"
                );
            }
        }
    }

    #[test]
    fn what_a_queue_or_a_cache_says_of_tls_and_its_host_does_not_get_lost() {
        let of =
            |kind: &'static str, uri: &'static str, more: Option<(&'static str, &'static str)>| {
                let mut fields: Vec<(&str, &[u8])> = vec![
                    ("host", b"q"),
                    ("password", b"p"),
                    ("type", kind.as_bytes()),
                    ("uri", uri.as_bytes()),
                    ("username", b"u"),
                ];
                fields.extend(more.map(|(name, value)| (name, value.as_bytes())));
                text(Url, &fields).unwrap()
            };
        let vhost = Some(("vhost", "/"));
        for (kind, uri, more, expected) in [
            ("redis", "rediss://u:p@q", None, "rediss://u:p@q"),
            ("redis", "redis://u:p@q", None, "redis://u:p@q"),
            ("rabbitmq", "amqps://u:p@q", vhost, "amqps://u:p@q/%2F"),
            ("rabbitmq", "amqp://u:p@q", None, "amqp://u:p@q"),
        ] {
            assert_eq!(of(kind, uri, more), expected);
        }
    }

    #[test]
    fn a_scheme_can_be_chosen() {
        let choices = Choices {
            scheme: Some("rediss".to_owned()),
            ..Choices::default()
        };
        let fields: [(&str, &[u8]); 2] = [("host", b"r"), ("password", b"p")];
        assert_eq!(with(Url, &fields, &choices).unwrap(), "rediss://:p@r");
    }
}
