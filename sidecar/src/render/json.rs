//! One JSON object (RFC 8259): a field is a member, its value a string.

use super::{Buffer, Opened, Refused, utf8};
use serde::ser::{SerializeMap as _, Serializer as _};

/// Writes it, sorted by name, with a line's end.
pub fn write(opened: &Opened, out: &mut Buffer) -> Result<(), Refused> {
    let mut members = Vec::with_capacity(opened.fields.len());
    for (name, value) in &opened.fields {
        members.push((name.as_str(), utf8(name.as_str(), value)?));
    }
    let mut write = || {
        // Each string goes straight into the buffer.
        let mut json = serde_json::Serializer::new(&mut *out);
        let mut object = json.serialize_map(Some(members.len()))?;
        for (name, value) in &members {
            object.serialize_entry(name, value)?;
        }
        object.end()
    };
    // Text into memory fails only for its size.
    write().map_err(|_| Refused::TooLarge)?;
    super::put(out, b"\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refuses_what_is_no_text, text};
    use super::super::{Format, MAX_OUTPUT};

    #[test]
    fn values_come_back_as_they_were() {
        let nasty = "a\"b\\c\n\r\t\u{1}\u{0}\u{7f}é\u{2028}😀</script>";
        let said = text(
            Format::Json,
            &[
                ("password", nasty.as_bytes()),
                ("tls.crt", b""),
                ("username", b"app"),
            ],
        );
        let said = said.unwrap();
        assert_eq!(said.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(read["password"], nasty);
        assert_eq!(read["tls.crt"], "");
        assert_eq!(read.as_object().unwrap().len(), 3);
        refuses_what_is_no_text(Format::Json, &[("password", b"")], false);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let large = vec![b'\n'; MAX_OUTPUT / 2];
        let said = text(Format::Json, &[("a", &large), ("b", b"x")]).unwrap_err();
        assert!(said.contains("1 MiB"), "{said}");
    }
}
