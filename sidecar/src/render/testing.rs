//! What the tests of all formats share.

use super::{Choices, Format, Opened, render};
use mayfly_wire::Secret;

/// A credential of several fields.
pub fn opened(fields: &[(&str, &[u8])]) -> Opened {
    let fields = fields
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), Secret::from(value.to_vec())));
    Opened {
        name: "orders-db".parse().unwrap(),
        one_value: false,
        expires_at: 1,
        fields: fields.collect(),
    }
}

/// Renders as text.
pub fn text(format: Format, fields: &[(&str, &[u8])]) -> Result<String, String> {
    with(format, fields, &Choices::default())
}

/// The same with choices.
pub fn with(format: Format, fields: &[(&str, &[u8])], choices: &Choices) -> Result<String, String> {
    match render(format, &opened(fields), choices) {
        Ok(secret) => Ok(String::from_utf8(secret.expose().to_vec()).unwrap()),
        Err(refused) => Err(refused.to_string()),
    }
}

/// No text format takes bytes that are no text, and none quotes them when it refuses.
pub fn refuses_what_is_no_text(format: Format, fields: &[(&str, &[u8])], nul: bool) {
    for (bad, part) in [(&b"s\xff\xfes"[..], "UTF-8"), (b"s\0s", "NUL")] {
        if part == "NUL" && !nul {
            continue;
        }
        let mut fields = fields.to_vec();
        for field in &mut fields {
            if field.0 == "password" {
                field.1 = bad;
            }
        }
        let said = text(format, &fields).unwrap_err();
        assert!(
            said.contains("`password`") && said.contains(part),
            "{format:?}: {said}"
        );
    }
}
