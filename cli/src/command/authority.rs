//! `authority`: what certifies for the engines `x509` and `ssh`, for those who verify without being
//! holders.

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Out, table};
use crate::when;
use mayfly_wire::admin::{AuthorityInfo, AuthorityState, RevocationList};
use mayfly_wire::{Code, EngineKind, Refusal};

/// The file that is made when it is asked for.
const LIST: &str = "crl";

/// What to do with authorities.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Every authority that is published, and when each signs
    #[command(after_help = "Example:\n  mayfly authority list")]
    List,
    /// Print what verifies certificates, as the file that holders have
    #[command(after_help = "\
Examples:
  mayfly authority show x509 > ca.crt
  mayfly authority show ssh > /etc/ssh/mayfly-users.pub        # TrustedUserCAKeys
  mayfly authority show ssh --file known_hosts >> ~/.ssh/known_hosts
  mayfly authority show x509 --file crl > ca.crl               # what was revoked
  mayfly authority show ssh --file crl > /etc/ssh/mayfly.krl   # RevokedKeys")]
    Show(ShowArgs),
    /// Publish the next authority; it signs once every holder has it
    #[command(after_help = "Example:\n  mayfly authority rotate x509")]
    Rotate {
        /// x509 or ssh
        engine: EngineKind,
    },
}

/// Arguments of `authority show`.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// x509 or ssh
    engine: EngineKind,
    /// The file [default: ca.crt of x509, ca.pub of ssh]; crl: what was revoked and has not expired
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
}

/// `mayfly authority`
pub async fn run(client: &Client, out: Out, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let all: Vec<AuthorityInfo> = client.get("/v1/authorities").await?;
            out.show(&all, |all| list_text(all, when::now()))
        }
        Command::Show(args) if args.file.as_deref() == Some(LIST) => {
            let path = format!("/v1/authorities/{}/crl", args.engine);
            let list: RevocationList = client.get(&path).await?;
            if out.is_json() {
                return out.show(&list, |_| String::new());
            }
            out.bytes(&[&list.file.0])
        }
        Command::Show(args) => {
            let all: Vec<AuthorityInfo> = client.get("/v1/authorities").await?;
            let found = all.into_iter().find(|info| info.engine == args.engine);
            let info = found.ok_or_else(|| {
                let message = format!("the engine {} has no authority", args.engine);
                Failure::Refused(Refusal::because(Code::NotFound, message))
            })?;
            if out.is_json() {
                return out.show(&info, |_| String::new());
            }
            out.bytes(&[file(&info, args.file.as_deref())?.as_bytes()])
        }
        Command::Rotate { engine } => {
            let path = format!("/v1/authorities/{engine}/rotate");
            let info: AuthorityInfo = client.post(&path, &()).await?;
            out.show(&info, |info| rotated_text(info, when::now()))
        }
    }
}

/// One of the files, by its name, or the one that is meant by default.
fn file<'a>(info: &'a AuthorityInfo, name: Option<&str>) -> Result<&'a str, Failure> {
    let not_found = |message| Failure::Refused(Refusal::because(Code::NotFound, message));
    if info.published.is_empty() {
        return Err(not_found(format!(
            "{} has no authority yet: it is made for the first certificate, or by `mayfly authority \
             rotate {}`",
            info.engine, info.engine
        )));
    }
    let found = match name {
        Some(name) => info.files.get(name),
        None => info.files.values().next(),
    };
    found.map(String::as_str).ok_or_else(|| {
        let names = info.files.keys().map(String::as_str);
        let names: Vec<&str> = names.chain([LIST]).collect();
        not_found(format!("expected --file {}", names.join(" or ")))
    })
}

fn list_text(all: &[AuthorityInfo], now: u64) -> String {
    let rows = all.iter().flat_map(|info| {
        info.published.iter().map(move |one| {
            let state = match one.state {
                AuthorityState::Past => "past",
                AuthorityState::Signing => "signing",
                AuthorityState::Next => "next",
            };
            vec![
                info.engine.to_string(),
                state.to_owned(),
                when::relative(one.signs_from, now),
                one.fingerprints.join(" "),
            ]
        })
    });
    table(
        &["ENGINE", "STATE", "SIGNS", "SHA-256"],
        rows.collect(),
        "no authorities: each is made for the first certificate of its engine",
    )
}

fn rotated_text(info: &AuthorityInfo, now: u64) -> String {
    match info.published.last() {
        Some(last) if last.state == AuthorityState::Next => format!(
            "the next authority of {} is published, and signs {}: by then every holder has it; others \
             need `mayfly authority show {}`",
            info.engine,
            when::relative(last.signs_from, now),
            info.engine
        ),
        _ => format!("the first authority of {} signs from now on", info.engine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::admin::PublishedAuthority;
    use std::collections::BTreeMap;

    fn info(states: &[AuthorityState]) -> AuthorityInfo {
        let published = states.iter().map(|&state| PublishedAuthority {
            state,
            signs_from: 60_000,
            fingerprints: vec!["AB:CD".to_owned()],
        });
        let files = [("ca.pub", "users"), ("known_hosts", "hosts")];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        AuthorityInfo {
            engine: EngineKind::Ssh,
            published: published.collect(),
            files: BTreeMap::from(files),
        }
    }

    #[test]
    fn files_go_by_their_names_and_the_first_by_default() {
        let some = info(&[AuthorityState::Signing]);
        assert_eq!(file(&some, None).unwrap(), "users");
        assert_eq!(file(&some, Some("known_hosts")).unwrap(), "hosts");
        assert!(file(&some, Some("x")).is_err());
        assert!(file(&info(&[]), None).is_err());
    }

    #[test]
    fn people_are_told_when_the_next_one_signs() {
        let next = info(&[AuthorityState::Signing, AuthorityState::Next]);
        let told = rotated_text(&next, 0);
        assert!(told.contains("signs in 1m"), "{told}");
        assert!(list_text(&[next], 0).contains("next"));
    }
}
