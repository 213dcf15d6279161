//! Certificates and key in one file, as HAProxy and others read it (RFC 7468).

use super::{Buffer, Opened, Refused, put, refuse};
use mayfly_wire::FieldName;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// Writes the fields one after the other: by default the certificate with its chain, then the key.
pub fn write(opened: &Opened, fields: &[FieldName], out: &mut Buffer) -> Result<(), Refused> {
    let mut write = |field: &str| {
        let text = opened.need(field)?;
        if !is_pem(text) {
            return Err(refuse(
                field,
                "is not PEM: expected only whole BEGIN … END blocks",
            ));
        }
        put(out, text.trim_ascii().as_bytes())?;
        put(out, b"\n")
    };
    match fields {
        [] => ["tls.crt", "tls.key"].into_iter().try_for_each(&mut write),
        fields => fields.iter().try_for_each(|field| write(field.as_str())),
    }
}

/// Whether a text is whole blocks and nothing else.
fn is_pem(text: &str) -> bool {
    let (mut open, mut blocks) = (None, 0);
    for line in text.lines().map(str::trim_ascii_end) {
        let begins = line
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(DASHES));
        let ends = line
            .strip_prefix(END)
            .and_then(|rest| rest.strip_suffix(DASHES));
        match (open, begins, ends) {
            (None, Some(name), _) => open = Some(name),
            (Some(name), None, Some(end)) if name == end => {
                (open, blocks) = (None, blocks + 1);
            }
            (Some(_), None, None) => {
                // Base64, or a header of an encrypted key.
                let allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
                if !line.bytes().all(allowed) || line.starts_with(DASHES) {
                    return false;
                }
            }
            (None, None, None) if line.is_empty() => {}
            _ => return false,
        }
    }
    open.is_none() && blocks > 0
}

#[cfg(test)]
mod tests {
    use super::super::testing::{text, with};
    use super::super::{Choices, Format};

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIB\nAA==\n-----END CERTIFICATE-----";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\r\nMC4C\r\n-----END PRIVATE KEY-----\r\n";

    #[test]
    fn blocks_follow_each_other_in_order() {
        let chain = format!("{CERTIFICATE}\n\n{CERTIFICATE}\n");
        let fields: [(&str, &[u8]); 3] = [
            ("ca.crt", CERTIFICATE.as_bytes()),
            ("tls.crt", chain.as_bytes()),
            ("tls.key", KEY.as_bytes()),
        ];
        let said = text(Format::PemBundle, &fields).unwrap();
        let key = KEY.trim_end();
        assert_eq!(said, format!("{CERTIFICATE}\n\n{CERTIFICATE}\n{key}\n"));
        let choices = Choices {
            fields: ["tls.key", "ca.crt"]
                .map(|name| name.parse().unwrap())
                .into(),
            ..Choices::default()
        };
        let said = with(Format::PemBundle, &fields, &choices).unwrap();
        assert_eq!(said, format!("{key}\n{CERTIFICATE}\n"));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for bad in [
            "",
            "no pem",
            "-----BEGIN A-----\nMIIB\n",
            "-----BEGIN A-----\nMIIB\n-----END B-----\n",
            "-----BEGIN A-----\n-----BEGIN A-----\n-----END A-----\n",
            "-----BEGIN A-----\nM\u{0}\n-----END A-----\n",
            "-----BEGIN A-----\nMé\n-----END A-----\n",
            "-----BEGIN A-----\nM\n-----END A-----\ntrailing",
        ] {
            let fields: [(&str, &[u8]); 2] = [
                ("tls.crt", CERTIFICATE.as_bytes()),
                ("tls.key", bad.as_bytes()),
            ];
            let said = text(Format::PemBundle, &fields).unwrap_err();
            assert!(said.contains("`tls.key`"), "{said}");
        }
        let said = text(Format::PemBundle, &[("tls.crt", CERTIFICATE.as_bytes())]).unwrap_err();
        assert!(said.contains("expected a field `tls.key`"), "{said}");
    }
}
