//! `status`, `workloads` and `explain`: what the broker knows.

use crate::client::{Client, encode};
use crate::failure::Failure;
use crate::output::{List, Out, clean, count};
use crate::when;
use mayfly_wire::CredentialName;
use mayfly_wire::admin::{Explanation, Status, WorkloadInfo};
use std::fmt::Write as _;

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// Its name, its id, or the beginning of its id (see `mayfly workloads`)
    #[arg(value_name = "WORKLOAD")]
    workload: String,
    /// The credential's name
    #[arg(value_name = "CREDENTIAL")]
    credential: CredentialName,
}

/// `mayfly status`
pub async fn status(client: &Client, out: Out) -> Result<(), Failure> {
    let status: Status = client.get("/v1/status").await?;
    out.show(&status, status_text)
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12}{}", clean(&value));
    };
    line(
        "Broker",
        format!(
            "{}, pid {}, up {}, {}",
            status.version,
            status.pid,
            when::span(status.uptime_seconds),
            if status.sealed { "SEALED" } else { "unsealed" }
        ),
    );
    line("State", status.state_dir.clone());
    let none = || "none: no embedded node".to_owned();
    line(
        "Workloads",
        status.workload_socket.clone().unwrap_or_else(none),
    );
    line("Issuer", status.issuer.clone());
    line(
        "Configured",
        format!(
            "{}, {} beside the baseline",
            count(status.credentials, "credential"),
            policies(status.policies)
        ),
    );
    line(
        "Live",
        format!(
            "{}, {}{}",
            count(status.leases, "lease"),
            count(status.sessions, "session"),
            match status.stuck {
                0 => String::new(),
                stuck => format!("; {stuck} stuck: mayfly leases --stuck"),
            }
        ),
    );
    line("Audit", count(status.audit_seq, "record"));
    for node in &status.nodes {
        line(
            "Node",
            format!(
                "{}: heard {} ago, {}",
                node.name,
                when::span(node.last_heartbeat_seconds),
                count(node.workloads, "workload")
            ),
        );
    }
    text
}

/// `1 policy`, `2 policies`.
pub fn policies(number: u64) -> String {
    let ending = if number == 1 { "y" } else { "ies" };
    format!("{number} polic{ending}")
}

/// `mayfly workloads`
pub async fn workloads(client: &Client, out: Out) -> Result<(), Failure> {
    let empty = "no workloads: no container has asked for anything yet";
    let mut list = List::new(out, &WORKLOADS, empty);
    let each = client.each("/v1/workloads", |workload: WorkloadInfo| {
        list.add(&workload, |workload| (row(workload), problem(workload)))
    });
    each.await?;
    list.end()
}

const WORKLOADS: [&str; 8] = [
    "NAME",
    "ID",
    "ASSURANCE",
    "ENGINE",
    "NODE",
    "SESSIONS",
    "LEASES",
    "GENERATION",
];

fn row(workload: &WorkloadInfo) -> Vec<String> {
    let evidence = &workload.evidence;
    let engine = evidence.container.as_ref();
    let none = || "-".to_owned();
    vec![
        workload.name.clone(),
        workload.id.clone(),
        evidence.assurance.as_str().to_owned(),
        engine.map_or_else(none, |container| container.engine.clone()),
        evidence.node.clone(),
        workload.sessions.to_string(),
        workload.leases.to_string(),
        (workload.acknowledged).map_or_else(none, |generation| generation.to_string()),
    ]
}

/// Why it has no files, if it said so.
fn problem(workload: &WorkloadInfo) -> Option<String> {
    let failure = workload.publish_failure.as_ref()?;
    Some(format!(
        "{} cannot publish: {} ({})",
        clean(&workload.name),
        failure.code.phrase(),
        clean(failure.detail.as_str())
    ))
}

/// `mayfly explain`
pub async fn explain(client: &Client, out: Out, args: &ExplainArgs) -> Result<(), Failure> {
    let path = format!(
        "/v1/explain?workload={}&credential={}",
        encode(&args.workload),
        encode(args.credential.as_str())
    );
    let explanation: Explanation = client.get(&path).await?;
    out.show(&explanation, explanation_text)
}

fn explanation_text(explanation: &Explanation) -> String {
    let workload = &explanation.workload;
    let mut text = format!("{}\n", clean(&explanation.summary));
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "Judged on the latest evidence about workload {workload}."
    );
    if explanation.decided_by.is_empty() {
        text.push_str(" What no policy permits is denied.");
    }
    text.push('\n');
    for policy in &explanation.decided_by {
        let _ = write!(text, "\n{} by {}", policy.effect, clean(&policy.id));
        if let Some(reason) = &policy.reason {
            let _ = write!(text, ": {}", clean(reason));
        }
        text.push('\n');
        for line in policy.text.lines() {
            let _ = writeln!(text, "  | {}", clean(line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::admin::ExplainedPolicy;

    #[test]
    fn a_refusal_that_nobody_made_is_explained() {
        let mut explanation = Explanation {
            workload: "a1b2c3d4e5f6".into(),
            name: "orders".into(),
            credential: "billing-key".parse().unwrap(),
            allowed: false,
            decided_by: vec![],
            summary: "orders does not get billing-key: no policy permits it.".into(),
        };
        let text = explanation_text(&explanation);
        assert!(
            text.starts_with("orders does not get billing-key: no"),
            "{text}"
        );
        assert!(text.contains("workload a1b2c3d4e5f6"), "{text}");
        assert!(text.contains("What no policy permits is denied"), "{text}");
        explanation.decided_by.push(ExplainedPolicy {
            id: "baseline.privileged".into(),
            effect: "forbid".into(),
            reason: Some("privileged containers get nothing".into()),
            text: "forbid(\n  principal\n);".into(),
        });
        let text = explanation_text(&explanation);
        assert!(
            text.contains("forbid by baseline.privileged: privileged containers"),
            "{text}"
        );
        assert!(text.contains("  |   principal\n"), "{text}");
    }
}
