//! Which ACL rules an operator may write.

/// Most rules of one credential.
const MAX_RULES: usize = 128;
/// Most bytes of one rule.
const MAX_RULE: usize = 512;
/// Rules that are words.
const WORDS: [&str; 7] = [
    "allkeys",
    "resetkeys",
    "allchannels",
    "resetchannels",
    "allcommands",
    "nocommands",
    "clearselectors",
];

/// Rules about commands that end each holder's. Administration is the broker's: a user that a holder
/// made, a password that it set or read (`CONFIG`), a module that it loaded, a server that it had follow
/// another would outlive its lease.
const NEVER: [&str; 2] = ["-@admin", "-acl"];
/// Of administration, what only shows something that is no secret: holders get it whose rules name it.
const SHOWN: [&str; 6] = [
    "+client|list",
    "+lastsave",
    "+latency|latest",
    "+role",
    "+slowlog|get",
    "+slowlog|len",
];

/// A holder's rules: those of the operator, and what they cannot give.
pub(super) fn of_holder(rules: &[String]) -> impl Iterator<Item = &str> {
    let rules = rules.iter().map(String::as_str);
    let shown = rules.clone().filter(|rule| is_shown(rule));
    rules.chain(NEVER).chain(shown)
}

fn is_shown(rule: &str) -> bool {
    SHOWN.iter().any(|shown| shown.eq_ignore_ascii_case(rule))
}

/// Whether each rule says what a user may do, and nothing about its password or about itself.
///
/// # Errors
/// What was expected and what was found.
pub(super) fn check(rules: &[String]) -> Result<(), String> {
    if rules.is_empty() || rules.len() > MAX_RULES {
        return Err(format!(
            "rules: expected 1 to {MAX_RULES}, such as \"~orders:*\" and \"+@read\""
        ));
    }
    for rule in rules {
        if !is_allowed(rule) {
            let found: String = rule.chars().take(60).collect();
            return Err(format!(
                "rules: expected rules about keys (~…, %R~…, %W~…, %RW~…), channels (&…) and \
                 commands (+…, -…, +@…, -@…), or one of {}, found {found:?}",
                WORDS.join(", ")
            ));
        }
    }
    Ok(())
}

fn is_allowed(rule: &str) -> bool {
    if rule.len() > MAX_RULE || !rule.bytes().all(|byte| byte.is_ascii_graphic()) {
        return false;
    }
    let is_command = |name: &str| {
        let name = name.strip_prefix('@').unwrap_or(name);
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.|".contains(&byte))
    };
    let patterns = ["~", "%R~", "%W~", "%RW~", "&"];
    WORDS.contains(&rule)
        || rule.strip_prefix(['+', '-']).is_some_and(is_command)
        || patterns.iter().any(|prefix| {
            rule.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_about_the_user_itself_are_refused() {
        for rule in [
            "",
            "on",
            "off",
            "nopass",
            ">secret",
            "<secret",
            "#aa",
            "!aa",
            "reset",
            "resetpass",
            "+",
            "-",
            "~",
            "&",
            "+@",
            "+get key",
            "+get\r\n",
            "~a b",
            "~\0",
            "(+get",
            "sanitize-payload",
            "skip-sanitize-payload",
            "ON",
            "NoPass",
            "%~x",
            "+>x",
            "~é",
        ] {
            assert!(check(&[rule.to_owned()]).is_err(), "{rule:?}");
        }
        assert!(check(&[]).is_err());
        assert!(check(&vec!["+get".to_owned(); 129]).is_err());
        assert!(check(&[format!("~{}", "a".repeat(512))]).is_err());
    }

    #[test]
    fn administration_is_taken_away_whatever_the_rules_say() {
        let rules = ["+@all", "+Client|List", "-get", "+config|get"].map(str::to_owned);
        let all: Vec<&str> = of_holder(&rules).collect();
        assert_eq!(
            all,
            [
                "+@all",
                "+Client|List",
                "-get",
                "+config|get",
                "-@admin",
                "-acl",
                "+Client|List"
            ]
        );
    }

    #[test]
    fn rules_about_what_it_may_do_are_allowed() {
        for rule in [
            "~orders:*",
            "%R~x",
            "%RW~>x",
            "&news.*",
            "+get",
            "-@all",
            "+@read",
            "+config|get",
            "allkeys",
            "+json.set",
        ] {
            assert_eq!(check(&[rule.to_owned()]), Ok(()), "{rule:?}");
        }
    }
}
