//! Users of MariaDB, Redis and RabbitMQ.

use anyhow::{Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Kind, Realm, Server, wait_until};

use crate::e2e::resilience::app::{ALL, App, SOON};

/// One kind of server, and what is said of it.
struct Case {
    kind: Kind,
    engine: &'static str,
    /// Which of its ports the broker uses.
    port: usize,
    /// The credential's own settings.
    settings: &'static str,
    /// What a holder asks, and what the answer then has.
    question: (&'static str, &'static str),
    /// What the broker's own account asks to see every user.
    users: &'static str,
}

const MARIADB: Case = Case {
    kind: Kind::Mariadb,
    engine: "mysql",
    port: 0,
    settings: r#"create = [
  "CREATE USER {{name}}@'%' IDENTIFIED BY {{password}}",
  "GRANT SELECT ON shop.* TO {{name}}@'%'",
]"#,
    question: ("SELECT CURRENT_USER()", "@%"),
    users: "SELECT User FROM mysql.user",
};
const REDIS: Case = Case {
    kind: Kind::Redis,
    engine: "redis",
    port: 0,
    settings: r#"rules = ["~orders:*", "+@all"]"#,
    question: ("SET orders:1 x", "OK"),
    users: "ACL USERS",
};
const RABBITMQ: Case = Case {
    kind: Kind::Rabbitmq,
    engine: "rabbitmq",
    port: 1,
    settings: r#"tags = ["monitoring"]
permissions = { "/" = { read = ".*" } }"#,
    question: ("whoami", " 200"),
    users: "users?columns=name",
};

#[test]
fn users_of_mariadb_come_and_go_with_their_container() -> Result<()> {
    comes_and_goes(&MARIADB)
}

#[test]
fn users_of_redis_come_and_go_with_their_container() -> Result<()> {
    comes_and_goes(&REDIS)
}

#[test]
fn users_of_rabbitmq_come_and_go_with_their_container() -> Result<()> {
    comes_and_goes(&RABBITMQ)
}

fn comes_and_goes(case: &Case) -> Result<()> {
    let server = Server::start(case.kind)?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let (engine, port, settings) = (case.engine, server.port(case.port), case.settings);
    let configuration = format!(
        "[connection.shop]\nengine = \"{engine}\"\nhost = \"127.0.0.1\"\nport = {port}\n\
         username = \"{}\"\ntls = \"off\"\n\
         [credential.orders]\nengine = \"{engine}\"\nconnection = \"shop\"\nttl = \"5m\"\n{settings}\n",
        Server::ROOT
    );
    broker.apply(&[("shop.toml", &configuration), ("all.cedar", ALL)])?;
    broker.cli_with_input(&["connection", "set", "shop"], Server::PASSWORD)?;

    let mut app = App::wanting(&broker.workload_dir(), "orders")?;
    let read = |field: &str| -> Result<String> {
        Ok(String::from_utf8(app.secret(&format!("orders/{field}"))?)?)
    };
    let (user, password) = wait_until(SOON, "its files", || {
        Ok(Some((read("username")?, read("password")?)))
    })?;
    let (question, answer) = case.question;
    let asked = server.ask(&user, &password, question)?;
    ensure!(asked.contains(answer), "{asked}");
    ensure!(server.ask_as_root(case.users)?.contains(&user));

    app.end()?;
    wait_until(SOON, "its user to go", || {
        let users = server.ask_as_root(case.users)?;
        Ok((!users.contains(&user)).then_some(()))
    })?;
    let asked = server.ask(&user, &password, question)?;
    ensure!(!asked.contains(answer), "it still gets in: {asked}");
    ensure!(
        !broker.log().contains(&password),
        "the broker's log has a password"
    );

    // The broker's own password: rotated, and still good for the next container.
    broker.cli(&["connection", "rotate", "shop"])?;
    let locked_out = server.ask_as_root(question)?;
    ensure!(
        !locked_out.contains(answer),
        "the first root password is still good"
    );
    let next = App::wanting(&broker.workload_dir(), "orders")?;
    let read = |field: &str| -> Result<String> {
        Ok(String::from_utf8(next.secret(&format!("orders/{field}"))?)?)
    };
    let (user, password) = wait_until(SOON, "the next one's files", || {
        Ok(Some((read("username")?, read("password")?)))
    })?;
    let asked = server.ask(&user, &password, question)?;
    ensure!(asked.contains(answer), "{asked}");
    Ok(())
}
