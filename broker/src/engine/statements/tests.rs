use super::*;

const ALL: [Placeholder; 3] = [
    Placeholder::Name,
    Placeholder::Password,
    Placeholder::Expiration,
];
const VALUES: Values<'static> = Values {
    name: "mf_orders_1",
    password: "SCRAM-SHA-256$1:ab+/=$x:y",
    expiration: "2030-01-01 00:00:00+00",
};

fn render(dialect: Dialect, text: &str) -> Result<String, String> {
    let statements = parse(dialect, "create", &[text.to_owned()], &ALL, &[])?;
    join(&statements, &VALUES).map(|text| text.trim_end_matches("\n;").to_owned())
}

#[test]
fn what_stands_in_the_open_is_quoted_and_what_is_quoted_is_bare() {
    for (text, expected) in [
        (
            "CREATE ROLE {{name}} LOGIN PASSWORD {{password}} VALID UNTIL {{expiration}}",
            "CREATE ROLE \"mf_orders_1\" LOGIN PASSWORD 'SCRAM-SHA-256$1:ab+/=$x:y' VALID UNTIL \
             '2030-01-01 00:00:00+00'",
        ),
        (
            "CREATE ROLE \"{{name}}\" PASSWORD '{{password}}'",
            "CREATE ROLE \"mf_orders_1\" PASSWORD 'SCRAM-SHA-256$1:ab+/=$x:y'",
        ),
        (
            "SELECT 'it''s {{name}}', {{name}}",
            "SELECT 'it''s mf_orders_1', \"mf_orders_1\"",
        ),
        (
            r"SELECT E'\'{{name}}', '\', {{name}}",
            r#"SELECT E'\'mf_orders_1', '\', "mf_orders_1""#,
        ),
        (
            r"SELECT type'\', {{name}}",
            r#"SELECT type'\', "mf_orders_1""#,
        ),
        ("-- it's\n{{name}}", "-- it's\n\"mf_orders_1\""),
        (
            "/* a /* ' */ ' */ {{name}}",
            "/* a /* ' */ ' */ \"mf_orders_1\"",
        ),
        (
            "DO $$ BEGIN EXECUTE 'GRANT a TO {{name}}'; GRANT b TO {{name}}; END $$",
            "DO $$ BEGIN EXECUTE 'GRANT a TO mf_orders_1'; GRANT b TO \"mf_orders_1\"; END $$",
        ),
        (
            "SELECT '{1,2}', '}}', é, {{name}}",
            "SELECT '{1,2}', '}}', é, \"mf_orders_1\"",
        ),
    ] {
        assert_eq!(render(Dialect::Postgres, text).unwrap(), expected);
    }
    for (text, expected) in [
        ("CREATE USER {{name}}@'%'", "CREATE USER `mf_orders_1`@'%'"),
        (
            "SELECT '{{name}}', \"\\\"{{name}}\"",
            "SELECT 'mf_orders_1', \"\\\"mf_orders_1\"",
        ),
        (
            "SELECT '\\'{{name}}' # it's\n, `{{name}}`",
            "SELECT '\\'mf_orders_1' # it's\n, `mf_orders_1`",
        ),
    ] {
        assert_eq!(render(Dialect::Mysql, text).unwrap(), expected);
    }
}

#[test]
fn nothing_else_is_ever_put_in() {
    for (text, found) in [
        ("GRANT {{label.team}} TO {{name}}", "{{label.team}}"),
        ("{{ name }}", "{{ name }}"),
        ("{{name", "without"),
        ("{{}}", "{{}}"),
        ("{{{name}}}", "{{{name}}"),
        ("SELECT 'a", "' is not closed"),
        ("SELECT \"a", "\" is not closed"),
        ("/* a", "comment"),
        ("-- {{password}}", "comment"),
        ("/* {{password}} */", "comment"),
        ("a\0", "NUL"),
        ("  ", "expected 1 to"),
    ] {
        let problem = render(Dialect::Postgres, text).unwrap_err();
        assert!(problem.starts_with("create, statement 1: "), "{problem}");
        assert!(problem.contains(found), "{problem}");
    }
    let revoke = ["DROP ROLE {{name}}; SELECT {{password}}".to_owned()];
    let known = [Placeholder::Name];
    let problem = parse(Dialect::Postgres, "revoke", &revoke, &known, &known).unwrap_err();
    assert!(problem.contains("expected {{name}}, found {{password}}"));
    let create = ["CREATE ROLE {{name}}".to_owned()];
    let problem = parse(Dialect::Postgres, "create", &create, &ALL, &ALL).unwrap_err();
    assert!(problem.contains("{{password}}"), "{problem}");
}

#[test]
fn values_beyond_their_alphabet_are_refused() {
    let texts = ["{{name}} {{password}} {{expiration}}".to_owned()];
    let statements = parse(Dialect::Postgres, "create", &texts, &ALL, &ALL).unwrap();
    for values in [
        Values { name: "", ..VALUES },
        Values {
            name: "a\"b",
            ..VALUES
        },
        Values {
            name: "1a",
            ..VALUES
        },
        Values {
            name: "Ab",
            ..VALUES
        },
        Values {
            name: &"a".repeat(64),
            ..VALUES
        },
        Values {
            password: "a'b",
            ..VALUES
        },
        Values {
            password: "a\\",
            ..VALUES
        },
        Values {
            password: "a b",
            ..VALUES
        },
        Values {
            expiration: "now'",
            ..VALUES
        },
    ] {
        assert!(join(&statements, &values).is_err());
    }
}

/// A source of numbers that are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}

/// Whatever the statement, and whatever the values of the alphabet: the operator's own text is as it was,
/// and whoever reads the result finds each byte of it in the same quotes or comment as before.
#[test]
fn no_value_changes_where_quotes_and_comments_begin_and_end() {
    let parts = [
        "'",
        "\"",
        "`",
        "\\",
        "--",
        "\n",
        "/*",
        "*/",
        "$$",
        "#",
        "E'",
        "{{name}}",
        "{{password}}",
        "{{expiration}}",
        " ",
        "x",
        "é",
        ";",
        "''",
        "{",
    ];
    let letters: Vec<char> = (33..127_u8)
        .filter(|b| is_plain(*b))
        .map(char::from)
        .collect();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut rendered = 0;
    for _ in 0..200_000 {
        let text: String = (0..1 + dice.roll(12))
            .map(|_| parts[dice.roll(parts.len())])
            .collect();
        let dialect = [Dialect::Postgres, Dialect::Mysql][dice.roll(2)];
        let Ok(statement) = Statement::parse(dialect, &text, &ALL) else {
            continue;
        };
        let password: String = (0..dice.roll(40))
            .map(|_| letters[dice.roll(letters.len())])
            .collect();
        let values = Values {
            password: &password,
            ..VALUES
        };
        let mut result = String::new();
        statement.render(&values, &mut result).unwrap();
        let found = places(dialect, &result);
        // With the shortest values that there are.
        let mut least = String::new();
        let short = Values {
            name: "a",
            password: "",
            expiration: "",
        };
        statement.render(&short, &mut least).unwrap();
        let expected = places(dialect, &least);
        let (mut at, mut least_at) = (0, 0);
        for piece in &statement.pieces {
            match piece {
                Piece::Text(text) => {
                    assert!(result[at..].starts_with(text.as_str()));
                    for byte in 0..text.len() {
                        assert!(
                            found[at + byte] == expected[least_at + byte],
                            "{text:?} {result:?}"
                        );
                    }
                    (at, least_at) = (at + text.len(), least_at + text.len());
                }
                Piece::Quoted(one) => {
                    let inside = &found[at..at + values.of(*one).len()];
                    assert!(
                        inside
                            .iter()
                            .all(|place| matches!(place, Place::Quotes(..)))
                    );
                    (at, least_at) = (at + inside.len(), least_at + short.of(*one).len());
                }
                Piece::Open(one) => {
                    let inside = &found[at + 1..at + 1 + values.of(*one).len()];
                    assert!(found[at] == Place::Open);
                    assert!(
                        inside
                            .iter()
                            .all(|place| matches!(place, Place::Quotes(..)))
                    );
                    (at, least_at) = (at + inside.len() + 2, least_at + short.of(*one).len() + 2);
                }
            }
        }
        assert_eq!(at, result.len());
        rendered += 1;
    }
    assert!(rendered > 20_000, "{rendered}");
}

/// Where each byte stands.
fn places(dialect: Dialect, text: &str) -> Vec<Place> {
    let (mut place, mut at, mut all) = (Place::Open, 0, Vec::new());
    while at < text.len() {
        let (after, next) = dialect.step(place, text.as_bytes(), at);
        all.resize(next.min(text.len()), place);
        (place, at) = (after, next);
    }
    all
}
