//! From a sealed bundle to files: checked first, then opened value by value, each straight into its
//! file, unless an output is made of it.

use super::outputs::{self, NotMade};
use super::{Failure, Session};
use crate::clock::Offset;
use crate::config::Config;
use crate::publish::item::Item;
use crate::publish::{Access, PublishError, Published, Publisher};
use crate::render::Opened;
use mayfly_wire::CredentialName;
use mayfly_wire::sealed::Opener;
use mayfly_wire::session::{Bundle, Layout, MAX_BUNDLE, MAX_VALUE, MAX_WANTED, VALUE_FIELD};
use std::hint::black_box;
use std::time::Instant;

/// What AES-GCM adds to a value.
const TAG: usize = 16;

/// Why a bundle was not published.
#[derive(Debug, thiserror::Error)]
pub enum NotPublished {
    /// It is not one that the broker would send us. The session is over.
    #[error(transparent)]
    Session(#[from] Failure),
    /// The files could not be written. It can be tried again.
    #[error(transparent)]
    Files(#[from] PublishError),
}

/// Checks a bundle against the contract, before anything in it is opened.
///
/// # Errors
/// [`Failure::Protocol`].
pub fn check(bundle: &Bundle, after: u64, want: Option<&[CredentialName]>) -> Result<(), Failure> {
    let found = |what: String| Err(Failure::protocol("a bundle of the session protocol", what));
    if bundle.generation <= after {
        return found(format!("generation {} after {after}", bundle.generation));
    }
    if bundle.credentials.len() > MAX_WANTED {
        return found(format!("{} credentials", bundle.credentials.len()));
    }
    if !bundle.credentials.is_sorted_by(|a, b| a.name < b.name) {
        return found("credentials out of order".to_owned());
    }
    let mut total = 0_usize;
    for credential in &bundle.credentials {
        let name = &credential.name;
        if want.is_some_and(|want| !want.contains(name)) {
            return found(format!("{name}, which was not asked for"));
        }
        let fields = &credential.fields;
        if fields.is_empty() || !fields.is_sorted_by(|a, b| a.name < b.name) {
            return found(format!("fields of {name} that are none or out of order"));
        }
        let one_value = matches!(fields.as_slice(), [one] if one.name.as_str() == VALUE_FIELD);
        if credential.layout == Layout::Value && !one_value {
            return found(format!("{name}, laid out as a value without being one"));
        }
        for field in fields {
            let length = field.sealed.0.len();
            total = total.saturating_add(length.saturating_sub(TAG));
            if length > MAX_VALUE + TAG || total > MAX_BUNDLE {
                return found(format!("{name}, which makes it too large"));
            }
        }
    }
    Ok(())
}

/// What [`publish`] did.
pub struct Outcome {
    /// With the files.
    pub published: Published,
    /// What could not be made. What of it was published before still is.
    pub not_made: NotMade,
}

/// Publishes a bundle that was checked, in the forms that the configuration says.
///
/// # Errors
/// [`NotPublished`]; the last generation then stands as before.
pub fn publish(
    session: &Session,
    bundle: &Bundle,
    plan: Plan<'_>,
    publisher: &mut Publisher,
    now: Instant,
) -> Result<Outcome, NotPublished> {
    let published = open_into(session, bundle, plan, publisher, now);
    scrub_stack();
    published
}

/// In which form things are published.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Mode and owner of what it says nothing about.
    pub access: Access,
    /// What time it is where the ends come from.
    pub broker: Offset,
}

#[inline(never)]
fn open_into(
    session: &Session,
    bundle: &Bundle,
    plan: Plan<'_>,
    publisher: &mut Publisher,
    now: Instant,
) -> Result<Outcome, NotPublished> {
    let does_not_open = |error: mayfly_wire::sealed::SealError| {
        Failure::protocol("a bundle that is sealed to this session", error.to_string())
    };
    let opener = Opener::new(
        &session.key,
        &bundle.encapsulated,
        &session.workload,
        bundle.generation,
    );
    let mut opener = opener.map_err(does_not_open)?;
    let used = plan.config.used();
    let mut not_made = NotMade::default();
    let published = publisher.publish(now, |draft| -> Result<(), NotPublished> {
        let (mut opened, mut taken) = (Vec::new(), Vec::new());
        for credential in &bundle.credentials {
            let name = &credential.name;
            let item = Item::from(name);
            let expires_at = plan.broker.to_uptime(credential.expires_at);
            let kept = used.contains(name);
            let shown =
                !kept && !plan.config.only_outputs && is_free(plan.config, &item, &mut taken);
            if shown {
                draft.expect(&item, plan.config.rest_end(expires_at));
            }
            let mut fields = Vec::new();
            for field in &credential.fields {
                let value = opener.open(&credential.lease, &field.name, &field.sealed);
                let value = value.map_err(does_not_open)?;
                if shown {
                    let name = match credential.layout {
                        Layout::Value => None,
                        Layout::Fields => Some(&field.name),
                    };
                    draft.put(&item, name, plan.access, &value);
                } else if kept {
                    fields.push((field.name.clone(), value));
                }
            }
            if kept {
                opened.push(Opened {
                    name: name.clone(),
                    one_value: credential.layout == Layout::Value,
                    expires_at,
                    fields,
                });
            }
        }
        for missing in &bundle.missing {
            let item = Item::from(&missing.name);
            // What may come back is good until its end, and what is refused for good is gone. Those
            // that outputs are made of, these keep.
            if missing.refusal.code.is_transient()
                && !used.contains(&missing.name)
                && !plan.config.only_outputs
                && !plan
                    .config
                    .outputs
                    .iter()
                    .any(|output| output.item.collides(&item))
            {
                draft.keep(&item);
            }
        }
        not_made = outputs::put(plan.config, &opened, &bundle.missing, draft);
        not_made.failed.append(&mut taken);
        Ok(())
    })?;
    Ok(Outcome {
        published,
        not_made,
    })
}

/// Whether a credential's own name is not taken by an output of other credentials.
fn is_free(config: &Config, item: &Item, failed: &mut Vec<(Item, String)>) -> bool {
    let mut outputs = config.outputs.iter();
    let taken = outputs.find(|output| output.item.collides(item));
    if let Some(output) = taken {
        failed.push((
            item.clone(),
            format!("its name is taken by the output {}", output.item),
        ));
    }
    taken.is_none()
}

/// Overwrites the part of the stack that was in use below the caller. The heap zeroes what is freed;
/// copies that ciphers and comparisons left in their stack frames have no other end.
#[inline(never)]
fn scrub_stack() {
    black_box(&mut [0_u8; 64 * 1024]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::LeaseId;
    use mayfly_wire::bytes::Base64;
    use mayfly_wire::session::{SealedCredential, SealedField};

    fn credential(name: &str, layout: Layout, fields: &[(&str, usize)]) -> SealedCredential {
        SealedCredential {
            name: name.parse().unwrap(),
            lease: LeaseId::from_random([1; 16]),
            expires_at: 1,
            renews_at: 0,
            layout,
            fields: fields
                .iter()
                .map(|(name, length)| SealedField {
                    name: name.parse().unwrap(),
                    sealed: Base64(vec![0; *length]),
                })
                .collect(),
        }
    }

    fn checked(credentials: Vec<SealedCredential>, generation: u64) -> Result<(), String> {
        let bundle = Bundle {
            generation,
            now: 0,
            encapsulated: Base64::default(),
            credentials,
            missing: vec![],
        };
        let want: Vec<_> = ["a", "b"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        check(&bundle, 3, Some(&want)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_contract_is_checked_before_anything_is_opened() {
        use Layout::{Fields, Value};
        let value = |name| credential(name, Value, &[("value", 20)]);
        checked(
            vec![value("a"), credential("b", Fields, &[("x", 9), ("y", 9)])],
            4,
        )
        .unwrap();
        checked(vec![], 4).unwrap();
        for (credentials, generation, part) in [
            (vec![value("a")], 3, "generation 3 after 3"),
            (vec![value("b"), value("a")], 4, "out of order"),
            (vec![value("a"), value("a")], 4, "out of order"),
            (vec![value("c")], 4, "not asked for"),
            (vec![credential("a", Fields, &[])], 4, "none"),
            (
                vec![credential("a", Fields, &[("y", 9), ("x", 9)])],
                4,
                "out of order",
            ),
            (
                vec![credential("a", Value, &[("x", 9)])],
                4,
                "laid out as a value",
            ),
            (
                vec![credential("a", Value, &[("value", MAX_VALUE + 17)])],
                4,
                "too large",
            ),
        ] {
            let said = checked(credentials, generation).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
        let fields: Vec<_> = (0..9).map(|n| format!("f{n}")).collect();
        let large: Vec<_> = fields
            .iter()
            .map(|name| (name.as_str(), MAX_VALUE + 16))
            .collect();
        assert!(
            checked(vec![credential("a", Fields, &large)], 4)
                .unwrap_err()
                .contains("too large")
        );
    }
}
