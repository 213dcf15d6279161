//! `connection`: the servers at which engines make accounts, and what gets the broker in there.

use crate::client::Client;
use crate::command::secret_input;
use crate::failure::Failure;
use crate::output::{Out, table};
use mayfly_wire::ConnectionName;
use mayfly_wire::admin::{ConnectionInfo, ConnectionSecret, SecretText};
use std::path::PathBuf;

/// What to do with connections.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Every server that the configuration names
    #[command(after_help = "Example:\n  mayfly connection list")]
    List,
    /// Give the broker the password of its own account at a server
    #[command(after_help = "\
Examples:
  mayfly connection set shop                  # asks on the terminal, without echo
  mayfly connection set shop ./password.txt --trim
  pass show shop | mayfly connection set shop --trim

The password is never given as an argument: every process on the host can read those.")]
    Set(SetArgs),
    /// Change that password, so that nobody but the broker knows it
    #[command(after_help = "Example:\n  mayfly connection rotate shop")]
    Rotate {
        /// The connection's name
        name: ConnectionName,
    },
}

/// Arguments of `connection set`.
#[derive(clap::Args)]
pub struct SetArgs {
    /// The connection's name
    name: ConnectionName,
    /// The file with the password, or - for standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Drop one line feed at its end
    #[arg(long)]
    trim: bool,
}

/// `mayfly connection`
pub async fn run(client: &Client, out: Out, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let connections: Vec<ConnectionInfo> = client.get("/v1/connections").await?;
            out.show(&connections, |connections| list_text(connections))
        }
        Command::Set(args) => {
            args.file
                .as_deref()
                .map_or(Ok(()), secret_input::check_source)?;
            let password = secret_input::read(args.file.as_deref(), args.trim)?;
            let body = ConnectionSecret {
                password: SecretText::encode(&password),
            };
            let path = format!("/v1/connections/{}", args.name);
            let info: ConnectionInfo = client.put(&path, &body).await?;
            out.show(&info, |info| {
                format!(
                    "{} has its password now: the broker is {} at {}",
                    info.config.name, info.config.username, info.config.host
                )
            })
        }
        Command::Rotate { name } => {
            let path = format!("/v1/connections/{name}/rotate");
            let info: ConnectionInfo = client.post(&path, &()).await?;
            out.show(&info, |info| {
                format!(
                    "{} has a new password at {}, which nobody but the broker knows",
                    info.config.username, info.config.name
                )
            })
        }
    }
}

fn list_text(connections: &[ConnectionInfo]) -> String {
    let row = |info: &ConnectionInfo| {
        let config = &info.config;
        let port = config
            .port
            .map_or_else(String::new, |port| format!(":{port}"));
        vec![
            config.name.to_string(),
            config.engine.to_string(),
            format!("{}{port}", config.host),
            config.database.clone().unwrap_or_else(|| "-".to_owned()),
            config.username.clone(),
            if info.has_password {
                "yes".to_owned()
            } else {
                format!("no: mayfly connection set {}", config.name)
            },
        ]
    };
    table(
        &[
            "NAME", "ENGINE", "SERVER", "DATABASE", "USERNAME", "PASSWORD",
        ],
        connections.iter().map(row).collect(),
        "no connections: expected [connection.NAME] in the configuration",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_without_a_password_says_what_to_do() {
        let config = serde_json::from_str(
            r#"{"name": "shop", "engine": "postgres", "host": "db", "username": "mayfly"}"#,
        );
        let info = ConnectionInfo {
            config: config.unwrap(),
            has_password: false,
        };
        let text = list_text(&[info]);
        assert!(text.contains("no: mayfly connection set shop"), "{text}");
    }
}
