//! One audit record as one line for people. `--output json` has all of it.

use crate::command::leases::short;
use crate::output::{clean, count};
use crate::when;
use mayfly_wire::audit::{Event, Record, Who};
use mayfly_wire::link::Overdue;
use mayfly_wire::{Detail, WorkloadKey};

/// A line of the audit file, told in words; as it is if it is no record that we know.
pub fn line(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<Record>(line) else {
        return clean(line);
    };
    let (word, rest) = told(&record.event);
    clean(&format!(
        "{:>6}  {}  {word:<12}  {rest}",
        record.seq, record.time
    ))
}

fn told(event: &Event) -> (&'static str, String) {
    match event {
        Event::Started { version } => ("started", format!("broker {version}")),
        Event::Repaired {
            dropped_bytes,
            detail,
        } => (
            "repaired",
            format!("{} dropped: {detail}", count(*dropped_bytes, "byte")),
        ),
        Event::Issued {
            who,
            credential,
            lease,
            policies,
            again,
            ..
        } => (
            if *again { "issued again" } else { "issued" },
            format!(
                "{credential} to {}, {}, by {}",
                name(who),
                short(lease.as_str()),
                by(policies)
            ),
        ),
        Event::Renewed {
            workload,
            credential,
            lease,
            expires_at,
        } => (
            "renewed",
            format!(
                "{credential} of {}, {}, ends {}",
                workload.id(),
                short(lease.as_str()),
                when::relative(*expires_at, when::now())
            ),
        ),
        Event::Denied {
            who,
            credential,
            policies,
        } => (
            "denied",
            format!(
                "{} to {}, by {}",
                credential
                    .as_ref()
                    .map_or("everything", |name| name.as_str()),
                name(who),
                by(policies)
            ),
        ),
        Event::Failed {
            who,
            credential,
            reason,
        } => (
            "failed",
            format!("{credential} for {}: {reason}", name(who)),
        ),
        Event::Acknowledged {
            workload,
            generation,
        } => (
            "acknowledged",
            format!("generation {generation} by {}", workload.id()),
        ),
        Event::PublishFailed { who, failure } if failure.code.is_about_an_end() => (
            "ran out",
            format!(
                "{}: {} ({})",
                name(who),
                failure.code.phrase(),
                failure.detail
            ),
        ),
        Event::Overdue { node, report } => (
            "ran out",
            format!(
                "{} in volume {} of node {node}{}: {}",
                items(report),
                report.volume,
                users(report),
                report.act.phrase()
            ),
        ),
        Event::PublishFailed { who, failure } => (
            "unpublished",
            format!(
                "{} cannot publish generation {}: {} ({})",
                name(who),
                failure.generation,
                failure.code.phrase(),
                failure.detail
            ),
        ),
        Event::NodeRefused { node, refusal } => (
            "refused",
            format!(
                "{} by node {node}: {} ({}){}",
                refusal
                    .workload
                    .as_ref()
                    .map_or_else(|| "a caller".to_owned(), WorkloadKey::id),
                refusal.reason,
                refusal.detail,
                if refusal.count > 1 {
                    format!(", {} times", refusal.count)
                } else {
                    String::new()
                }
            ),
        ),
        Event::Died { workload } => ("died", workload.id()),
        Event::Ended {
            workload,
            credential,
            lease,
            reason,
        } => (
            "ended",
            format!(
                "{credential} of {}, {}: {reason}",
                workload.id(),
                short(lease.as_str())
            ),
        ),
        Event::NotEnded {
            workload,
            credential,
            lease,
            reason,
            problem,
        } => (
            "not ended",
            format!(
                "{credential} of {}, {}, {reason}: {problem}",
                workload.id(),
                short(lease.as_str())
            ),
        ),
        Event::Operator {
            operator,
            action,
            resource,
            allowed,
            version,
            ..
        } => (
            "operator",
            format!(
                "{operator} {action} {resource}{}{}",
                version.map_or_else(String::new, |version| format!(", version {version}")),
                if *allowed { "" } else { ": REFUSED" }
            ),
        ),
        Event::Pushed {
            path,
            version,
            sessions,
        } => (
            "pushed",
            format!(
                "{path} version {version} to {}",
                count(*sessions, "session")
            ),
        ),
    }
}

fn name(who: &Who) -> String {
    format!("{} ({})", who.name, who.workload.id())
}

fn items(report: &Overdue) -> String {
    let more = report.count.saturating_sub(report.items.len() as u64);
    let named = report.items.iter().map(Detail::as_str);
    let mut named: Vec<_> = named.map(str::to_owned).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

fn users(report: &Overdue) -> String {
    let ids: Vec<_> = report.workloads.iter().map(WorkloadKey::id).collect();
    match ids.is_empty() {
        true => String::new(),
        false => format!(", which {} has", ids.join(", ")),
    }
}

fn by(policies: &[String]) -> String {
    if policies.is_empty() {
        "no policy".to_owned()
    } else {
        policies.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::audit::to_line;

    #[test]
    fn a_record_is_one_readable_line() {
        let event = Event::Denied {
            who: Who {
                workload: WorkloadKey {
                    boot_id: "b".into(),
                    cgroup_id: 1,
                    pidns_id: 2,
                },
                name: "orders\u{1b}[2J".into(),
                node: "local".into(),
                assurance: "kernel".into(),
                lacking: vec![],
            },
            credential: Some("billing-key".parse().unwrap()),
            policies: vec![],
        };
        let record = Record {
            seq: 12,
            time: "2026-01-01T00:00:00.000Z".into(),
            prev: String::new(),
            mac: String::new(),
            event,
        };
        let text = line(&to_line(&record).unwrap().0);
        assert!(
            text.starts_with("    12  2026-01-01T00:00:00.000Z  denied  "),
            "{text}"
        );
        assert!(
            text.contains("billing-key to orders") && text.ends_with("by no policy"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
        assert_eq!(line("not a record"), "not a record");
    }
}
