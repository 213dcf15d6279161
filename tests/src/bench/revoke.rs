//! 10,000 leases on a PostgreSQL role each, revoked by one command; and the same roles dropped by the
//! server's own client, over as many connections, with no broker.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::linked::Linked;
use super::place::POLICY;
use super::report::Better;
use super::{Options, Report};
use crate::harness::PostgresServer;

const LEASES: u64 = 10_000;
const NAME: &str = "bench-db";
/// The broker's connections to the server, and the floor's.
const CONNECTIONS: u64 = 8;
const AT_ONCE: usize = 128;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let server = PostgresServer::start(&[])?;
    let linked = Linked::new(&[])?;
    let broker = &linked.place.broker;
    let port = server.port();
    // Passwords of 128 bits need no stretching, and the server would spend its time on nothing else.
    let config = format!(
        "[connection.bench]\nengine = \"postgres\"\nhost = \"127.0.0.1\"\nport = {port}\n\
         username = {:?}\ntls = \"off\"\nmax_connections = {CONNECTIONS}\nscram_iterations = 1\n\
         [credential.{NAME}]\nengine = \"postgres\"\nttl = \"1h\"\nconnection = \"bench\"\n\
         create = [\"CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL \
         {{{{expiration}}}}\"]\n",
        PostgresServer::ROOT
    );
    broker.apply(&[("credentials.toml", &config), ("policy.cedar", POLICY)])?;
    broker.cli_with_input(&["connection", "set", "bench"], PostgresServer::PASSWORD)?;
    let fleet = linked.fleet()?;
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    for round in 0..options.samples(3, 1) as u64 {
        let begun = Instant::now();
        let who = (0..LEASES).map(|number| fleet.nobody(round * LEASES + number));
        fleet.take_all(who, &NAME.parse()?, AT_ONCE)?;
        let rate = LEASES as f64 / begun.elapsed().as_secs_f64();
        report.progress(&format!("{LEASES} roles made, {rate:.0} a second"))?;
        ensure!(roles(&server)? == LEASES, "not every lease has its role");

        let begun = Instant::now();
        let said = broker.cli(&["revoke", "--credential", NAME])?;
        times.push(begun.elapsed().as_secs_f64());
        ensure!(said.contains(&LEASES.to_string()), "it said: {said}");
        ensure!(roles(&server)? == 0, "roles are left");
        floors.push(floor(&server)?);
    }
    report.add("revoke_10k", times, "s", Better::Less)?;
    report.add("revoke_10k.floor", floors, "s", Better::Less)
}

fn roles(server: &PostgresServer) -> Result<u64> {
    let count = server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mf\\_%'")?;
    count.parse().context("a count of roles")
}

/// As many roles, dropped one by one over as many connections: the server's own time.
fn floor(server: &PostgresServer) -> Result<f64> {
    server.psql(&format!(
        "DO $$ BEGIN FOR n IN 0..{} LOOP EXECUTE 'CREATE ROLE floor_' || n || ' LOGIN'; END LOOP; \
         END $$",
        LEASES - 1
    ))?;
    let begun = Instant::now();
    let clients: Vec<Child> = (0..CONNECTIONS)
        .map(|first| {
            let mut psql = server.client(PostgresServer::ROOT, PostgresServer::PASSWORD)?;
            let mut client = psql.stdin(Stdio::piped()).spawn()?;
            let mut input = client.stdin.take().context("no input")?;
            let own = (first..LEASES).step_by(usize::try_from(CONNECTIONS)?);
            let drops: String = own.map(|n| format!("DROP ROLE floor_{n};\n")).collect();
            std::thread::spawn(move || input.write_all(drops.as_bytes()));
            Ok(client)
        })
        .collect::<Result<_>>()?;
    for mut client in clients {
        ensure!(client.wait()?.success(), "psql failed");
    }
    Ok(begun.elapsed().as_secs_f64())
}
