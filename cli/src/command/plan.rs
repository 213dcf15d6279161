//! `plan`, `apply` and `policy check`: configuration as a directory of files.

use crate::client::Client;
use crate::config::{self, Places};
use crate::failure::Failure;
use crate::output::{Out, clean, count, note};
use mayfly_wire::Code;
use mayfly_wire::admin::{Apply, Change, ChangeAction, Desired, Plan, PolicyCheck, PolicyFile};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

/// Help of `apply`.
pub const APPLY_HELP: &str = "\
Example:
  mayfly apply -f deploy/demo/config
  mayfly apply -f deploy/demo/config --yes     # in a pipeline

Shows the plan and asks. If someone else changes the configuration meanwhile, nothing is done.

A directory holds .toml files with credentials,

  [credential.orders-db]
  engine = \"kv\"
  path = \"orders/db\"
  ttl = \"15m\"

  [credential.orders-token]
  engine = \"jwt\"
  algorithm = \"EdDSA\"
  audience = [\"https://api.example.com\"]
  subject = \"{name}\"
  ttl = \"5m\"

and for engines with a server `[connection.NAME]` (docs/engines.md); and .cedar files with
policies. `[policy] hardened = true` in one of the .toml files adds the stricter rules. Secret
values never stand in it: see `mayfly kv put` and `mayfly connection set`.";

/// Arguments of `plan`.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// The directory with .toml and .cedar files
    #[arg(short, long, value_name = "DIR")]
    file: PathBuf,
}

/// Arguments of `apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    /// The directory with .toml and .cedar files
    #[arg(short, long, value_name = "DIR")]
    file: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What to do with policies.
#[derive(clap::Subcommand)]
pub enum PolicyCommand {
    /// Have the broker check policies against its schema, and change nothing
    #[command(
        after_help = "Example:\n  mayfly policy check config/\n  mayfly policy check a.cedar"
    )]
    Check {
        /// A directory, or .cedar files
        #[arg(required = true, value_name = "DIR|FILE")]
        paths: Vec<PathBuf>,
    },
}

/// `mayfly plan`
pub async fn plan(client: &Client, out: Out, args: &PlanArgs) -> Result<(), Failure> {
    let (_, _, plan) = look(client, &args.file).await?;
    out.show(&plan, plan_text)
}

/// `mayfly apply`
pub async fn apply(client: &Client, out: Out, args: &ApplyArgs) -> Result<(), Failure> {
    let (desired, places, plan) = look(client, &args.file).await?;
    if plan.changes.is_empty() {
        return out.show(&plan, plan_text);
    }
    if !args.yes {
        if out.is_json() || !io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "there is nobody to ask here: give --yes to apply without asking".into(),
            ));
        }
        out.line(&plan_text(&plan))?;
        if !confirmed()? {
            return Err(Failure::Failed("nothing was changed".into()));
        }
    }
    let done = make_so(client, desired, &places, Some(plan.base)).await?;
    out.show(&done, |done| {
        // Those who were asked have seen the changes already.
        let seen = if args.yes {
            changes_text(done)
        } else {
            String::new()
        };
        format!("{seen}Applied: {}.", summary(done))
    })
}

/// Applies without asking anybody.
pub async fn make_so(
    client: &Client,
    desired: Desired,
    places: &Places,
    base: Option<u64>,
) -> Result<Plan, Failure> {
    let applied = client.post("/v1/apply", &Apply { desired, base }).await;
    applied.map_err(|failure| placed(failure, places))
}

/// What the broker finds wrong with a configuration is a mistake like one that is found here.
fn placed(failure: Failure, places: &Places) -> Failure {
    match failure {
        Failure::Refused(refusal) if refusal.code == Code::BadRequest => {
            Failure::Config(places.tell(&refusal.message))
        }
        other => other,
    }
}

/// `mayfly policy`
pub async fn policy(client: &Client, out: Out, command: PolicyCommand) -> Result<(), Failure> {
    let PolicyCommand::Check { paths } = command;
    let mut policies = Vec::new();
    for path in &paths {
        policies.extend(config::read_policies(path)?);
    }
    let check: PolicyCheck = client.post("/v1/policy/check", &policies).await?;
    if check.problems.is_empty() || out.is_json() {
        out.show(&check, |check| {
            format!("{}, no problems", super::view::policies(check.policies))
        })?;
    }
    problems(&check, Path::new(""))
}

/// Reads the directory, has its policies checked, and compares it with what stands.
async fn look(client: &Client, dir: &Path) -> Result<(Desired, Places, Plan), Failure> {
    let (desired, places) = config::read(dir)?;
    let check: PolicyCheck = check(client, &desired.policies).await?;
    problems(&check, dir)?;
    let plan = client.post("/v1/plan", &desired).await;
    let plan = plan.map_err(|failure| placed(failure, &places))?;
    Ok((desired, places, plan))
}

async fn check(client: &Client, policies: &[PolicyFile]) -> Result<PolicyCheck, Failure> {
    client.post("/v1/policy/check", &policies).await
}

/// Turns problems into a failure of one line each: `FILE:LINE: MESSAGE`.
fn problems(check: &PolicyCheck, dir: &Path) -> Result<(), Failure> {
    if check.problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = check
        .problems
        .iter()
        .map(|problem| {
            let line = problem
                .line
                .map_or_else(String::new, |line| format!(":{line}"));
            let message = problem.message.trim_end();
            format!("{}{line}: {message}", dir.join(&problem.file).display())
        })
        .collect();
    Err(Failure::Config(lines.join("\n")))
}

fn confirmed() -> Result<bool, Failure> {
    note("");
    let mut stderr = io::stderr();
    let _ = stderr.write_all(b"Apply this? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(Failure::doing("cannot read the answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn plan_text(plan: &Plan) -> String {
    if plan.changes.is_empty() {
        return "Nothing to change.".to_owned();
    }
    format!("{}To do: {}.", changes_text(plan), summary(plan))
}

fn changes_text(plan: &Plan) -> String {
    let width = plan.changes.iter().map(|change| change.name.len()).max();
    let width = width.unwrap_or_default().min(40);
    let mut text = String::new();
    for change in &plan.changes {
        let sign = match change.action {
            ChangeAction::Create => '+',
            ChangeAction::Update => '~',
            ChangeAction::Delete => '-',
        };
        let mut details = change.details.clone();
        if change.leases > 0 {
            details.push(touched(change));
        }
        let name = clean(&change.name);
        let line = format!(
            "{sign} {:<10}  {name:<width$}  {}",
            change.kind,
            clean(&details.join(", "))
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Which leases a change concerns.
fn touched(change: &Change) -> String {
    let leases = count(change.leases, "live lease");
    if change.holders.is_empty() {
        return format!("touches {leases}");
    }
    let names = change.holders.join(", ");
    let more = if change.leases > change.holders.len() as u64 {
        format!(", …: mayfly leases --credential {}", change.name)
    } else {
        String::new()
    };
    format!("touches {leases} ({names}{more})")
}

fn summary(plan: &Plan) -> String {
    let of = |action| {
        plan.changes
            .iter()
            .filter(|change| change.action == action)
            .count()
    };
    [
        (of(ChangeAction::Create), "created"),
        (of(ChangeAction::Update), "changed"),
        (of(ChangeAction::Delete), "deleted"),
    ]
    .iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| format!("{number} {what}"))
    .collect::<Vec<_>>()
    .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::admin::PolicyProblem;

    fn change(action: ChangeAction, name: &str, details: &[&str], leases: u64) -> Change {
        Change {
            action,
            kind: "credential".into(),
            name: name.into(),
            details: details.iter().map(ToString::to_string).collect(),
            leases,
            holders: Vec::new(),
        }
    }

    #[test]
    fn a_plan_is_one_line_a_change_and_a_sum() {
        let plan = Plan {
            base: 1,
            changes: vec![
                change(ChangeAction::Create, "orders-db", &[], 0),
                change(ChangeAction::Update, "billing", &["ttl: 15m → 5m"], 2),
            ],
        };
        assert_eq!(
            plan_text(&plan),
            "+ credential  orders-db\n\
             ~ credential  billing    ttl: 15m → 5m, touches 2 live leases\n\
             To do: 1 created, 1 changed."
        );
        let nothing = Plan {
            base: 1,
            changes: vec![],
        };
        assert_eq!(plan_text(&nothing), "Nothing to change.");
    }

    #[test]
    fn whom_a_change_concerns_is_told() {
        let mut change = change(ChangeAction::Update, "billing", &[], 2);
        assert_eq!(touched(&change), "touches 2 live leases");
        change.holders = vec!["one".into(), "two".into()];
        assert_eq!(touched(&change), "touches 2 live leases (one, two)");
        change.leases = 9;
        assert_eq!(
            touched(&change),
            "touches 9 live leases (one, two, …: mayfly leases --credential billing)"
        );
    }

    #[test]
    fn a_policy_problem_names_file_and_line() {
        let check = PolicyCheck {
            policies: 1,
            problems: vec![PolicyProblem {
                file: "a.cedar".into(),
                line: Some(7),
                message: "no attribute `imge`\n".into(),
            }],
        };
        let failure = problems(&check, Path::new("conf")).unwrap_err();
        assert_eq!(failure.to_string(), "conf/a.cedar:7: no attribute `imge`");
        assert_eq!(failure.exit_code(), std::process::ExitCode::from(64));
    }
}
