//! The outputs of the configuration, made of opened credentials.

use crate::config::{Config, Output};
use crate::publish::Draft;
use crate::publish::item::Item;
use crate::render::{Format, Opened, Refused, render};
use mayfly_wire::CredentialName;
use mayfly_wire::session::Missing;

/// Outputs that were not made, and why.
#[derive(Debug, Default)]
pub struct NotMade {
    /// What they are made of is here, and they cannot be made of it.
    pub failed: Vec<(Item, String)>,
    /// What they are made of is not here, and nobody said why: it was not asked for by name.
    pub absent: Vec<(Item, String)>,
}

/// Puts every output into the draft. One that cannot be made keeps what was published of it, as long
/// as that lasts, and does not keep the others.
pub fn put(
    config: &Config,
    opened: &[Opened],
    missing: &[Missing],
    draft: &mut Draft<'_>,
) -> NotMade {
    let mut not_made = NotMade::default();
    for output in &config.outputs {
        let names = output.credentials.iter();
        let found: Option<Vec<&Opened>> = names
            .map(|name| opened.iter().find(|opened| opened.name == *name))
            .collect();
        let Some(credentials) = found else {
            // Only what may come back keeps its file.
            let here = |name: &CredentialName| {
                opened.iter().any(|opened| opened.name == *name)
                    || missing.iter().any(|missing| missing.name == *name)
            };
            if let Some(name) = output.credentials.iter().find(|name| !here(name)) {
                let why = format!("{name} is not granted to this workload");
                not_made.absent.push((output.item.clone(), why));
            }
            if may_come_back(output, opened, missing) {
                draft.keep(&output.item);
            }
            continue;
        };
        if let Err(refused) = put_one(config, output, &credentials, draft) {
            draft.keep(&output.item);
            let why = refused.to_string();
            not_made.failed.push((output.item.clone(), why));
        }
    }
    not_made
}

/// Whether all that an output lacks is missing for a reason that can pass by itself.
fn may_come_back(output: &Output, opened: &[Opened], missing: &[Missing]) -> bool {
    let mut names = output.credentials.iter();
    names.all(|name| {
        let here = opened.iter().any(|opened| opened.name == *name);
        let mut missing = missing.iter().filter(|missing| missing.name == *name);
        here || missing.any(|missing| missing.refusal.code.is_transient())
    })
}

fn put_one(
    config: &Config,
    output: &Output,
    credentials: &[&Opened],
    draft: &mut Draft<'_>,
) -> Result<(), Refused> {
    let (item, access) = (&output.item, output.access);
    let ends = credentials.iter().map(|opened| opened.expires_at);
    let end = output.end(ends.min().unwrap_or(0));
    let content = match (output.format, credentials) {
        (Format::Fields, [opened]) => {
            draft.expect(item, end);
            for (field, value) in &opened.fields {
                draft.put(item, Some(field), access, value);
            }
            return Ok(());
        }
        (Format::Template, _) => config.templates.render(item.as_str(), credentials)?,
        (format, [opened]) => render(format, opened, &output.choices)?,
        // The configuration gives no other format several credentials.
        _ => return Err(Refused::Template("expected one credential".to_owned())),
    };
    draft.expect(item, end);
    draft.put(item, None, access, &content);
    Ok(())
}
