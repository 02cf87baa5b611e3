//! `walhook uninstall`: removes what walhook made in a database, its slots, and with `--nats` what it made in NATS.
//!
//! In: a database that was set up, by this version or an older one, and nobody who streams from it. Out: the database as it was
//! before setup; tables and views that were there before stay. In NATS only what carries the database's identity is removed, and
//! only if the user asks for it: streams hold what others may still read. NATS comes first: once the database has forgotten its
//! identity, nobody can tell what is its own there.

mod nats;

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use tokio_postgres::Client;

use super::schema;
use crate::{
    config::Config,
    error::{Error, Result},
    postgres::sql,
    text,
};
use nats::Findings;

const UNINSTALL: &str = include_str!("../../sql/uninstall/uninstall.sql");

/// Whether to ask, and whether to do it.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Also remove the streams, consumers, buckets and objects in NATS that walhook made for this database, with all their messages
    #[arg(long)]
    nats: bool,
    /// Print by name what would be removed, and the SQL for a DBA, and change nothing
    #[arg(long)]
    print: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// The session's names are PostgreSQL's own, and it waits for nobody for long.
const SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET lock_timeout = '10s'";

/// All slots of pgoutput in this database, and whether walhook made them: the one of the settings, those that its status names, and
/// anchors.
const SLOTS: &str = "SELECT s.slot_name::text, s.active_pid, s.slot_name::text = ANY ($1) FROM pg_replication_slots s \
    WHERE s.plugin = 'pgoutput' AND s.database = current_database() AND NOT s.temporary ORDER BY 1";

/// The roles that setup made, of those that are there.
const ROLES: &str = "SELECT ARRAY(SELECT r.rolname::text FROM pg_roles r \
    WHERE r.rolname IN ('walhook_streamer', 'walhook_application', 'walhook_operator', 'walhook_worker') \
      AND shobj_description(r.oid, 'pg_authid') LIKE 'walhook:%' ORDER BY 1)";

/// Removes everything.
///
/// # Errors
/// Somebody streams; nobody has said yes; an object of somebody else depends on one of ours: then nothing is changed in the
/// database.
pub async fn uninstall(config: &Config, arguments: &Arguments) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let database = config.postgres.target();
    let attempted = format!("uninstall walhook at {database}");
    let failed = |error| sql::error(&attempted, error);
    client.batch_execute(SESSION).await.map_err(failed)?;
    schema::refuse_newer(&client, &database).await?;
    let slots = Slots::read(&client, config).await.map_err(failed)?;
    if let Some((slot, process)) = slots.in_use.first().filter(|_| !arguments.print) {
        return Err(Error::config(format!("{attempted}: process {process} streams from slot {slot:?}"))
            .hint("stop that walhook first"));
    }
    let mut going = Inventory::read(&client, &slots).await.map_err(failed)?;
    let in_nats = if arguments.nats { Some(nats::find(&client, config).await?) } else { None };
    if arguments.print {
        return super::say(&script(&database, &going, &slots, in_nats.as_ref()));
    }
    if !arguments.yes {
        ask(&config.postgres.dbname, &going, in_nats.as_ref())?;
    }
    if let Some(in_nats) = &in_nats {
        in_nats.remove().await.map_err(|error| error.context(&attempted))?;
    }
    client.batch_execute(&format!("BEGIN; {UNINSTALL}\nCOMMIT")).await.map_err(|error| {
        sql::error(&attempted, error)
            .hint("nothing was changed in the database; drop what depends on walhook's objects first")
    })?;
    for slot in &slots.ours {
        client
            .execute("SELECT pg_drop_replication_slot($1)", &[slot])
            .await
            .map_err(|error| sql::error(format!("drop slot {slot:?} at {database}"), error))?;
    }
    let staying: Vec<String> = client.query_one(ROLES, &[]).await.map_err(failed)?.get(0);
    going.roles.retain(|role| !staying.contains(role));
    let mut text = format!("walhook is removed from {database}: {}\n", going.summary());
    for role in &staying {
        text.push_str(&format!(
            "role {role} stays: another database uses it, it owns objects, or you may not drop it; a notice above says which\n"
        ));
    }
    slots.others.iter().for_each(|slot| text.push_str(&format!("{}\n", left(slot))));
    match &in_nats {
        Some(found) => found.lines().iter().for_each(|line| text.push_str(&format!("removed in {line}\n"))),
        None => text.push_str(&format!(
            "NATS is as it was: streams, consumers, and the bucket {} are there still\n",
            super::bucket::name(&config.source)
        )),
    }
    super::say(&text)
}

/// The slots of the database that decode by pgoutput.
struct Slots {
    /// Those that walhook made.
    ours: Vec<String>,
    /// The ones of them that a process streams from.
    in_use: Vec<(String, i32)>,
    /// Those that walhook does not know.
    others: Vec<String>,
}

impl Slots {
    async fn read(client: &Client, config: &Config) -> Result<Slots, tokio_postgres::Error> {
        let mut names = vec![config.slot.clone(), format!("{}_anchor", config.slot)];
        // An older walhook has the last one in public.
        for (table, slots) in [
            ("public.rule_cdc_status", "ARRAY[slot_name]"),
            ("walhook.rule_cdc_shard_names", "ARRAY[slot_name]"),
            ("walhook.rule_cdc_anchor_settings", "ARRAY[slot_name, anchor_name]"),
            ("public.rule_cdc_anchor_settings", "ARRAY[slot_name, anchor_name]"),
        ] {
            let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await?;
            if there.get(0) {
                let query = format!("SELECT s FROM {table}, unnest({slots}) s WHERE s IS NOT NULL");
                names.extend(client.query(&query, &[]).await?.iter().map(|row| row.get::<_, String>(0)));
            }
        }
        let mut slots = Slots { ours: Vec::new(), in_use: Vec::new(), others: Vec::new() };
        for row in client.query(SLOTS, &[&names]).await? {
            let (name, process): (String, Option<i32>) = (row.get(0), row.get(1));
            if !row.get::<_, bool>(2) {
                slots.others.push(name);
                continue;
            }
            slots.in_use.extend(process.map(|process| (name.clone(), process)));
            slots.ours.push(name);
        }
        Ok(slots)
    }
}

/// What to know of a slot that stays.
fn left(slot: &str) -> String {
    format!("slot {slot} stays: walhook does not know it; if it is of a walhook that never ran: {}", drop_slot(slot))
}

fn drop_slot(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", text::sql_literal(slot))
}

/// What goes from the database.
struct Inventory {
    relations: i64,
    functions: i64,
    publications: Vec<String>,
    roles: Vec<String>,
    slots: Vec<String>,
}

impl Inventory {
    async fn read(client: &Client, slots: &Slots) -> Result<Inventory, tokio_postgres::Error> {
        let query = "SELECT \
            (SELECT count(*) FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('walhook')) \
                AND relkind IN ('r', 'v') AND relname ~ '^rule_(webhook|nats|cdc)'), \
            (SELECT count(*) FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, to_regnamespace('walhook')) \
                AND obj_description(p.oid, 'pg_proc') LIKE 'walhook:%'), \
            ARRAY(SELECT p.pubname::text FROM pg_publication p WHERE obj_description(p.oid, 'pg_publication') LIKE 'walhook:%' ORDER BY 1)";
        let row = client.query_one(query, &[]).await?;
        Ok(Inventory {
            relations: row.get(0),
            functions: row.get(1),
            publications: row.get(2),
            roles: client.query_one(ROLES, &[]).await?.get(0),
            slots: slots.ours.clone(),
        })
    }

    /// One line.
    fn summary(&self) -> String {
        let Inventory { relations, functions, publications, roles, slots } = self;
        let named = |what: &str, names: &[String]| match names {
            [] => format!("no {what}"),
            names => format!("{what} {}", names.join(", ")),
        };
        format!(
            "{relations} tables and views, {functions} functions, {}, {}, {}",
            named("publications", publications),
            named("roles", roles),
            named("slots", slots)
        )
    }
}

/// Asks whoever sits there for the database's name.
fn ask(database: &str, going: &Inventory, in_nats: Option<&Findings>) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::config("uninstall: nobody can be asked, for standard input is no terminal")
            .hint("--yes goes on without asking; --print shows what would be done"));
    }
    let in_nats = match in_nats {
        Some(found) => found.lines().join("\n"),
        None => "In NATS nothing is removed. Afterwards walhook cannot tell any more what is its own there: --nats removes it too."
            .to_owned(),
    };
    super::say(&format!(
        "This removes for ever: {}, with all webhooks, links, history, dead letters, and events that are not published yet.\n\
         {in_nats}\nType the name of the database ({database}) to go on: ",
        going.summary()
    ))?;
    std::io::stdout().flush().map_err(|error| Error::unavailable("ask").caused_by(error))?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|error| Error::unavailable("read the answer").caused_by(error))?;
    if answer.trim() == database {
        return Ok(());
    }
    Err(Error::config("uninstall: the answer is not the database's name; nothing was changed"))
}

/// The same for a person to read and for `psql` to run. What is in NATS, `psql` cannot remove.
fn script(database: &str, going: &Inventory, slots: &Slots, in_nats: Option<&Findings>) -> String {
    // A name with a line break would leave the comment.
    let mut comments = vec![
        format!("walhook uninstall at {database}, to be run by psql -X, with no walhook running"),
        format!("removes {}", going.summary()),
    ];
    comments
        .extend(slots.in_use.iter().map(|(slot, process)| format!("process {process} streams from slot {slot} now")));
    comments.extend(slots.others.iter().map(|slot| left(slot)));
    match in_nats {
        Some(found) => {
            let lines = found.lines();
            comments.push(format!(
                "{} things in NATS, which `walhook uninstall --nats --yes` removes, and this script does not:",
                lines.len()
            ));
            comments.extend(lines);
        }
        None => comments.push("nothing in NATS; with --nats what is in NATS is listed too".to_owned()),
    }
    let comments: String = comments.iter().map(|line| format!("-- {}\n", text::one_line(line))).collect();
    let drops: String = slots.ours.iter().map(|slot| format!("{};\n", drop_slot(slot))).collect();
    format!(
        "{comments}\\set ON_ERROR_STOP on\nSET search_path = pg_catalog, pg_temp;\nBEGIN;\n{}\nCOMMIT;\n\n-- slots; those in use are \
         refused\n{drops}",
        UNINSTALL.trim_end()
    )
}
