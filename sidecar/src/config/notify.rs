//! `[[notify]]`: how the application hears that something changed.

use super::Span;
use crate::publish::item::Item;
use hyper::Uri;
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    #[serde(default)]
    on: Vec<Item>,
    signal: Option<String>,
    command: Option<Vec<String>>,
    http: Option<String>,
    #[serde(default)]
    restart: bool,
    timeout: Option<Span>,
    debounce: Option<Span>,
    attempts: Option<u32>,
}

/// How the application hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A signal.
    Signal(Signal),
    /// A program with its arguments, without a shell.
    Command(Vec<String>),
    /// A POST to this path of a server on this host.
    Http {
        /// Where it listens.
        address: SocketAddr,
        /// What is asked of it.
        path: String,
    },
    /// The shim stops it and starts it again.
    Restart,
    /// It is told to end.
    Stop,
}

impl Action {
    /// Whether it goes to a process that must be known.
    #[must_use]
    pub fn needs_process(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::Restart | Self::Stop)
    }

    /// In words, for log and status.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Signal(signal) => format!("signal {}", signal.as_str()),
            Self::Command(argv) => format!("command {}", argv.first().map_or("", String::as_str)),
            Self::Http { address, path } => format!("http://{address}{path}"),
            Self::Restart => "restart".to_owned(),
            Self::Stop => "stop".to_owned(),
        }
    }
}

/// One way to tell the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Of which outputs or credentials a change is told; none means all.
    pub on: Vec<Item>,
    /// How.
    pub action: Action,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long to wait after a change for more of them.
    pub debounce: Duration,
    /// How often it is tried.
    pub attempts: u32,
}

impl Notify {
    /// Ends the application, again and again until it is gone.
    #[must_use]
    pub fn stop() -> Self {
        Self {
            on: Vec::new(),
            action: Action::Stop,
            timeout: Duration::from_secs(10),
            debounce: Duration::ZERO,
            attempts: 20,
        }
    }
}

impl Written {
    pub(super) fn check(self) -> Result<Notify, String> {
        let mut actions = Vec::new();
        if let Some(name) = self.signal {
            actions.push(Action::Signal(signal(&name)?));
        }
        if let Some(argv) = self.command {
            let absolute = argv.first().is_some_and(|program| program.starts_with('/'));
            if !absolute || argv.iter().any(|argument| argument.contains('\0')) {
                return Err(
                    "command: expected a list that begins with a program's absolute path".into(),
                );
            }
            actions.push(Action::Command(argv));
        }
        if let Some(url) = self.http {
            actions.push(http(&url)?);
        }
        if self.restart {
            actions.push(Action::Restart);
        }
        let Ok([action]) = <[Action; 1]>::try_from(actions) else {
            return Err("expected one of `signal`, `command`, `http` and `restart = true`".into());
        };
        let attempts = self.attempts.unwrap_or(5);
        if !(1..=100).contains(&attempts) {
            return Err(format!("attempts: expected 1 to 100, found {attempts}"));
        }
        let or = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        let timeout = or(self.timeout, Duration::from_secs(10));
        if timeout.is_zero() || timeout > Duration::from_secs(600) {
            return Err("timeout: expected 1ms to 10m".into());
        }
        Ok(Notify {
            on: self.on,
            action,
            timeout,
            debounce: or(self.debounce, Duration::from_millis(100)),
            attempts,
        })
    }
}

fn signal(name: &str) -> Result<Signal, String> {
    let full = match name.starts_with("SIG") {
        true => name.to_owned(),
        false => format!("SIG{name}"),
    };
    full.parse()
        .map_err(|_| format!("signal: expected a name such as HUP or USR1, found {name:?}"))
}

/// Only this host, by number: a name could lead elsewhere, and nothing here is encrypted.
fn http(url: &str) -> Result<Action, String> {
    let bad =
        || format!("http: expected http://127.0.0.1:PORT/… or http://[::1]:PORT/…, found {url:?}");
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?;
    let host = authority.host().trim_matches(['[', ']']);
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        number => number.parse().map_err(|_| bad())?,
    };
    let plain = uri.scheme_str() == Some("http") && !authority.as_str().contains('@');
    if !plain || !ip.is_loopback() {
        return Err(bad());
    }
    Ok(Action::Http {
        address: SocketAddr::new(ip, uri.port_u16().unwrap_or(80)),
        path: uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned(),
    })
}
