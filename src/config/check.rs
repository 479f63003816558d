//! From what was written to what is meant: every rule that a single value or two together must keep.

mod tenant;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::connection::Parts;
use super::layers::Merged;
use super::names::{name, table};
use super::problem::{Problem, nearest_word};
use super::raw::{self, Interval, Raw};
use super::rollout::{Share, rollout};
use super::sources::Variables;
use super::{
    Backup, Config, Connection, Drop, Handover, Log, LogFormat, MainSchema, OnDelete, Retry, Rollout, Signup, Sweep,
    Work,
};

/// Longer ones are slips of the pen, and would overflow sums of times.
const LONGEST: Duration = Duration::from_hours(365 * 24);
/// Backups may be kept for as long as the law asks for.
const LONGEST_KEEP: Duration = Duration::from_hours(100 * 365 * 24);
/// What was written a moment ago must be there when it is needed.
const SHORTEST_KEEP: Duration = Duration::from_hours(1);
/// A lease is renewed every third of its length, which must leave room for a slow server.
const SHORTEST_LEASE: Duration = Duration::from_secs(3);
/// Each one at work holds a connection.
const MOST_PARALLEL: u32 = 1000;
/// The doorbell and what else stands apart takes five; two for the pool, so that one statement that hangs does not stop all; three for
/// tenants, since a migration without a transaction takes a second one.
const FEWEST_CONNECTIONS: u32 = 10;
/// Where the tenants' schemas are in another database: looks at it take sessions of their own.
const MORE_ELSEWHERE: u32 = 2;
/// More than a server of this kind has.
const MOST_CONNECTIONS: u32 = 10_000;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const FORMATS: [(&str, LogFormat); 4] = [
    ("auto", LogFormat::Auto),
    ("text", LogFormat::Text),
    ("json", LogFormat::Json),
    ("journald", LogFormat::Journald),
];
const ON_DELETE: [(&str, OnDelete); 2] = [("keep", OnDelete::Keep), ("drop", OnDelete::Drop)];
const HANDOVERS: [(&str, Handover); 2] = [("daemon", Handover::Daemon), ("commit", Handover::Commit)];
/// Whoever needs a longer one is better served by a column of the table's own.
const LONGEST_CONDITION: usize = 4000;

/// The checked settings, and which of libpq's variables filled the connection; or every problem, `found` before included.
pub(super) fn check(
    raw: &Raw,
    merged: &Merged,
    variables: &Variables,
    found: Vec<Problem>,
) -> Result<(Config, BTreeSet<String>), Vec<Problem>> {
    let mut check = Check { merged, problems: found };
    let signup = check.signup(&raw.signup);
    let backup = check.backup(&raw.backup);
    let drop = Drop { grace: check.duration("drop.grace", &raw.drop.grace, Duration::ZERO) };
    let fewest = FEWEST_CONNECTIONS + if raw.tenant.database.is_some() { MORE_ELSEWHERE } else { 0 };
    let work = Work {
        parallel: check.parallel("work.parallel", raw.work.parallel),
        connections: check.between("work.connections", raw.work.connections, fewest, MOST_CONNECTIONS),
        lease: check.duration("work.lease", &raw.work.lease, SHORTEST_LEASE),
        shutdown: check.duration("work.shutdown", &raw.work.shutdown, Duration::ZERO),
    };
    let sweep = Sweep {
        every: check.duration("sweep.every", &raw.sweep.every, Duration::from_secs(1)),
        parallel: check.parallel("sweep.parallel", raw.sweep.parallel),
        verify_every: check.duration("sweep.verify_every", &raw.sweep.verify_every, Duration::from_secs(1)),
    };
    let rollout = check.rollout(&raw.rollout);
    let retry = check.retry(&raw.retry);
    let http = check.listen(&raw.http.listen);
    let log = Log { format: check.word("log.format", &raw.log.format, &FORMATS), level: check.level(&raw.log.level) };
    let main_schema = check.main_schema(&raw.main);
    let main = check.main(&raw.main, variables);
    let main_database = main.as_ref().map_or("", |(main, _)| main.database());
    let names = check.names(&raw.tenant, main_database);
    let tenant = check.tenant(&raw.tenant, names, main_database);
    let spares = check.spares(&raw.spares, signup.handover, tenant.isolation);
    match main {
        Some((main, used)) if check.problems.is_empty() => Ok((
            Config { main, main_schema, signup, tenant, spares, backup, drop, work, sweep, rollout, retry, http, log },
            used,
        )),
        _ => Err(check.problems),
    }
}

struct Check<'a> {
    merged: &'a Merged,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, key: &str, reason: impl Into<String>) {
        self.problems.push(Problem::new(key, self.merged.place(key), reason));
    }

    /// Whether nothing of `table` was refused so far, so that its values may be judged together.
    fn sound(&self, table: &str) -> bool {
        let in_table = |problem: &Problem| problem.key.split('.').next() == Some(table);
        !self.problems.iter().any(in_table)
    }

    fn main(&mut self, raw: &raw::Main, variables: &Variables) -> Option<(Connection, BTreeSet<String>)> {
        let connect_timeout = self.duration("main.connect_timeout", &raw.connect_timeout, Duration::from_millis(1));
        for (key, text) in [
            ("main.url", &raw.url),
            ("main.password_command", &raw.password_command),
            ("main.sslmode", &raw.sslmode),
            ("main.sslrootcert", &raw.sslrootcert),
        ] {
            self.filled(key, text.as_deref().map(str::trim));
        }
        for (key, path) in
            [("main.password_file", &raw.password_file), ("main.sslcert", &raw.sslcert), ("main.sslkey", &raw.sslkey)]
        {
            self.path(key, path.as_ref());
        }
        if raw.password_file.is_some() && raw.password_command.is_some() {
            let other = self.merged.place("main.password_file");
            let reason = format!("main.password_file ({other}) is set too; keep the one that is meant");
            self.refuse("main.password_command", reason);
        }
        if !self.sound("main") {
            return None;
        }
        let used = RefCell::new(BTreeSet::new());
        let environment = |name: &str| {
            let text = variables.text(name)?;
            used.borrow_mut().insert(name.to_owned());
            Some(text.to_owned())
        };
        let parts = Parts {
            url: raw.url.as_deref(),
            environment: &environment,
            password_file: raw.password_file.clone(),
            password_command: raw.password_command.clone(),
            sslmode: raw.sslmode.clone(),
            sslrootcert: raw.sslrootcert.clone(),
            sslcert: raw.sslcert.clone(),
            sslkey: raw.sslkey.clone(),
            connect_timeout,
        };
        match Connection::from_parts(&parts) {
            Ok(connection) => Some((connection, used.into_inner())),
            Err(error) => {
                let hint = error.advice().map(|hint| format!("; {hint}")).unwrap_or_default();
                let place = if raw.url.is_some() {
                    format!("main.url: {}", self.merged.place("main.url"))
                } else {
                    "main.url is not set".into()
                };
                self.problems.push(Problem::new("[main]", place, format!("{}{hint}", error.chain())));
                None
            }
        }
    }

    fn main_schema(&mut self, raw: &raw::Main) -> MainSchema {
        self.path("main.migrations", raw.migrations.as_ref());
        let owner = raw.owner.as_ref().map(|owner| self.role("main.owner", owner));
        MainSchema { migrations: raw.migrations.clone(), owner }
    }

    fn signup(&mut self, raw: &raw::Signup) -> Signup {
        let (schema, table) = match table(&raw.table) {
            Ok(parts) => parts,
            Err(reason) => {
                self.refuse("signup.table", reason);
                Default::default()
            }
        };
        Signup {
            schema,
            table,
            id_column: self.name("signup.id_column", &raw.id_column),
            when: raw.when.as_deref().map(|when| self.condition("signup.when", when)),
            notify: raw.notify,
            poll: self.duration("signup.poll", &raw.poll, Duration::from_millis(10)),
            handover: self.word("signup.handover", &raw.handover, &HANDOVERS),
            backfill: raw.backfill,
            on_delete: self.word("signup.on_delete", &raw.on_delete, &ON_DELETE),
        }
    }

    fn rollout(&mut self, raw: &raw::Rollout) -> Rollout {
        rollout(raw.canary, &raw.waves, &raw.max_failures).unwrap_or_else(|(key, reason)| {
            self.refuse(key, reason);
            Rollout { canary: 0, waves: Vec::new(), max_failures: Share::Number(0) }
        })
    }

    fn retry(&mut self, raw: &raw::Retry) -> Retry {
        let first = self.duration("retry.first", &raw.first, Duration::from_millis(1));
        let max = self.duration("retry.max", &raw.max, Duration::from_millis(1));
        self.at_least_one("retry.attempts", raw.attempts);
        if self.sound("retry") && max < first {
            let place = self.merged.place("retry.first");
            self.refuse(
                "retry.max",
                format!("shorter than retry.first ({place}): the longest delay is at least the first"),
            );
        }
        Retry { first, max, attempts: raw.attempts }
    }

    fn backup(&mut self, raw: &raw::Backup) -> Backup {
        self.path("backup.folder", raw.folder.as_ref());
        self.path("backup.pg_dump", Some(&raw.pg_dump));
        let keep = raw.keep.as_ref().map(|keep| {
            if keep.value < SHORTEST_KEEP {
                self.refuse("backup.keep", "too short: at least 1 hour");
            } else if keep.value > LONGEST_KEEP {
                self.refuse("backup.keep", "too long: at most 36500 days; leave it out to keep them for ever");
            }
            keep.value
        });
        if raw.before_migrate && raw.folder.is_none() {
            self.refuse("backup.before_migrate", "backup.folder is not set: there is nowhere to write to");
        }
        Backup { folder: raw.folder.clone(), keep, before_migrate: raw.before_migrate, pg_dump: raw.pg_dump.clone() }
    }

    fn duration(&mut self, key: &str, written: &Interval, least: Duration) -> Duration {
        if written.value < least {
            self.refuse(key, format!("too short: at least {least:?}"));
        } else if written.value > LONGEST {
            self.refuse(key, "too long: at most 365 days");
        }
        written.value
    }

    fn parallel(&mut self, key: &str, number: u32) -> usize {
        self.between(key, number, 1, MOST_PARALLEL)
    }

    fn between(&mut self, key: &str, number: u32, least: u32, most: u32) -> usize {
        if !(least..=most).contains(&number) {
            self.refuse(key, format!("{number} is not between {least} and {most}"));
        }
        number as usize
    }

    fn at_least_one(&mut self, key: &str, number: u32) {
        if number == 0 {
            self.refuse(key, "0 would stop all work: at least 1");
        }
    }

    fn filled(&mut self, key: &str, text: Option<&str>) {
        if text == Some("") {
            self.refuse(key, "empty: leave it out, or give it a value");
        }
    }

    /// What it means only the server can tell.
    fn condition(&mut self, key: &str, written: &str) -> String {
        let condition = written.trim();
        self.filled(key, Some(condition));
        if condition.len() > LONGEST_CONDITION {
            self.refuse(key, format!("too long: at most {LONGEST_CONDITION} bytes"));
        } else if condition.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            self.refuse(key, "it holds control characters");
        }
        condition.to_owned()
    }

    fn path(&mut self, key: &str, path: Option<&PathBuf>) {
        self.filled(key, path.and_then(|path| path.to_str()));
    }

    fn role(&mut self, key: &str, written: &str) -> String {
        let role = self.name(key, written);
        if role == "public" || role == "none" {
            self.refuse(key, format!("{role:?} cannot be a role's name; name the roles one by one"));
        }
        role
    }

    fn name(&mut self, key: &str, written: &str) -> String {
        match name(written) {
            Ok(name) => name,
            Err(reason) => {
                self.refuse(key, reason);
                String::new()
            }
        }
    }

    fn listen(&mut self, written: &str) -> Option<SocketAddr> {
        if written.is_empty() {
            return None;
        }
        let address = written.parse();
        if address.is_err() {
            let reason =
                format!("{written:?} is no address and port, such as \"127.0.0.1:9466\"; \"\" listens nowhere");
            self.refuse("http.listen", reason);
        }
        address.ok()
    }

    /// The value that the word `written` stands for; the first of `words` after a refusal.
    fn word<T: Copy>(&mut self, key: &str, written: &str, words: &[(&str, T)]) -> T {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
            return *value;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.refuse(key, not_among(written, &known));
        words[0].1
    }

    /// A lone word must be a level: the filter would take any other for the name of a module, and log nothing else.
    fn level(&mut self, written: &str) -> String {
        let lone = !written.contains(['=', ',', '[']);
        if lone && !LEVELS.contains(&written.to_lowercase().as_str()) {
            self.refuse("log.level", not_among(written, &LEVELS));
        } else if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(written) {
            self.refuse("log.level", format!("{written:?} is no level and no list of directives: {error}"));
        }
        written.to_owned()
    }
}

fn not_among(written: &str, words: &[&str]) -> String {
    let meant = nearest_word(written, words).map(|word| format!("; did you mean {word:?}?")).unwrap_or_default();
    format!("{written:?} is none of {}{meant}", words.join(", "))
}
