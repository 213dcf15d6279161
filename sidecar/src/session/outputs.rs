//! The outputs of the configuration, made of opened credentials.

use crate::config::{Config, Output};
use crate::publish::item::Item;
use crate::publish::{Draft, PublishError};
use crate::render::{Format, Opened, Refused, render};
use mayfly_wire::session::Missing;

/// Puts every output into the draft. One that cannot be made keeps what was published of it, as long
/// as that lasts, and does not keep the others; it is returned by name, with the reason.
///
/// # Errors
/// [`PublishError`], if files cannot be written.
pub fn put(
    config: &Config,
    opened: &[Opened],
    missing: &[Missing],
    draft: &mut Draft<'_>,
) -> Result<Vec<(Item, String)>, PublishError> {
    let mut failed = Vec::new();
    for output in &config.outputs {
        let names = output.credentials.iter();
        let found: Option<Vec<&Opened>> = names
            .map(|name| opened.iter().find(|opened| opened.name == *name))
            .collect();
        let Some(credentials) = found else {
            // That it is missing is told as such. Only what may come back keeps its file.
            if may_come_back(output, opened, missing) {
                draft.keep(&output.item)?;
            }
            continue;
        };
        if let Err(refused) = put_one(config, output, &credentials, draft)? {
            draft.keep(&output.item)?;
            failed.push((output.item.clone(), refused.to_string()));
        }
    }
    Ok(failed)
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
) -> Result<Result<(), Refused>, PublishError> {
    let (item, access) = (&output.item, output.access);
    let ends = credentials.iter().map(|opened| opened.expires_at);
    let end = output.end(ends.min().unwrap_or(0));
    let rendered = match (output.format, credentials) {
        (Format::Fields, [opened]) => {
            draft.expect(item, end);
            for (field, value) in &opened.fields {
                draft.put(item, Some(field), access, value)?;
            }
            return Ok(Ok(()));
        }
        (Format::Template, _) => config.templates.render(item.as_str(), credentials),
        (format, [opened]) => render(format, opened, &output.choices),
        // The configuration gives no other format several credentials.
        _ => Err(Refused::Template("expected one credential".to_owned())),
    };
    Ok(match rendered {
        Ok(content) => {
            draft.expect(item, end);
            draft.put(item, None, access, &content)?;
            Ok(())
        }
        Err(refused) => Err(refused),
    })
}
