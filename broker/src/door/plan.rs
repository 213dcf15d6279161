//! What an `apply` would change: a pure comparison of two configurations.

use crate::policy::Judge;
use mayfly_wire::admin::{
    Change, ChangeAction, CredentialConfig, Desired, EngineConfig, GRACE_SECONDS,
};
use mayfly_wire::{ConnectionConfig, ConnectionName, CredentialName};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

/// One side of the comparison.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub desired: &'a Desired,
    pub judge: &'a Judge,
}

/// Every change from `old` to `new`: connections by name, credentials by name, then policies by id, then the hardened rules.
pub fn changes(
    old: Side<'_>,
    new: Side<'_>,
    leases: &BTreeMap<CredentialName, u64>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let by_name = |desired: &Desired| -> BTreeMap<ConnectionName, ConnectionConfig> {
        let connections = desired.connections.iter().cloned();
        connections
            .map(|config| (config.name.clone(), config))
            .collect()
    };
    let users_of = |name: &ConnectionName| {
        let credentials = old.desired.credentials.iter();
        let users = credentials.filter(|config| config.engine.connection() == Some(name));
        let count = users.map(|config| leases.get(&config.name).copied().unwrap_or(0));
        count.sum()
    };
    compare(
        "connection",
        &by_name(old.desired),
        &by_name(new.desired),
        connection_settings,
        users_of,
        &mut changes,
    );
    let by_name = |desired: &Desired| -> BTreeMap<CredentialName, CredentialConfig> {
        let credentials = desired.credentials.iter().cloned();
        credentials
            .map(|config| (config.name.clone(), config))
            .collect()
    };
    let (before, after) = (by_name(old.desired), by_name(new.desired));
    let first = changes.len();
    compare(
        "credential",
        &before,
        &after,
        settings,
        |name| leases.get(name).copied().unwrap_or(0),
        &mut changes,
    );
    let kept: BTreeSet<_> = new.desired.credentials.iter().flat_map(fixed).collect();
    for change in changes.iter_mut().skip(first) {
        let Some(was) = before.values().find(|it| it.name.as_str() == change.name) else {
            continue;
        };
        let now = after.get(&was.name);
        if let Some(now) = now.filter(|now| change.leases > 0 && is_remade(was, now)) {
            change.details.push(made_anew(was, now));
        }
        let left = fixed(was).into_iter().filter(|user| !kept.contains(user));
        change.details.extend(left.map(left_behind));
    }

    let all = leases.values().sum();
    let touched = |scope: Option<&str>| match scope {
        Some(only) => {
            let named = leases.iter().find(|(name, _)| name.as_str() == only);
            named.map_or(0, |(_, count)| *count)
        }
        None => all,
    };
    let (before, after) = (old.judge.given(), new.judge.given());
    for id in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (action, details, scope) = match (before.get(id), after.get(id)) {
            (None, Some(now)) => (ChangeAction::Create, Vec::new(), now.credential.as_deref()),
            (Some(was), None) => (ChangeAction::Delete, Vec::new(), was.credential.as_deref()),
            (Some(was), Some(now)) if was.text != now.text => {
                let same = was.credential == now.credential;
                let scope = now.credential.as_deref().filter(|_| same);
                (ChangeAction::Update, vec!["its text".to_owned()], scope)
            }
            _ => continue,
        };
        changes.push(Change {
            action,
            kind: "policy".to_owned(),
            name: (*id).clone(),
            details,
            leases: touched(scope),
            holders: Vec::new(),
        });
    }
    if old.desired.hardened != new.desired.hardened {
        let (was, now) = (old.desired.hardened, new.desired.hardened);
        changes.push(Change {
            action: ChangeAction::Update,
            kind: "policy".to_owned(),
            name: "hardened".to_owned(),
            details: vec![format!("hardened: {was} → {now}")],
            leases: all,
            holders: Vec::new(),
        });
    }
    changes
}

/// Whether leases must be made anew: the engine or its settings changed, and what the lease holds is its
/// own. A stored value at another path takes the old one's place in the same lease.
pub fn is_remade(was: &CredentialConfig, now: &CredentialConfig) -> bool {
    let is_kv = |config: &CredentialConfig| matches!(config.engine, EngineConfig::Kv { .. });
    was.engine != now.engine && !(is_kv(was) && is_kv(now))
}

/// What becomes of the leases then.
fn made_anew(was: &CredentialConfig, now: &CredentialConfig) -> String {
    let told = "each lease is made anew".to_owned();
    if was.engine.connection().is_none() {
        return told;
    }
    let grace = duration(now.grace_seconds.unwrap_or(GRACE_SECONDS));
    format!("{told}, and its account is good until its holder has the new one, for {grace} at most")
}

/// The `static` users of a credential, each with its server.
fn fixed(config: &CredentialConfig) -> Vec<(&ConnectionName, &String)> {
    match &config.engine {
        EngineConfig::Postgres(settings) | EngineConfig::Mysql(settings) => {
            let users = settings.fixed.iter();
            users.map(|user| (&settings.connection, user)).collect()
        }
        _ => Vec::new(),
    }
}

/// What becomes of a `static` user that no credential has any more. It is not the broker's to remove.
fn left_behind((connection, user): (&ConnectionName, &String)) -> String {
    format!(
        "the user {user} of {connection} keeps its last password, which its holders know and nobody \
         rotates any more: change it there"
    )
}

/// The settings of a credential, in the order in which they are shown.
fn settings(config: &CredentialConfig) -> Vec<(String, String)> {
    let mut settings = vec![("ttl".to_owned(), duration(config.ttl_seconds))];
    let more = [
        ("max_ttl", config.max_ttl_seconds),
        ("grace", config.grace_seconds),
    ];
    for (name, seconds) in more {
        if let Some(seconds) = seconds {
            settings.push((name.to_owned(), duration(seconds)));
        }
    }
    settings.push(("engine".to_owned(), config.engine.kind().to_string()));
    // Of the engine: `{"kv": {"path": "orders/db"}}`.
    if let Ok(Value::Object(tagged)) = serde_json::to_value(&config.engine) {
        for (name, value) in tagged.into_iter().flat_map(|(_, settings)| match settings {
            Value::Object(settings) => settings,
            _ => serde_json::Map::new(),
        }) {
            flatten(name, value, &mut settings);
        }
    }
    settings
}

/// One line for each value; those of a map by their keys.
fn flatten(name: String, value: Value, settings: &mut Vec<(String, String)>) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(format!("{name}.{key}"), value, settings);
            }
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(text).collect();
            settings.push((name, items.join(", ")));
        }
        other => settings.push((name, text(&other))),
    }
}

fn connection_settings(config: &ConnectionConfig) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    if let Ok(Value::Object(map)) = serde_json::to_value(config) {
        for (name, value) in map.into_iter().filter(|(name, _)| name != "name") {
            flatten(name, value, &mut settings);
        }
    }
    settings
}

/// Adds what differs between two sets of one kind, by name.
fn compare<N: Ord + Display, C: PartialEq>(
    kind: &str,
    before: &BTreeMap<N, C>,
    after: &BTreeMap<N, C>,
    settings: impl Fn(&C) -> Vec<(String, String)>,
    leases: impl Fn(&N) -> u64,
    changes: &mut Vec<Change>,
) {
    for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (action, details) = match (before.get(name), after.get(name)) {
            (None, Some(now)) => (ChangeAction::Create, described(settings(now))),
            (Some(_), None) => (ChangeAction::Delete, Vec::new()),
            (Some(was), Some(now)) if was != now => {
                let details = differences(&settings(was), &settings(now));
                (ChangeAction::Update, details)
            }
            _ => continue,
        };
        changes.push(Change {
            action,
            kind: kind.to_owned(),
            name: name.to_string(),
            details,
            leases: leases(name),
            holders: Vec::new(),
        });
    }
}

fn described(settings: Vec<(String, String)>) -> Vec<String> {
    let settings = settings.into_iter();
    settings
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

fn differences(was: &[(String, String)], now: &[(String, String)]) -> Vec<String> {
    let find = |list: &[(String, String)], name: &str| {
        let found = list.iter().find(|(known, _)| known == name);
        found.map_or_else(|| "(none)".to_owned(), |(_, value)| value.clone())
    };
    let mut names: Vec<&String> = now.iter().map(|(name, _)| name).collect();
    for (name, _) in was {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let pairs = names
        .into_iter()
        .map(|name| (name, find(was, name), find(now, name)));
    let changed = pairs.filter(|(_, was, now)| was != now);
    changed
        .map(|(name, was, now)| format!("{name}: {was} → {now}"))
        .collect()
}

/// `90s`, `15m`, `2h`, `1d`.
fn duration(seconds: u64) -> String {
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds >= length && seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::admin::{EngineConfig, JwtAlgorithm, PolicyFile};

    fn kv(name: &str, ttl_seconds: u64, path: &str) -> CredentialConfig {
        CredentialConfig {
            name: name.parse().unwrap(),
            ttl_seconds,
            max_ttl_seconds: None,
            grace_seconds: None,
            engine: EngineConfig::Kv {
                path: path.parse().unwrap(),
            },
        }
    }

    fn permit(id: &str, resource: &str) -> String {
        format!(
            "@id(\"{id}\") permit (principal is Mayfly::Workload, action == \
             Mayfly::Action::\"issue\", resource{resource});"
        )
    }

    fn desired(credentials: Vec<CredentialConfig>, policies: &str) -> Desired {
        let file = PolicyFile {
            file: "p.cedar".into(),
            text: policies.into(),
        };
        Desired {
            connections: Vec::new(),
            credentials,
            policies: vec![file],
            hardened: false,
        }
    }

    fn compare(old: &Desired, new: &Desired) -> Vec<String> {
        let (was, now) = (Judge::new(old), Judge::new(new));
        let (Ok(was), Ok(now)) = (&was, &now) else {
            panic!("a policy is bad")
        };
        let leases = BTreeMap::from([("a".parse().unwrap(), 3), ("b".parse().unwrap(), 4)]);
        let (old, new) = (
            Side {
                desired: old,
                judge: was,
            },
            Side {
                desired: new,
                judge: now,
            },
        );
        let changes = changes(old, new, &leases).into_iter();
        changes
            .map(|c| {
                let details = c.details.join("; ");
                format!(
                    "{:?} {} {} [{details}] {}",
                    c.action, c.kind, c.name, c.leases
                )
            })
            .collect()
    }

    #[test]
    fn nothing_changes_nothing() {
        let same = desired(vec![kv("a", 60, "x")], &permit("p", ""));
        assert!(compare(&same, &same).is_empty());
    }

    #[test]
    fn a_user_that_no_credential_has_any_more_is_told() {
        let fixed = |name: &str, at: &str, users: &[&str]| CredentialConfig {
            engine: EngineConfig::Postgres(
                serde_json::from_value(serde_json::json!({"connection": at, "static": users}))
                    .unwrap(),
            ),
            ..kv(name, 60, "x")
        };
        let old = desired(
            vec![
                fixed("a", "shop", &["one", "two"]),
                fixed("b", "shop", &["three"]),
                fixed("c", "shop", &["four"]),
            ],
            "",
        );
        // One goes with its credential, one from its credential, one to another credential, and one
        // stays at a server that the credential leaves.
        let new = desired(
            vec![
                fixed("a", "shop", &["one", "three"]),
                fixed("c", "other", &["four"]),
            ],
            "",
        );
        let left = |user: &str| {
            format!(
                "the user {user} of shop keeps its last password, which its holders know and nobody \
                 rotates any more: change it there"
            )
        };
        let changes = compare(&old, &new);
        let tells = |of: &str, user: &str| {
            let change = changes.iter().find(|text| text.contains(of)).unwrap();
            change.contains(&left(user))
        };
        assert!(tells("credential a", "two"), "{changes:#?}");
        assert!(tells("credential c", "four"), "{changes:#?}");
        let told = changes
            .iter()
            .filter(|text| text.contains("keeps its last"));
        assert_eq!(told.count(), 2, "{changes:#?}");
        let gone = compare(&old, &desired(Vec::new(), ""));
        assert!(
            gone.iter().all(|text| text.contains("keeps its last")),
            "{gone:#?}"
        );
        assert!(compare(&new, &new).is_empty());
    }

    #[test]
    fn every_kind_of_change_is_told_with_the_leases_it_touches() {
        let old = desired(
            vec![kv("a", 900, "x"), kv("b", 60, "y")],
            &format!(
                "{}\n{}",
                permit("p", ""),
                permit("q", " == Mayfly::Credential::\"a\"")
            ),
        );
        let jwt = CredentialConfig {
            name: "b".parse().unwrap(),
            ttl_seconds: 90,
            max_ttl_seconds: None,
            grace_seconds: None,
            engine: EngineConfig::Jwt {
                algorithm: JwtAlgorithm::EdDsa,
                audience: vec!["api".into()],
                subject: "s".into(),
                claims: BTreeMap::new(),
            },
        };
        let new = Desired {
            hardened: true,
            ..desired(
                vec![kv("a", 300, "x"), jwt, kv("c", 86_400, "z")],
                &format!(
                    "{} {}",
                    permit("q", " == Mayfly::Credential::\"a\"").replace(");", ") when { true };"),
                    permit("r", " == Mayfly::Credential::\"c\"")
                ),
            )
        };
        assert_eq!(
            compare(&old, &new),
            [
                "Update credential a [ttl: 15m → 5m] 3",
                "Update credential b [ttl: 1m → 90s; engine: kv → jwt; algorithm: (none) → EdDSA; \
                 audience: (none) → api; subject: (none) → s; path: y → (none); each lease is \
                 made anew] 4",
                "Create credential c [ttl: 1d; engine: kv; path: z] 0",
                "Delete policy p [] 7",
                "Update policy q [its text] 3",
                "Create policy r [] 0",
                "Update policy hardened [hardened: false → true] 7",
            ]
        );
        assert_eq!(compare(&new, &old).len(), 7);
    }
}
