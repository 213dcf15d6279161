//! Templates of the operator's, in Jinja's language. What is not there is an error, not an empty
//! text; nothing can be included or read; the work and the output are bounded.
//!
//! A template sees the fields of its credential by their names, where these are names in the
//! language, and of each of its credentials as `secrets["orders-db"]["tls.crt"]`. Filters for values:
//! `json`, `url`, `sh` (quoted for a POSIX shell), `upper`, `lower`, `trim`, `replace(from, to)` and
//! `default(other)`; the test `defined`. The engine's own are left out: they are half of its size.

use super::{Buffer, Opened, Refused, plain};
use mayfly_wire::Secret;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of a template.
pub const MAX_TEMPLATE: usize = 64 * 1024;
/// Most steps that rendering one may take.
const FUEL: u64 = 200_000;

/// All templates of a configuration, by the paths of their outputs.
pub struct Templates(Environment<'static>);

impl Default for Templates {
    fn default() -> Self {
        let mut engine = Environment::new();
        engine.set_undefined_behavior(UndefinedBehavior::Strict);
        engine.set_auto_escape_callback(|_| AutoEscape::None);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        if let Ok(syntax) = syntax {
            engine.set_syntax(syntax);
        }
        engine.set_fuel(Some(FUEL));
        engine.add_filter("json", json);
        engine.add_filter("url", url);
        engine.add_filter("sh", sh);
        engine.add_filter("upper", |text: &str| text.to_uppercase());
        engine.add_filter("lower", |text: &str| text.to_lowercase());
        engine.add_filter("trim", |text: &str| text.trim().to_owned());
        engine.add_filter("replace", |text: &str, from: &str, to: &str| {
            text.replace(from, to)
        });
        engine.add_filter("default", default);
        engine.add_test("defined", |value: Value| !value.is_undefined());
        Self(engine)
    }
}

impl Templates {
    /// Adds a template.
    ///
    /// # Errors
    /// A sentence with the line, if it is none.
    pub fn add(&mut self, name: &str, source: String) -> Result<(), String> {
        if source.len() > MAX_TEMPLATE {
            return Err(format!("the template is larger than {MAX_TEMPLATE} bytes"));
        }
        let added = self.0.add_template_owned(name.to_owned(), source);
        // Nothing secret has come near it yet, so the engine's own words will do.
        added.map_err(|error| format!("the template is wrong: {error}"))
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.templates().next().is_none()
    }

    /// Renders one.
    ///
    /// # Errors
    /// [`Refused`], which names the line and never a value.
    pub fn render(&self, name: &str, credentials: &[&Opened]) -> Result<Secret, Refused> {
        let mut values = BTreeMap::new();
        let mut secrets = BTreeMap::new();
        for opened in credentials {
            let mut fields = BTreeMap::new();
            for (field, secret) in &opened.fields {
                // Bytes that are no text are refused when they are used, not because they are there.
                let value = match plain(field.as_str(), secret) {
                    Ok(text) => Value::from(text),
                    Err(refused) => Value::from(minijinja::Error::new(
                        ErrorKind::BadSerialization,
                        refused.to_string(),
                    )),
                };
                fields.insert(field.to_string(), value);
            }
            if credentials.len() == 1 {
                values.clone_from(&fields);
            }
            secrets.insert(opened.name.to_string(), Value::from_object(Names(fields)));
        }
        values.insert("secrets".to_owned(), Value::from_object(Names(secrets)));
        let mut out = Buffer::default();
        let template = self.0.get_template(name);
        let rendered = template.and_then(|template| {
            template
                .render_captured_to(Value::from_object(Names(values)), &mut out)
                .map(drop)
        });
        match rendered {
            Ok(()) => Ok(out.into_secret()),
            Err(error) => Err(refused(&error)),
        }
    }
}

/// What can be said about an error: its kind and place. The engine's details can quote a value.
fn refused(error: &minijinja::Error) -> Refused {
    let what = match error.kind() {
        ErrorKind::UndefinedError => "names what is not there",
        ErrorKind::OutOfFuel => "does too much",
        ErrorKind::WriteFailure => return Refused::TooLarge,
        ErrorKind::UnknownFilter => "uses a filter that is not there",
        ErrorKind::UnknownFunction => "uses a function that is not there",
        ErrorKind::UnknownTest => "uses a test that is not there",
        ErrorKind::UnknownMethod => "uses a method that is not there",
        // Of our making: names a field.
        ErrorKind::BadSerialization => "uses a field that is not UTF-8 text without NUL",
        _ => "does with a value what cannot be done with it",
    };
    let line = error.line().unwrap_or_default();
    Refused::Template(format!("the template {what}, in line {line}"))
}

/// Values by names.
#[derive(Debug)]
struct Names(BTreeMap<String, Value>);

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(
            self.0
                .keys()
                .map(|name| Value::from(name.as_str()))
                .collect(),
        )
    }
}

/// The value, or this one if it is not there.
fn default(value: Value, other: Value) -> Value {
    match value.is_undefined() {
        true => other,
        false => value,
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn url(text: &str) -> Result<Value, minijinja::Error> {
    through(|out| super::put_percent(out, text))
}

fn sh(text: &str) -> Result<Value, minijinja::Error> {
    through(|out| {
        super::put(out, b"'")?;
        super::put_escaped(out, text, |letter| (letter == '\'').then_some("'\\''"))?;
        super::put(out, b"'")
    })
}

fn through(
    write: impl FnOnce(&mut Buffer) -> Result<(), Refused>,
) -> Result<Value, minijinja::Error> {
    let mut out = Buffer::default();
    let written = write(&mut out).map(|()| out.into_secret());
    match &written {
        Ok(secret) => Ok(Value::from(String::from_utf8_lossy(secret.expose()))),
        Err(_) => Err(ErrorKind::WriteFailure.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::opened;
    use super::*;

    fn rendered(source: &str, credentials: &[&Opened]) -> Result<String, String> {
        let mut templates = Templates::default();
        templates.add("t", source.to_owned())?;
        match templates.render("t", credentials) {
            Ok(secret) => Ok(String::from_utf8(secret.expose().to_vec()).unwrap()),
            Err(refused) => Err(refused.to_string()),
        }
    }

    fn one(source: &str) -> Result<String, String> {
        let fields: [(&str, &[u8]); 4] = [
            ("binary", b"secret\xff"),
            ("password", "s3cret'<&>\"\n%é".as_bytes()),
            ("tls.crt", b"certificate"),
            ("username", b"app"),
        ];
        rendered(source, &[&opened(&fields)])
    }

    #[test]
    fn fields_are_there_as_they_are() {
        for (source, expected) in [
            ("{{ username }}:{{ password }}\n", "app:s3cret'<&>\"\n%é\n"),
            ("{{ secrets['orders-db'].username }}", "app"),
            ("{{ secrets['orders-db']['tls.crt'] }}", "certificate"),
            ("{{ password | json }}", "\"s3cret'<&>\\\"\\n%é\""),
            ("{{ password | url }}", "s3cret%27%3C%26%3E%22%0A%25%C3%A9"),
            ("{{ password | sh }}", "'s3cret'\\''<&>\"\n%é'"),
            (
                "{% for name in secrets %}{{ name }}{% endfor %}",
                "orders-db",
            ),
            ("{% if username is defined %}yes{% endif %}", "yes"),
            ("{{ missing | default('none') }}", "none"),
            ("{{ username | upper }}", "APP"),
        ] {
            assert_eq!(one(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn several_credentials_have_no_bare_fields() {
        let (first, mut second) = (opened(&[("a", b"1")]), opened(&[("a", b"2")]));
        second.name = "other".parse().unwrap();
        let both = [&first, &second];
        let source = "{{ secrets['orders-db'].a }}{{ secrets.other.a }}";
        assert_eq!(rendered(source, &both).as_deref(), Ok("12"));
        assert!(
            rendered("{{ a }}", &both)
                .unwrap_err()
                .contains("not there")
        );
    }

    #[test]
    fn mistakes_name_the_line_and_no_value() {
        for (source, part) in [
            ("\n{{ passwort }}", "not there, in line 2"),
            ("{{ secrets['orders-db'].x }}", "not there"),
            ("{{ secrets['other'].x }}", "not there"),
            ("{% if missing %}{% endif %}", "not there"),
            ("{{ binary }}", "UTF-8"),
            ("{{ password + 1 }}", "cannot be done"),
            ("{{ password | int }}", "a filter that is not there"),
            ("{{ password | replace(1) }}", "cannot be done"),
            ("{{ password | nonsense }}", "filter"),
            ("{{ password() }}", "line 1"),
            (
                "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
                "too much",
            ),
            (
                "{% for a in 'x' * 9999 %}{{ a }}{{ 'x' * 999 }}{% endfor %}",
                "",
            ),
        ] {
            let said = one(source).unwrap_err();
            assert!(said.contains(part), "{source}: {said}");
            assert!(
                !said.contains("s3cret") && !said.contains("secret"),
                "{said}"
            );
        }
        assert!(one("{{ username").unwrap_err().contains("wrong"));
        assert!(one("{% include '/etc/passwd' %}").is_err());
        assert!(
            one(&"x".repeat(MAX_TEMPLATE + 1))
                .unwrap_err()
                .contains("larger")
        );
    }
}
