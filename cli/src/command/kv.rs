//! `kv`: values that the broker stores.

use crate::client::Client;
use crate::command::secret_input;
use crate::failure::Failure;
use crate::output::{Out, clean, table};
use crate::when;
use mayfly_wire::admin::{KvEntry, KvPut, KvValue, KvVersion, SecretText};
use mayfly_wire::{Code, FieldName, KvPath, Refusal, Secret};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// The field of a value that has only one.
const ONLY: &str = "value";

/// What to do with stored values.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Store a new version of a value
    #[command(after_help = "\
Examples:
  mayfly kv put orders/db ./password.txt
  openssl rand -hex 32 | mayfly kv put orders/db --trim
  mayfly kv put orders/db            # asks on the terminal, without echo
  mayfly kv put orders/db --field username=./user --field password=./password

Values are never given as arguments: every process on the host can read those.")]
    Put(PutArgs),
    /// Tell what stands at a path; print it only with --field or --reveal
    #[command(after_help = "\
Examples:
  mayfly kv get orders/db                     # its version and the names of its fields
  mayfly kv get orders/db --field password    # that field's bytes as they are")]
    Get(GetArgs),
    /// Every path, without values
    #[command(after_help = "Example:\n  mayfly kv list")]
    List,
    /// Every version of one path, without values
    #[command(after_help = "Example:\n  mayfly kv history orders/db")]
    History {
        /// The path
        path: KvPath,
    },
    /// Withdraw a value: its holders lose it at once
    #[command(after_help = "Example:\n  mayfly kv delete orders/db")]
    Delete {
        /// The path
        path: KvPath,
    },
}

/// Arguments of `kv put`.
#[derive(clap::Args)]
pub struct PutArgs {
    /// Where it shall stand: orders/db
    path: KvPath,
    /// The file with the value, or - for standard input
    #[arg(value_name = "FILE", conflicts_with = "field")]
    file: Option<PathBuf>,
    /// One field and the file with its value (or -); repeat for several
    #[arg(long, value_name = "NAME=FILE")]
    field: Vec<String>,
    /// Refuse unless this is the current version; 0 means that there must be none
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Drop one line feed at the end of each value
    #[arg(long)]
    trim: bool,
}

/// Arguments of `kv get`.
#[derive(clap::Args)]
pub struct GetArgs {
    /// Where it stands
    path: KvPath,
    /// Print this field's bytes as they are
    #[arg(long, value_name = "NAME", conflicts_with = "reveal")]
    field: Option<FieldName>,
    /// Print every field with its value
    #[arg(long)]
    reveal: bool,
    /// An older version
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

/// `mayfly kv`
pub async fn run(client: &Client, out: Out, command: Command) -> Result<(), Failure> {
    match command {
        Command::Put(args) => put(client, out, args).await,
        Command::Get(args) if args.field.is_some() || args.reveal => {
            reveal(client, out, args).await
        }
        Command::Get(args) => describe(client, out, args).await,
        Command::List => {
            let entries: Vec<KvEntry> = client.get("/v1/kv").await?;
            out.show(&entries, |entries| list_text(entries, when::now()))
        }
        Command::History { path } => {
            let versions = history(client, &path).await?;
            out.show(&versions, |versions| history_text(versions, when::now()))
        }
        Command::Delete { path } => {
            let mark: KvVersion = client.delete(&format!("/v1/kv/{path}")).await?;
            out.show(&mark, |mark| {
                format!("{} is withdrawn, as version {}", mark.path, mark.version)
            })
        }
    }
}

async fn put(client: &Client, out: Out, args: PutArgs) -> Result<(), Failure> {
    let body = KvPut {
        fields: read_fields(&args)?,
        if_version: args.if_version,
    };
    let stored: KvVersion = client.put(&format!("/v1/kv/{}", args.path), &body).await?;
    out.show(&stored, |stored| {
        format!("{} is now at version {}", stored.path, stored.version)
    })
}

fn read_fields(args: &PutArgs) -> Result<BTreeMap<FieldName, SecretText>, Failure> {
    let mut fields = BTreeMap::new();
    for field in &args.field {
        let field = secret_input::parse_field(field)?;
        let value = secret_input::read(Some(&field.file), args.trim)?;
        if fields
            .insert(field.name.clone(), SecretText::encode(&value))
            .is_some()
        {
            return Err(Failure::Usage(format!(
                "--field {} is given twice",
                field.name
            )));
        }
    }
    if fields.is_empty() {
        args.file
            .as_deref()
            .map_or(Ok(()), secret_input::check_source)?;
        let value = secret_input::read(args.file.as_deref(), args.trim)?;
        fields.insert(only()?, SecretText::encode(&value));
    }
    Ok(fields)
}

fn only() -> Result<FieldName, Failure> {
    ONLY.parse()
        .map_err(|error| Failure::Failed(format!("{error}")))
}

async fn history(client: &Client, path: &KvPath) -> Result<Vec<KvVersion>, Failure> {
    client.get(&format!("/v1/kv-history/{path}")).await
}

/// Without --field or --reveal, no secret even crosses the socket.
async fn describe(client: &Client, out: Out, args: GetArgs) -> Result<(), Failure> {
    let versions = history(client, &args.path).await?;
    let found = match args.version {
        Some(number) => versions
            .into_iter()
            .find(|version| version.version == number),
        None => versions.into_iter().max_by_key(|version| version.version),
    };
    let found = found.ok_or_else(|| {
        let wanted = args
            .version
            .map_or_else(String::new, |number| format!(" version {number} of"));
        let message = format!("there is no{wanted} {}", args.path);
        Failure::Refused(Refusal::because(Code::NotFound, message))
    })?;
    out.show(&found, |found| {
        let made = when::relative(found.created_at, when::now());
        if found.deleted {
            return format!(
                "{} was withdrawn {made}, as version {}",
                found.path, found.version
            );
        }
        let names: Vec<_> = found.fields.iter().map(FieldName::as_str).collect();
        format!(
            "{} version {}, made {made}\nfields: {}\n(--field NAME prints one, --reveal all)",
            found.path,
            found.version,
            names.join(", ")
        )
    })
}

async fn reveal(client: &Client, out: Out, args: GetArgs) -> Result<(), Failure> {
    let query = args
        .version
        .map_or_else(String::new, |version| format!("?version={version}"));
    let value: KvValue = client.get(&format!("/v1/kv/{}{query}", args.path)).await?;
    let mut fields = BTreeMap::new();
    for (name, text) in &value.fields {
        let secret = text
            .decode()
            .map_err(|error| Failure::Failed(error.to_owned()))?;
        fields.insert(name, secret);
    }
    if let Some(wanted) = &args.field {
        let names: Vec<_> = fields.keys().map(|name| name.as_str()).collect();
        let found = fields.get(wanted).ok_or_else(|| {
            let message = format!(
                "{} has no field {wanted}; it has {}",
                args.path,
                names.join(", ")
            );
            Failure::Refused(Refusal::because(Code::NotFound, message))
        })?;
        return out.bytes(&[found.expose()]);
    }
    out.show(&revealed_json(&value, &fields), |_| revealed_text(&fields))
}

/// Text where it is text; else base64 under a name that says so.
fn revealed_json(value: &KvValue, fields: &BTreeMap<&FieldName, Secret>) -> serde_json::Value {
    let mut json = json!({ "path": value.path, "version": value.version, "fields": {} });
    for (name, secret) in fields {
        json["fields"][name.as_str()] = match std::str::from_utf8(secret.expose()) {
            Ok(text) => json!(text),
            Err(_) => json!({ "base64url": mayfly_wire::bytes::encode(secret.expose()) }),
        };
    }
    json
}

fn revealed_text(fields: &BTreeMap<&FieldName, Secret>) -> String {
    let mut text = String::new();
    for (name, secret) in fields {
        let shown = match std::str::from_utf8(secret.expose()) {
            Ok(value) if value.lines().count() <= 1 => clean(value.trim_end_matches('\n')),
            _ => format!("({} bytes: print them with --field {name})", secret.len()),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {shown}");
    }
    text
}

fn list_text(entries: &[KvEntry], now: u64) -> String {
    let rows = entries
        .iter()
        .map(|entry| {
            vec![
                entry.path.to_string(),
                entry.version.to_string(),
                state(entry.deleted),
                when::relative(entry.created_at, now),
            ]
        })
        .collect();
    table(
        &["PATH", "VERSION", "STATE", "CHANGED"],
        rows,
        "no values are stored",
    )
}

fn history_text(versions: &[KvVersion], now: u64) -> String {
    let rows = versions
        .iter()
        .map(|version| {
            let names: Vec<_> = version.fields.iter().map(FieldName::as_str).collect();
            vec![
                version.version.to_string(),
                state(version.deleted),
                when::relative(version.created_at, now),
                names.join(", "),
            ]
        })
        .collect();
    table(&["VERSION", "STATE", "MADE", "FIELDS"], rows, "no versions")
}

fn state(deleted: bool) -> String {
    if deleted { "withdrawn" } else { "stored" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_line_of_text_is_not_printed_in_a_table() {
        let (a, b, c): (FieldName, FieldName, FieldName) = (
            "a".parse().unwrap(),
            "b".parse().unwrap(),
            "c".parse().unwrap(),
        );
        let fields = BTreeMap::from([
            (&a, Secret::from("plain\n".to_owned())),
            (&b, Secret::from(vec![0xFF, 0xFE])),
            (&c, Secret::from("two\nlines".to_owned())),
        ]);
        assert_eq!(
            revealed_text(&fields),
            "a = plain\nb = (2 bytes: print them with --field b)\n\
             c = (9 bytes: print them with --field c)\n"
        );
    }

    #[test]
    fn a_list_tells_paths_and_states() {
        let entry = KvEntry {
            path: "orders/db".parse().unwrap(),
            version: 3,
            created_at: 0,
            deleted: true,
        };
        let text = list_text(&[entry], 5_000);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "orders/db  3        withdrawn  5s ago"
        );
    }
}
