//! Roles of a PostgreSQL server: how many a second are made and removed, beside the same statements
//! with no broker; and how long a role outlives its container.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::place::{LIMIT, Place, said};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{BrokerOptions, PostgresServer, Stream, TempDir, output};

/// Credentials of one container, and so roles that are made at once: most that a session may ask for
/// is 256.
const ROLES: usize = 200;
/// What a lease's role is called first.
const PREFIX: &str = "mf_";

pub fn measure_rates(options: &Options, report: &mut Report) -> Result<()> {
    let server = PostgresServer::start(&["log_line_prefix=@"])?;
    for connections in [1, 8] {
        let place = place(&server, connections, ROLES)?;
        let mut audit = follow(&place)?;
        log_statements(&server, "all")?;
        // The first opens connections, and shows the server what the statements are.
        round(&place, &mut audit, &server)?;
        let floor = Floor::of(&server, connections)?;
        log_statements(&server, "none")?;
        let mut rates: [Vec<f64>; 4] = Default::default();
        for number in 0..options.samples(7, 3) {
            let (made, removed) = round(&place, &mut audit, &server)?;
            let (floor_made, floor_removed) = floor.round(&server, number)?;
            for (rates, rate) in rates
                .iter_mut()
                .zip([made, floor_made, removed, floor_removed])
            {
                rates.push(rate);
            }
        }
        let names = ["issue", "issue.floor", "revoke", "revoke.floor"];
        for (name, rates) in names.iter().zip(rates) {
            let (what, floor) = name.split_once('.').unwrap_or((name, ""));
            let dot = if floor.is_empty() { "" } else { "." };
            let name = format!("postgres_{what}.{connections}{dot}{floor}");
            report.add(&name, rates, "1/s", Better::More)?;
        }
    }
    Ok(())
}

pub fn measure_death(options: &Options, report: &mut Report) -> Result<()> {
    let server = PostgresServer::start(&[])?;
    let place = place(&server, 8, 1)?;
    let mut audit = follow(&place)?;
    let mut samples = Vec::new();
    for _ in 0..options.samples(50, 10) {
        let container = place.container(&["roles", "1"])?;
        said(&container, "took")?;
        std::thread::sleep(Duration::from_millis(30));
        let workload = container.cgroup().id()?;
        let begun = Instant::now();
        container.kill()?;
        ended(&mut audit, workload, 1)?;
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(roles(&server)? == "0", "a role is left");
    }
    report.add("death_to_role_gone", samples, "ms", Better::Less)
}

/// A broker that makes roles with so many connections.
fn place(server: &PostgresServer, connections: usize, roles: usize) -> Result<Place> {
    let port = server.port();
    let mut config = format!(
        "[connection.db]\nengine = \"postgres\"\nhost = \"127.0.0.1\"\nport = {port}\n\
         username = \"{}\"\ntls = \"off\"\nmax_connections = {connections}\nscram_iterations = 1\n",
        PostgresServer::ROOT
    );
    for number in 0..roles {
        config.push_str(&format!(
            "[credential.r{number}]\nengine = \"postgres\"\nconnection = \"db\"\nttl = \"1h\"\n\
             create = [\"CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL {{{{expiration}}}}\"]\n",
        ));
    }
    let place = Place::of(BrokerOptions::default(), &config)?;
    let set = ["connection", "set", "db"];
    place
        .broker
        .cli_with_input(&set, PostgresServer::PASSWORD)?;
    Ok(place)
}

/// One container asks for all, and dies: roles made and removed in a second. The last is on record when
/// it counts.
fn round(place: &Place, audit: &mut Stream, server: &PostgresServer) -> Result<(f64, f64)> {
    let container = place.container(&["roles", &ROLES.to_string()])?;
    let micros: f64 = said(&container, "took")?.parse().context("a time")?;
    let workload = container.cgroup().id()?;
    let begun = Instant::now();
    container.kill()?;
    ended(audit, workload, ROLES)?;
    let removed = begun.elapsed().as_secs_f64();
    ensure!(roles(server)? == "0", "roles are left");
    let count = u32::try_from(ROLES).map(f64::from)?;
    Ok((count / (micros / 1e6), count / removed))
}

fn follow(place: &Place) -> Result<Stream> {
    let admin = place.broker.admin();
    admin.stream("GET", "/v1/audit?last=0&follow=true", "")
}

/// Waits until so many leases of a workload have ended: each role is gone before that is on record.
fn ended(audit: &mut Stream, cgroup: u64, count: usize) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let record = audit.json(LIMIT)?;
        let event = &record["event"];
        if event["type"] == "ended" && event["workload"]["cgroup_id"] == cgroup {
            left -= 1;
        }
    }
    Ok(())
}

/// Has the server log statements, or not, in sessions that are open too.
fn log_statements(server: &PostgresServer, which: &str) -> Result<()> {
    server.psql(&format!("ALTER SYSTEM SET log_statement = '{which}'"))?;
    server.psql("SELECT pg_reload_conf()")?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn roles(server: &PostgresServer) -> Result<String> {
    Ok(server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mf\\_%'")?)
}

/// The broker's own statement that makes a role, as the server logged it, and a plain `DROP ROLE`, given
/// to `pgbench`.
struct Floor {
    dir: TempDir,
    connections: usize,
}

impl Floor {
    fn of(server: &PostgresServer, connections: usize) -> Result<Self> {
        let log = server.log()?;
        let dir = TempDir::new()?;
        let make = logged(&log, "CREATE ROLE").context("no CREATE ROLE in the log")?;
        std::fs::write(dir.join("make"), script(&make)?)?;
        // The broker removes several at once, and ends their sessions.
        std::fs::write(
            dir.join("remove"),
            script(&format!("DROP ROLE \"{PREFIX}\""))?,
        )?;
        Ok(Self { dir, connections })
    }

    fn round(&self, server: &PostgresServer, number: usize) -> Result<(f64, f64)> {
        Ok((
            self.run(server, "make", number)?,
            self.run(server, "remove", number)?,
        ))
    }

    fn run(&self, server: &PostgresServer, file: &str, number: usize) -> Result<f64> {
        let each = ROLES / self.connections;
        let mut bench = server.tool("pgbench", PostgresServer::ROOT, PostgresServer::PASSWORD)?;
        let (clients, first) = (self.connections.to_string(), (number * ROLES).to_string());
        bench
            .args(["-n", "-M", "simple", "-c", &clients, "-j", &clients])
            .args(["-t", &each.to_string(), "-D", &format!("i={first}"), "-f"])
            .arg(self.dir.join(file));
        let said = output(&mut bench)?;
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|rest| rest.split(' ').next());
        let rate = rate.with_context(|| format!("no rate from pgbench: {said}"))?;
        rate.parse().context("a rate")
    }
}

/// The last statement in a log that begins so, alone: the broker gives a message of several. Lines after
/// the first of one begin with a tab.
fn logged(log: &str, begins: &str) -> Option<String> {
    let (_, rest) = log.rsplit_once(begins)?;
    let end = rest.find([';', '@']).unwrap_or(rest.len());
    Some(format!("{begins}{}", &rest[..end]).replace("\n\t", "\n"))
}

/// One round trip of `pgbench`, for another role each time.
fn script(text: &str) -> Result<String> {
    let from = text.find(PREFIX).context("no role in a statement")?;
    let rest = &text[from..];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
    let text = text.replace(name, "mf_floor_:n");
    let text = text.trim().replace('\n', " ");
    Ok(format!(
        "\\set i :i + 1\n\\set n :client_id * 1000000 + :i\n{text};\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_found_in_a_log_and_made_a_script() {
        let log = "@LOG:  statement: BEGIN;CREATE ROLE \"mf_a_0\";COMMIT;\n\
                   @LOG:  statement: BEGIN;CREATE ROLE \"mf_a_1\"\n\t;COMMIT;\n@LOG:  other\n";
        let create = script(&logged(log, "CREATE ROLE").unwrap_or_default()).unwrap_or_default();
        assert!(
            create.ends_with("CREATE ROLE \"mf_floor_:n\";\n")
                || create.contains("\"mf_floor_:n\" "),
            "{create}"
        );
        let remove = script("DROP ROLE \"mf_\"").unwrap_or_default();
        assert!(remove.ends_with("DROP ROLE \"mf_floor_:n\";\n"), "{remove}");
    }
}
