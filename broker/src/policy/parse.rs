//! From `.cedar` files to policies that are known to be good, or a list of what is wrong, each
//! problem with its file and line.

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use mayfly_wire::admin::{PolicyFile, PolicyProblem};
use miette::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

const SCHEMA: &str = include_str!("schema.cedarschema");
const BASELINE: &str = include_str!("baseline.cedar");
const HARDENED: &str = include_str!("hardened.cedar");
const OPERATORS: &str = include_str!("operators.cedar");

/// Most bytes of one file.
const MAX_FILE: usize = 1024 * 1024;
/// Most policies of one configuration.
const MAX_POLICIES: usize = 10_000;
/// The annotations that mean something, so that a misspelt one is an error.
const ANNOTATIONS: [&str; 3] = ["id", "reason", "lifts"];

/// The schema, and the policies that the broker brings itself.
pub struct Builtin {
    /// What policies are validated against.
    pub validator: Validator,
    /// `baseline-…`: forbids that always stand.
    pub baseline: Vec<Policy>,
    /// `hardened-…`: forbids that stand when they are switched on.
    pub hardened: Vec<Policy>,
    /// What lets root in.
    pub operators: Vec<Policy>,
}

/// Read once. An error here is a fault of this program, and a test holds that there is none.
static BUILTIN: LazyLock<Result<Builtin, String>> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| error.to_string())?;
    let validator = Validator::new(schema);
    let read = |file: &str, text: &str| {
        let file = PolicyFile {
            file: file.to_owned(),
            text: text.to_owned(),
        };
        let mut problems = Vec::new();
        let found = read_file(&validator, &file, &mut problems);
        match problems.first() {
            None => Ok(found.into_iter().map(|found| found.policy).collect()),
            Some(problem) => Err(format!("{}: {}", problem.file, problem.message)),
        }
    };
    Ok(Builtin {
        baseline: read("baseline.cedar", BASELINE)?,
        hardened: read("hardened.cedar", HARDENED)?,
        operators: read("operators.cedar", OPERATORS)?,
        validator,
    })
});

/// The schema and the built-in policies.
///
/// # Errors
/// What is wrong with them, which a test keeps from happening.
pub fn builtin() -> Result<&'static Builtin, String> {
    BUILTIN.as_ref().map_err(Clone::clone)
}

/// A policy, and where it came from.
struct Found {
    policy: Policy,
    file: String,
    line: u64,
}

/// Reads an operator's files.
///
/// # Errors
/// Every problem that was found. Then none of the policies stands.
pub fn read_files(files: &[PolicyFile]) -> Result<Vec<Policy>, Vec<PolicyProblem>> {
    let builtin = builtin().map_err(|message| {
        vec![PolicyProblem {
            file: "built-in".to_owned(),
            line: None,
            message,
        }]
    })?;
    let liftable: BTreeSet<String> = (builtin.baseline.iter().chain(&builtin.hardened))
        .map(|policy| policy.id().to_string())
        .collect();
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for file in files {
        found.extend(read_file(&builtin.validator, file, &mut problems));
    }
    let mut first_of: BTreeMap<String, String> = BTreeMap::new();
    for Found { policy, file, line } in &found {
        let mut problem = |message: String| {
            problems.push(PolicyProblem {
                file: file.clone(),
                line: Some(*line),
                message,
            });
        };
        let id = policy.id().to_string();
        if id.starts_with("baseline-") || id.starts_with("hardened-") {
            problem(format!(
                "the id {id:?} belongs to the broker: expected one that begins neither with \
                 \"baseline-\" nor with \"hardened-\""
            ));
        }
        if let Some(lifts) = policy.annotation("lifts") {
            if !liftable.contains(lifts) {
                let known = liftable.iter().cloned().collect::<Vec<_>>().join(", ");
                problem(format!("@lifts({lifts:?}): expected one of {known}"));
            }
            if policy.effect() == Effect::Forbid {
                problem(
                    "a policy with @lifts must be a permit: it says when the rule does not \
                     apply"
                        .to_owned(),
                );
            }
        }
        if let Some(other) = first_of.insert(id.clone(), format!("{file}:{line}")) {
            problem(format!("the id {id:?} is taken by the policy at {other}"));
        }
    }
    if found.len() > MAX_POLICIES {
        problems.push(PolicyProblem {
            file: String::new(),
            line: None,
            message: format!("{} policies: expected at most {MAX_POLICIES}", found.len()),
        });
    }
    if problems.is_empty() {
        Ok(found.into_iter().map(|found| found.policy).collect())
    } else {
        Err(problems)
    }
}

/// Reads one file: parses it, names its policies by their `@id`, and validates them.
fn read_file(
    validator: &Validator,
    file: &PolicyFile,
    problems: &mut Vec<PolicyProblem>,
) -> Vec<Found> {
    let mut problem = |line: Option<u64>, message: String| {
        problems.push(PolicyProblem {
            file: file.file.clone(),
            line,
            message,
        });
    };
    if file.text.len() > MAX_FILE {
        let size = file.text.len();
        problem(None, format!("{size} bytes: expected at most {MAX_FILE}"));
        return Vec::new();
    }
    let set: PolicySet = match file.text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let errors: cedar_policy::ParseErrors = errors;
            for error in errors.iter() {
                problem(line_of(error, &file.text), explain(error));
            }
            return Vec::new();
        }
    };
    if set.num_of_templates() > 0 {
        problem(
            None,
            "templates (?principal, ?resource) are not supported: write the policy out".to_owned(),
        );
    }
    let result = validator.validate(&set, ValidationMode::Strict);
    for error in result.validation_errors() {
        problem(line_of(error, &file.text), explain(error));
    }
    for warning in result.validation_warnings() {
        problem(line_of(warning, &file.text), explain(warning));
    }

    let mut found = Vec::new();
    for (policy, line) in in_order(&set, &file.text) {
        for (annotation, _) in policy.annotations() {
            if !ANNOTATIONS.contains(&annotation) {
                problem(
                    Some(line),
                    format!("unknown annotation @{annotation}: expected @id, @reason or @lifts"),
                );
            }
        }
        match policy.annotation("id") {
            Some(id) if is_id(id) => found.push(Found {
                policy: policy.new_id(PolicyId::new(id)),
                file: file.file.clone(),
                line,
            }),
            Some(id) => problem(
                Some(line),
                format!("@id({id:?}): expected 1 to 100 of a-z, A-Z, 0-9, '-', '_' and '.'"),
            ),
            None => problem(
                Some(line),
                "expected @id(\"…\") before the policy, so that records can name it".to_owned(),
            ),
        }
    }
    found
}

fn is_id(id: &str) -> bool {
    (1..=100).contains(&id.len())
        && (id.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The policies of a file in the order of the file, each with its line.
fn in_order(set: &PolicySet, text: &str) -> Vec<(Policy, u64)> {
    let mut policies: Vec<&Policy> = set.policies().collect();
    // Cedar numbers what it parses: policy0, policy1, …
    policies.sort_by_key(|policy| {
        let id = policy.id().to_string();
        let number = id.trim_start_matches(|character: char| !character.is_ascii_digit());
        number.parse::<usize>().unwrap_or(usize::MAX)
    });
    let mut from = 0;
    let mut placed = Vec::new();
    for policy in policies {
        let source = policy.to_cedar().unwrap_or_default();
        let at = (text.get(from..).and_then(|rest| rest.find(&source)))
            .map_or(from, |offset| from + offset);
        placed.push((policy.clone(), line_at(text, at)));
        from = at + source.len();
    }
    placed
}

/// The line of a byte, counted from 1.
pub(super) fn line_at(text: &str, offset: usize) -> u64 {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count() as u64
}

fn line_of(error: &dyn Diagnostic, text: &str) -> Option<u64> {
    let label = error.labels()?.next()?;
    Some(line_at(text, label.offset()))
}

/// What is wrong, what was expected, and what Cedar suggests. Its messages name policies by number,
/// which says nothing beside a line, so that goes.
fn explain(error: &(impl Diagnostic + ?Sized)) -> String {
    let mut message = error.to_string();
    if message.starts_with("for policy `")
        && let Some((_, rest)) = message.split_once("`, ")
    {
        message = rest.to_owned();
    }
    let labels = error.labels().into_iter().flatten();
    for label in labels.filter_map(|label| label.label().map(str::to_owned)) {
        message.push_str(": ");
        message.push_str(&label);
    }
    if let Some(help) = error.help() {
        message.push_str(" (");
        message.push_str(&help.to_string());
        message.push(')');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<(Option<u64>, String)> {
        let file = PolicyFile {
            file: "x.cedar".into(),
            text: text.into(),
        };
        let problems = read_files(&[file]).expect_err("expected problems");
        assert!(problems.iter().all(|problem| problem.file == "x.cedar"));
        let pairs = problems.into_iter();
        pairs
            .map(|problem| (problem.line, problem.message))
            .collect()
    }

    const ISSUE: &str = "action == Mayfly::Action::\"issue\"";

    #[test]
    fn the_built_in_policies_are_good() {
        let builtin = builtin().unwrap();
        assert_eq!(builtin.baseline.len(), 7);
        assert_eq!(builtin.hardened.len(), 6);
        for policy in builtin.baseline.iter().chain(&builtin.hardened) {
            assert!(policy.annotation("reason").is_some(), "{}", policy.id());
            assert_eq!(policy.effect(), Effect::Forbid);
            // They are evaluated once for a workload, whatever the credential is.
            let text = policy.to_cedar().unwrap();
            assert!(!text.contains("resource."), "{text}");
        }
    }

    #[test]
    fn a_misspelt_attribute_is_an_error_with_its_line() {
        let text = format!(
            "// first line\n@id(\"a\")\npermit (principal, {ISSUE}, resource)\nwhen {{\n  \
             principal.nmae == \"x\"\n}};"
        );
        let problems = problems(&text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].0, Some(5), "{problems:?}");
        assert!(problems[0].1.contains("nmae"), "{problems:?}");
        assert!(
            problems[0].1.contains("did you mean `name`"),
            "{problems:?}"
        );
    }

    #[test]
    fn an_optional_attribute_needs_has() {
        let text = format!(
            "@id(\"a\") permit (principal, {ISSUE}, resource) when {{ principal.container.name == \
             \"x\" }};"
        );
        let problems = problems(&text);
        assert!(problems[0].1.contains("optional attribute"), "{problems:?}");
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let problems = problems("\n\npermit (principal, action, ;");
        assert_eq!(problems[0].0, Some(3), "{problems:?}");
    }

    #[test]
    fn ids_are_demanded_unique_and_ours_are_ours() {
        let permit = format!("permit (principal, {ISSUE}, resource);\n");
        let missing = problems(&permit);
        assert!(missing[0].1.contains("expected @id"), "{missing:?}");
        let twice = problems(&format!("@id(\"a\")\n{permit}\n@id(\"a\")\n{permit}"));
        assert_eq!(twice[0].0, Some(4), "{twice:?}");
        assert!(twice[0].1.contains("x.cedar:1"), "{twice:?}");
        let ours = problems(&format!("@id(\"baseline-seccomp\") {permit}"));
        assert!(ours[0].1.contains("belongs to the broker"), "{ours:?}");
        let odd = problems(&format!("@id(\"a b\") {permit}"));
        assert!(odd[0].1.contains("expected 1 to 100"), "{odd:?}");
    }

    #[test]
    fn lifts_and_annotations_are_checked() {
        let permit = format!("permit (principal, {ISSUE}, resource);");
        let unknown = problems(&format!("@id(\"a\") @lifts(\"baseline-x\") {permit}"));
        assert!(unknown[0].1.contains("baseline-seccomp"), "{unknown:?}");
        let misspelt = problems(&format!("@id(\"a\") @lift(\"baseline-seccomp\") {permit}"));
        assert!(misspelt[0].1.contains("unknown annotation"), "{misspelt:?}");
        let forbid = problems(&format!(
            "@id(\"a\") @lifts(\"baseline-seccomp\") forbid (principal, {ISSUE}, resource);"
        ));
        assert!(forbid[0].1.contains("must be a permit"), "{forbid:?}");
    }

    #[test]
    fn templates_are_refused() {
        let problems = problems(&format!(
            "@id(\"a\") permit (principal == ?principal, {ISSUE}, resource);"
        ));
        assert!(problems[0].1.contains("templates"), "{problems:?}");
    }
}
