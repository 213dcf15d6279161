//! The names that certificates carry: what may stand in them, and what the evidence may put there.
//!
//! A name is rendered from a template. A value of the evidence may hold only characters that separate
//! nothing ([`in_label`], [`in_segment`]), so that the labels and segments of a name are those of its
//! template; then the whole name is checked.

use super::template::Template;
use mayfly_wire::{CredentialName, Evidence};

/// Most names of one kind in a certificate.
pub(super) const MAX_NAMES: usize = 32;
const SPIFFE: &str = "spiffe://";

/// A kind of name.
pub(super) struct Kind {
    /// What it is called in messages.
    what: &'static str,
    /// Characters that the evidence may put into it.
    fits: fn(char) -> bool,
    /// Whether it is one: what was expected.
    check: fn(&str) -> Result<(), &'static str>,
}

/// A host's name (RFC 1035, section 2.3.1, with the leading digits of RFC 1123, section 2.1), lower
/// case, without a trailing dot and without wildcards.
pub(super) const DNS: Kind = Kind {
    what: "DNS name",
    fits: in_label,
    check: dns,
};
/// A SPIFFE ID of a workload (the SPIFFE-ID standard, section 2).
pub(super) const SPIFFE_ID: Kind = Kind {
    what: "SPIFFE ID",
    fits: in_segment,
    check: spiffe,
};
/// The common name of a subject (RFC 5280, appendix A: at most 64 characters).
pub(super) const COMMON_NAME: Kind = Kind {
    what: "common name",
    fits: in_segment,
    check: common_name,
};
/// A user's name for OpenSSH, which joins several with commas.
pub(super) const USER: Kind = Kind {
    what: "principal",
    fits: in_segment,
    check: user,
};

/// A template for a name of one kind.
pub(super) struct Name {
    kind: Kind,
    template: Template,
}

impl Name {
    /// Reads a template that can become a name of this kind at all.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) fn parse(kind: Kind, text: &str) -> Result<Self, String> {
        let template = Template::parse(text)?;
        let bad = |expected| format!("{} {text:?}: expected {expected}", kind.what);
        (kind.check)(&template.sample("x")).map_err(bad)?;
        let has_domain = |prefix: &str| {
            let rest = prefix.strip_prefix(SPIFFE);
            rest.is_some_and(|rest| rest.contains('/'))
        };
        if kind.what == SPIFFE_ID.what && !has_domain(template.prefix()) {
            return Err(bad("a trust domain without placeholders"));
        }
        Ok(Self { kind, template })
    }

    /// The name for one workload.
    ///
    /// # Errors
    /// A sentence for the operator: the evidence lacks what it asks for, or says what no name can hold.
    pub(super) fn render(
        &self,
        credential: &CredentialName,
        evidence: &Evidence,
    ) -> Result<String, String> {
        let name = self
            .template
            .render_within(credential, evidence, self.kind.fits);
        let name = name.map_err(|error| format!("{}: {error}", self.kind.what))?;
        match (self.kind.check)(&name) {
            Ok(()) => Ok(name),
            Err(expected) => Err(format!(
                "{} {name:?} for workload {}: expected {expected}",
                self.kind.what,
                evidence.display_name()
            )),
        }
    }
}

/// What may stand in a label of a host's name.
fn in_label(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

/// What may stand in a segment of a path.
fn in_segment(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn dns(name: &str) -> Result<(), &'static str> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(in_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    // 10.0.0.1 is an address.
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    let good = name.len() <= 253 && name.split('.').all(is_label) && !is_number;
    good.then_some(()).ok_or(
        "labels of 1 to 63 of a-z, 0-9 and '-', not at an end, joined by '.', at most 253 characters, \
         the last label not a number",
    )
}

fn spiffe(id: &str) -> Result<(), &'static str> {
    let is_domain = |domain: &str| {
        let fits = |c: char| in_label(c) || matches!(c, '.' | '_');
        (1..=255).contains(&domain.len()) && domain.chars().all(fits)
    };
    let is_segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(in_segment);
    let parts = id.strip_prefix(SPIFFE).and_then(|id| id.split_once('/'));
    let good = id.len() <= 2048
        && parts.is_some_and(|(domain, path)| is_domain(domain) && path.split('/').all(is_segment));
    good.then_some(()).ok_or(
        "spiffe://TRUST-DOMAIN/PATH, the trust domain of a-z, 0-9, '.', '-' and '_', each segment of the \
         path of a-z, A-Z, 0-9, '.', '-' and '_' and neither '.' nor '..'",
    )
}

fn common_name(name: &str) -> Result<(), &'static str> {
    let fits = |c: char| in_segment(c) || matches!(c, ' ' | ':' | '/' | '@');
    let good = (1..=64).contains(&name.len()) && name.chars().all(fits) && name.trim() == name;
    good.then_some(())
        .ok_or("1 to 64 of a-z, A-Z, 0-9, '.', '-', '_', ':', '/', '@', and spaces within")
}

fn user(name: &str) -> Result<(), &'static str> {
    let fits = |c: char| in_segment(c) || matches!(c, '@' | ':' | '+');
    let begins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good =
        (1..=255).contains(&name.len()) && name.starts_with(begins) && name.chars().all(fits);
    good.then_some(()).ok_or(
        "1 to 255 of a-z, A-Z, 0-9, '.', '-', '_', '@', ':' and '+', beginning with a letter, a digit or \
         '_'",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::evidence;

    fn render(kind: Kind, template: &str, label: &str) -> Result<String, String> {
        let mut evidence = evidence(1);
        let container = evidence.container.as_mut().unwrap();
        container.labels.insert("x".to_owned(), label.to_owned());
        let name = Name::parse(kind, template)?;
        name.render(&"orders-db".parse().unwrap(), &evidence)
    }

    #[test]
    fn names_are_made_from_the_evidence() {
        let dns = render(DNS, "{compose.service}.{compose.project}.internal", "");
        assert_eq!(dns.unwrap(), "orders.shop.internal");
        let id = render(
            SPIFFE_ID,
            "spiffe://example.org/{node}/{compose.service}",
            "",
        );
        assert_eq!(id.unwrap(), "spiffe://example.org/node-1/orders");
        assert_eq!(render(USER, "deploy", "").unwrap(), "deploy");
        assert_eq!(
            render(COMMON_NAME, "{credential}", "").unwrap(),
            "orders-db"
        );
    }

    #[test]
    fn templates_that_can_never_be_a_name_are_refused_when_they_are_applied() {
        for text in [
            "*.example",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "A",
            "a_b",
            "10.0.0.1",
            "a b",
            "",
            "{label.}",
        ] {
            assert!(Name::parse(DNS, text).is_err(), "{text:?}");
        }
        for text in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://{node}/a",
            "spiffe://x{node}/a",
            "spiffe:///a",
            "spiffe://example.org/a/../b",
            "spiffe://example.org//b",
            "spiffe://example.org/a%2f",
            "spiffe://Example.org/a",
            "spiffe://u@example.org/a",
            "spiffe://example.org:1/a",
            "https://example.org/a",
            "{label.x}",
        ] {
            assert!(Name::parse(SPIFFE_ID, text).is_err(), "{text:?}");
        }
        for text in ["", "-l", "a,b", "a b", "*", "!a", "a\nb", "é"] {
            assert!(Name::parse(USER, text).is_err(), "{text:?}");
        }
        assert!(Name::parse(COMMON_NAME, &"a".repeat(65)).is_err());
    }

    /// What a label can be: anything. These and 20,000 made of the pieces that could matter.
    fn hostile() -> Vec<String> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let pieces = [
            "a",
            "Z",
            "9",
            "-",
            "_",
            ".",
            "..",
            "/",
            "/../",
            "//",
            "\\",
            ",",
            "*",
            "?",
            "!",
            "@",
            ":",
            "%2f",
            "%00",
            "\0",
            "\n",
            "\r\n",
            "\t",
            " ",
            "\u{202e}",
            "é",
            "ⅰ",
            "．",
            "。",
            "spiffe://",
            "root",
            "{",
            "}",
            "{node}",
            "\"",
            "'",
            "=",
            "#",
            "xn--",
            "localhost",
            "example.org",
            "$(id)",
        ];
        let mut values: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        for _ in 0..20_000 {
            let count = 1 + next(5);
            values.push((0..count).map(|_| pieces[next(pieces.len())]).collect());
        }
        values.push("a".repeat(300));
        values
    }

    #[test]
    fn no_label_yields_a_name_outside_what_the_template_fixes() {
        let mut taken = 0;
        for value in hostile() {
            if let Ok(name) = render(DNS, "api.{label.x}.example.org", &value) {
                assert_eq!(name, format!("api.{value}.example.org"));
                assert_eq!(name.matches('.').count(), 3, "{name:?}");
                assert!(
                    value.len() <= 63 && value.chars().all(in_label),
                    "{value:?}"
                );
                taken += 1;
            }
            if let Ok(id) = render(SPIFFE_ID, "spiffe://example.org/apps/{label.x}/web", &value) {
                assert_eq!(id, format!("spiffe://example.org/apps/{value}/web"));
                assert_eq!(id.matches('/').count(), 5, "{id:?}");
                assert!(value != "." && value != ".." && id.is_ascii(), "{id:?}");
                taken += 1;
            }
            if let Ok(user) = render(USER, "svc-{label.x}", &value) {
                assert!(user.starts_with("svc-") && !user.contains([',', '@', '*', '/', ' ']));
                assert!(user.is_ascii() && !user.contains(char::is_control));
                taken += 1;
            }
            if let Ok(name) = render(COMMON_NAME, "{label.x}", &value) {
                assert!(name.chars().all(in_segment), "{name:?}");
                taken += 1;
            }
        }
        assert!(
            taken > 1000,
            "{taken}: the values are too hostile to show anything"
        );
    }
}
