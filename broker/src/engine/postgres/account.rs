//! What a role is called, and what its holder is told.

use super::connect::{DATABASE, PORT, place, speaks_tls};
use crate::engine::EngineError;
use crate::engine::account::{encode, plain};
use mayfly_wire::session::Layout;
use mayfly_wire::{ConnectionConfig, CredentialName, FieldName, LeaseId, Secret};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use zeroize::Zeroizing;

/// Most characters of the credential's name, and of the workload's, in a role's name.
const PARTS: (usize, usize) = (17, 16);

/// The name of a lease's role: `mf_orders_db_shop_orders_1_` and 25 characters of the lease's id. People
/// read the front, and the end makes it one of its kind; 63 bytes are what the server keeps.
pub(super) fn name(credential: &CredentialName, workload: &str, lease: &LeaseId) -> String {
    let id = plain(lease.as_str(), usize::MAX);
    let id = id.trim_start_matches("lease_");
    let random = &id[..id.len().min(25)];
    format!(
        "mf_{}_{}_{random}",
        plain(credential.as_str(), PARTS.0),
        plain(workload, PARTS.1)
    )
}

/// What a holder is told: the fields of a service binding (servicebinding.io), and a URI (libpq, 34.1.1.2).
pub(super) fn fields(
    config: &ConnectionConfig,
    user: &str,
    password: &Secret,
) -> Result<(BTreeMap<FieldName, Secret>, Layout), EngineError> {
    let told = config.public_host.as_deref().unwrap_or(&config.host);
    let (host, port) = place(told, config.port.unwrap_or(PORT));
    let database = config.database.as_deref().unwrap_or(DATABASE);
    let mode = speaks_tls(host, config.tls).then_some("verify-full");
    // Enough for all of it encoded, so that no piece of it is left behind in memory as it grows.
    let parts = [user.len(), password.len(), host.len(), database.len()];
    let room = parts.iter().sum::<usize>() * 3 + 64;
    let mut uri = Zeroizing::new(String::with_capacity(room));
    uri.push_str("postgresql://");
    encode(user.as_bytes(), &mut uri);
    uri.push(':');
    encode(password.expose(), &mut uri);
    uri.push('@');
    // An IPv6 address is the one thing that may hold a colon.
    if host.contains(':') {
        let _ = write!(uri, "[{host}]");
    } else {
        encode(host.as_bytes(), &mut uri);
    }
    let _ = write!(uri, ":{port}/");
    encode(database.as_bytes(), &mut uri);
    if let Some(mode) = mode {
        let _ = write!(uri, "?sslmode={mode}");
    }
    let mut fields = BTreeMap::new();
    let mut add = |name: &str, value: Vec<u8>| -> Result<(), EngineError> {
        let name: FieldName = name
            .parse()
            .map_err(|error| EngineError::Unfit(format!("{error}")))?;
        fields.insert(name, Secret::from(value));
        Ok(())
    };
    add("type", b"postgresql".to_vec())?;
    add("username", user.into())?;
    add("password", password.expose().to_vec())?;
    add("host", host.into())?;
    add("port", port.to_string().into())?;
    add("database", database.into())?;
    add("uri", uri.as_bytes().to_vec())?;
    if let Some(mode) = mode {
        add("sslmode", mode.into())?;
    }
    Ok((fields, Layout::Fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::EngineKind;
    use mayfly_wire::connection::Tls;

    #[test]
    fn names_are_plain_whatever_the_workload_is_called() {
        let lease = LeaseId::from_random([0xab; 16]);
        let credential: CredentialName = "orders-db".parse().unwrap();
        let of = |workload: &str| name(&credential, workload, &lease);
        assert_eq!(
            of("shop-orders-1"),
            "mf_orders_db_shop_orders_1_ababababababababababababa"
        );
        for workload in [
            "",
            "\"; DROP ROLE x; --",
            "é\u{202e}\0",
            &"x".repeat(10_000),
        ] {
            let name = of(workload);
            assert!(name.len() <= 63, "{name}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
        let long: CredentialName = "x".repeat(63).parse().unwrap();
        assert_eq!(name(&long, &"y".repeat(63), &lease).len(), 63);
    }

    #[test]
    fn uris_are_encoded() {
        let config = ConnectionConfig {
            name: "shop".parse().unwrap(),
            engine: EngineKind::Postgres,
            host: "/run/pg".to_owned(),
            port: None,
            username: "root".to_owned(),
            database: Some("sh#p".to_owned()),
            tls: Tls::Off,
            ca_pem: None,
            public_host: Some("::1".to_owned()),
            max_connections: None,
            scram_iterations: None,
        };
        let shown = |config: &ConnectionConfig| {
            let password = Secret::from("a/b@c%".to_owned());
            let (fields, _) = fields(config, "mf_a", &password).unwrap();
            let of = |name: &str| {
                fields
                    .get(&name.parse().unwrap())
                    .map(|v| v.expose().to_vec())
            };
            let text = |name: &str| of(name).map(|bytes| String::from_utf8(bytes).unwrap());
            (text("uri").unwrap(), text("host").unwrap(), text("sslmode"))
        };
        let (uri, host, mode) = shown(&config);
        assert_eq!(uri, "postgresql://mf_a:a%2Fb%40c%25@[::1]:5432/sh%23p");
        assert_eq!((host.as_str(), mode), ("::1", None));
        let mut remote = ConnectionConfig {
            public_host: None,
            tls: Tls::Verify,
            ..config
        };
        let (uri, _, mode) = shown(&remote);
        assert!(uri.ends_with("@%2Frun%2Fpg:5432/sh%23p"), "{uri}");
        assert_eq!(mode, None, "there is no TLS on a socket");
        remote.public_host = Some("db".to_owned());
        let (uri, _, mode) = shown(&remote);
        assert!(
            uri.ends_with("@db:5432/sh%23p?sslmode=verify-full"),
            "{uri}"
        );
        assert_eq!(mode.as_deref(), Some("verify-full"));
    }
}
