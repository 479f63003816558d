//! From what was read to what it means: the rules of doctor. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Check, Diagnosis, Verdict};
use crate::commands::output::{bytes, counted, duration};
use crate::config::connection::SslMode;
use crate::config::{Config, Strategy};
use crate::error::Result;
use crate::registry::doctor::{Collation, Facts};
use crate::tenant::TEMPLATE_PREFIX;

/// A fresh database of Postgres's own, where no template tells better.
pub(super) const EMPTY_DATABASE: i64 = 7_500_000;

/// Clocks that differ by more are worth a word.
const CLOCKS_APART: Duration = Duration::from_secs(5);

/// The shortest time that autovacuum leaves between two databases.
const NAP_OF_ONE: Duration = Duration::from_millis(110);

/// A clone of a small template that takes longer tells of a slow disk.
const SLOW_CLONE: Duration = Duration::from_secs(5);

/// From this fill of the queue on signups do not ring.
const QUEUE_LOUD: f64 = 0.5;

/// With fewer connections than this the daemon does not begin.
const FEWEST_CONNECTIONS: i64 = 10;

pub(super) fn tls(facts: &Facts, config: &Config) -> Diagnosis {
    let endpoints = &config.main.endpoints;
    let weakest = endpoints.iter().map(|endpoint| endpoint.mode).min().unwrap_or(SslMode::Disable);
    let local = endpoints.iter().all(|endpoint| endpoint.place.is_local());
    let full = "set main.sslmode = \"verify-full\", and main.sslrootcert to the authority that signed the server's certificate";
    let Some(tls) = &facts.tls else {
        return match (facts.by_socket, local) {
            (true, _) => Diagnosis::ok(Check::Tls, "not needed: the connection goes through a socket"),
            (_, true) => Diagnosis::ok(Check::Tls, "not encrypted, and on this machine alone"),
            _ => Diagnosis::warning(
                Check::Tls,
                "the connection is not encrypted: whoever is between reads and changes it",
                full,
            ),
        };
    };
    match weakest {
        SslMode::VerifyFull => Diagnosis::ok(Check::Tls, format!("{tls}; the certificate is verified in full")),
        _ if local => Diagnosis::ok(Check::Tls, format!("{tls}; on this machine alone")),
        SslMode::VerifyCa => Diagnosis::warning(
            Check::Tls,
            format!("{tls}; any host with a certificate of the authority's is taken for the server"),
            full,
        ),
        _ => Diagnosis::warning(
            Check::Tls,
            format!("{tls}; the host's name is not verified: whoever is between may be taken for the server"),
            full,
        ),
    }
}

/// A fault of some releases: of each of its major versions the first minor one without it.
struct Fault {
    mended: &'static [(i32, i32)],
    text: &'static str,
}

impl Fault {
    fn stands_in(&self, version: i32) -> bool {
        let (major, minor) = (version / 10_000, version % 10_000);
        self.mended.iter().any(|(of, mended)| major == *of && minor < *mended)
    }
}

const FAULTS: [Fault; 3] = [
    Fault {
        mended: &[(15, 6)],
        text: "a database copied by the log may be corrupt (before 15.3), and a base backup taken meanwhile cannot be restored",
    },
    Fault {
        mended: &[(13, 12), (14, 9), (15, 4)],
        text: "an interrupted DROP DATABASE leaves a corrupt database that takes connections",
    },
    Fault {
        mended: &[(13, 23), (14, 20), (15, 15), (16, 11), (17, 7), (18, 1)],
        text: "LISTEN may fail after a VACUUM, and notifications may be lost: tenantd polls then",
    },
];

pub(super) fn server(facts: &Facts, config: &Config) -> Diagnosis {
    let (version, text) = (facts.version, &facts.version_text);
    if version < 130_000 {
        return Diagnosis::wrong(
            Check::Server,
            format!("PostgreSQL {text} is older than tenantd can work with"),
            "upgrade the server to 13 or later",
        );
    }
    let faults: Vec<&str> = FAULTS.iter().filter(|fault| fault.stands_in(version)).map(|fault| fault.text).collect();
    let what = format!("PostgreSQL {text}: {}", faults.join("; "));
    if FAULTS[0].stands_in(version) && config.tenant.strategy == Strategy::WalLog {
        return Diagnosis::wrong(
            Check::Server,
            what,
            "set tenant.strategy = \"auto\", and take the newest minor release",
        );
    }
    if faults.is_empty() {
        return Diagnosis::ok(Check::Server, format!("PostgreSQL {text}"));
    }
    Diagnosis::warning(Check::Server, what, "take the newest minor release")
}

pub(super) fn writes(facts: &Facts) -> Diagnosis {
    if facts.standby {
        return Diagnosis::wrong(
            Check::Writes,
            "the server is a standby and takes no writes",
            "main.url must name the primary",
        );
    }
    if facts.read_only {
        return Diagnosis::wrong(
            Check::Writes,
            "transactions only read unless they say otherwise (default_transaction_read_only)",
            "alter role … set default_transaction_read_only = off, or the same for the database",
        );
    }
    if !facts.synchronous_standbys.is_empty() {
        return Diagnosis::warning(
            Check::Writes,
            format!(
                "each commit waits for a synchronous standby ({}): while that is gone, signups and tenants wait too",
                facts.synchronous_standbys
            ),
            "keep more than one synchronous standby; tenantd does not ring while NOTIFY is stuck",
        );
    }
    Diagnosis::ok(Check::Writes, format!("takes writes; wal_level = {}", facts.wal_level))
}

pub(super) fn notify(facts: &Facts, config: &Config) -> Diagnosis {
    if facts.queue >= QUEUE_LOUD {
        return Diagnosis::wrong(
            Check::Notify,
            format!(
                "the server's queue of notifications is {:.0} % full: a full one refuses commits",
                facts.queue * 100.0
            ),
            "end the session that listens and does not read: select pid, usename, xact_start from pg_stat_activity \
             where state like 'idle in%' order by xact_start",
        );
    }
    match (config.signup.notify, facts.prepared_transactions) {
        (Some(false), _) => Diagnosis::ok(Check::Notify, "signups do not ring, by signup.notify; they are polled for"),
        (_, 0) => Diagnosis::ok(Check::Notify, "signups ring while a daemon sleeps"),
        (None, prepared) => Diagnosis::ok(
            Check::Notify,
            format!(
                "signups are polled for, since two-phase commits are possible (max_prepared_transactions = {prepared})"
            ),
        ),
        (Some(true), prepared) => Diagnosis::warning(
            Check::Notify,
            format!(
                "a signup in a two-phase commit fails if it rang, and max_prepared_transactions = {prepared} allows such"
            ),
            "leave signup.notify unset, unless no application prepares transactions",
        ),
    }
}

pub(super) fn collation(found: &[Collation], version: i32) -> Diagnosis {
    if version < 150_000 {
        return Diagnosis::ok(Check::Collation, "servers before 15 keep no collation version of a database");
    }
    let Some(Collation { database, recorded, actual }) = found.first() else {
        return Diagnosis::ok(Check::Collation, "every database has the server's collation version");
    };
    let more = if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
    let text =
        format!("database {database:?} was made with collation version {recorded}, the server has {actual}{more}");
    let advice =
        format!("in each: reindex database {database:?}; alter database {database:?} refresh collation version");
    if found.iter().any(|found| found.database.starts_with(TEMPLATE_PREFIX)) {
        return Diagnosis::wrong(
            Check::Collation,
            format!("{text}; a template among them cannot be cloned"),
            "tenantd builds another template by itself; for the others reindex, then alter database … refresh collation version",
        );
    }
    Diagnosis::warning(Check::Collation, text + ": indexes of text may be in the wrong order", advice)
}

pub(super) fn connections(facts: &Facts, config: &Config) -> Diagnosis {
    let wanted = i64::try_from(config.work.connections).unwrap_or(i64::MAX);
    let free = (facts.connections - facts.connections_used).max(0);
    let (may_have, of) = match facts.connections_limit {
        Some(limit) if limit < free => (limit, "by a CONNECTION LIMIT of the role or the database"),
        _ => (free, "free on the server"),
    };
    let text = format!("{} {of}, and work.connections is {wanted}", counted(may_have, "connection"));
    let advice = "raise max_connections or the limit, or lower work.connections";
    match may_have {
        few if few < FEWEST_CONNECTIONS => Diagnosis::wrong(Check::Connections, text, advice),
        few if few < wanted => Diagnosis::warning(Check::Connections, text, advice),
        _ => Diagnosis::ok(Check::Connections, text),
    }
}

/// `tenants`: those that have a database; `None` without a registry.
pub(super) fn room(facts: &Facts, tenants: Option<i64>, config: &Config) -> Diagnosis {
    let max = i64::from(config.tenant.max);
    let there = tenants.unwrap_or_default();
    let text = format!(
        "{} of {max} (tenant.max), {} on the server",
        counted(there, "tenant"),
        counted(facts.databases, "database")
    );
    match there {
        there if there >= max => Diagnosis::wrong(
            Check::Room,
            format!("{text}: new ones wait"),
            "raise tenant.max if the server has room for more",
        ),
        there if there * 10 >= max * 8 => {
            Diagnosis::warning(Check::Room, text, "raise tenant.max in time, if the server has room for more")
        }
        _ => Diagnosis::ok(Check::Room, text),
    }
}

/// `free`: bytes on the disk of the data; `each`: bytes of one new tenant.
pub(super) fn disk(free: i64, each: i64, tenants: Option<i64>, config: &Config) -> Diagnosis {
    let left = (i64::from(config.tenant.max) - tenants.unwrap_or_default()).max(0);
    let need = left.saturating_mul(each);
    let unsigned = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let text = format!(
        "{} free where the data are; {} more up to tenant.max take {}",
        bytes(unsigned(free)),
        counted(left, "tenant"),
        bytes(unsigned(need))
    );
    let advice = "give the server a larger disk, or lower tenant.max: a full disk stops the application, too";
    if free < each.saturating_mul(10) {
        return Diagnosis::wrong(Check::Disk, text, advice);
    }
    if free < need { Diagnosis::warning(Check::Disk, text, advice) } else { Diagnosis::ok(Check::Disk, text) }
}

/// The server's clock beside ours, which was read before and after.
pub(super) fn clock(server: Timestamp, before: Timestamp, after: Timestamp) -> Diagnosis {
    let apart = if server < before {
        before.duration_since(server)
    } else if server > after {
        server.duration_since(after)
    } else {
        return Diagnosis::ok(Check::Clock, "the server's clock is ours");
    };
    let apart = apart.unsigned_abs();
    let text = format!("the server's clock and this machine's are {} apart", duration(apart));
    if apart < CLOCKS_APART {
        return Diagnosis::ok(Check::Clock, text);
    }
    Diagnosis::warning(
        Check::Clock,
        text,
        "tenantd goes by the server's; certificates and passwords that expire go by this machine's: set both by NTP",
    )
}

pub(super) fn autovacuum(facts: &Facts) -> Diagnosis {
    if !facts.autovacuum {
        return Diagnosis::warning(
            Check::Autovacuum,
            "autovacuum is switched off",
            "switch it on: alter system set autovacuum = on; select pg_reload_conf()",
        );
    }
    let (dead, live) = facts.catalogue_rows;
    if dead > 10_000 && dead > live * 5 {
        return Diagnosis::warning(
            Check::Autovacuum,
            format!("pg_database holds {dead} dead rows beside {live}: each connect reads them"),
            "as an administrator: vacuum pg_database; and look for a transaction that stays open",
        );
    }
    let round = NAP_OF_ONE * u32::try_from(facts.databases).unwrap_or(u32::MAX);
    if round > facts.naptime.max(Duration::from_secs(1)) * 5 {
        return Diagnosis::warning(
            Check::Autovacuum,
            format!(
                "{} take autovacuum {} a round: it cannot keep up with autovacuum_naptime",
                counted(facts.databases, "database"),
                duration(round)
            ),
            "spread the tenants over more servers; until then watch age(datfrozenxid)",
        );
    }
    Diagnosis::ok(
        Check::Autovacuum,
        format!("on; a round over all databases takes {}", duration(round.max(facts.naptime))),
    )
}

/// `from`: the database that was copied; `None`: it was a schema.
pub(super) fn cloned(took: Duration, from: Option<&str>) -> Diagnosis {
    let made = from.map_or_else(|| "schema was made".to_owned(), |from| format!("database was made from {from}"));
    let text = format!("a scratch {made} in {}, and dropped", duration(took));
    if took < SLOW_CLONE {
        return Diagnosis::ok(Check::Clone, text);
    }
    let spares = from.map_or("", |_| ": keep spares (spares.min), so that signups do not wait for it");
    Diagnosis::warning(Check::Clone, text, format!("the server's disk is slow, or busy{spares}"))
}

/// `looked`: whether the programs are there and new enough.
pub(super) fn pg_dump(looked: &Result<()>, config: &Config) -> Diagnosis {
    match (looked, &config.backup.folder) {
        (Ok(()), Some(folder)) => {
            Diagnosis::ok(Check::PgDump, format!("knows the server; backups go to {}", folder.display()))
        }
        (Ok(()), None) => Diagnosis::ok(Check::PgDump, "knows the server; no backups are set up (backup.folder)"),
        (Err(error), Some(_)) => Diagnosis::of(Check::PgDump, Verdict::Wrong, error),
        (Err(error), None) => Diagnosis::of(Check::PgDump, Verdict::Warning, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::error::Error;

    fn config(more: &[(&str, &str)]) -> Config {
        let mut sources = Sources::of([("PGUSER", "tenantd"), ("PGDATABASE", "app"), ("PGHOST", "localhost")]);
        sources.flags.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        load(&sources).unwrap().config
    }

    fn facts() -> Facts {
        Facts {
            version: 150_018,
            version_text: "15.18".to_owned(),
            wal_level: "replica".to_owned(),
            autovacuum: true,
            naptime: Duration::from_mins(1),
            connections: 97,
            databases: 4,
            ..Facts::default()
        }
    }

    fn verdicts<T>(table: Vec<(Verdict, T)>, of: impl Fn(&T) -> Diagnosis) {
        for (nth, (verdict, given)) in table.into_iter().enumerate() {
            let found = of(&given);
            assert_eq!(found.verdict, verdict, "{nth}: {found:?}");
            let advised = found.advice.is_some();
            assert_eq!(advised, matches!(verdict, Verdict::Wrong | Verdict::Warning), "{nth}: {found:?}");
        }
    }

    #[test]
    fn versions_not_to_trust_are_named() {
        let table = vec![
            (Verdict::Wrong, 120_022),
            (Verdict::Warning, 130_011),
            (Verdict::Ok, 130_023),
            (Verdict::Warning, 150_002),
            (Verdict::Warning, 150_005),
            (Verdict::Warning, 150_014),
            (Verdict::Ok, 150_015),
            (Verdict::Warning, 170_006),
            (Verdict::Ok, 180_001),
            (Verdict::Ok, 190_000),
        ];
        verdicts(table, |version| server(&Facts { version: *version, ..facts() }, &config(&[])));
        let by_log = config(&[("tenant.strategy", "wal_log")]);
        assert_eq!(server(&Facts { version: 150_005, ..facts() }, &by_log).verdict, Verdict::Wrong);
        assert!(server(&Facts { version: 150_005, ..facts() }, &config(&[])).text.contains("copied by the log"));
    }

    #[test]
    fn tls_is_judged_by_the_weakest_host() {
        let remote = |mode: &str| config(&[("main.url", &format!("postgresql://t@db.example.com/app?sslmode={mode}"))]);
        let tls = |of: Option<&str>| Facts { tls: of.map(str::to_owned), ..facts() };
        let table = vec![
            (Verdict::Ok, (remote("verify-full"), tls(Some("TLSv1.3")))),
            (Verdict::Warning, (remote("verify-ca"), tls(Some("TLSv1.3")))),
            (Verdict::Warning, (remote("require"), tls(Some("TLSv1.3")))),
            (Verdict::Warning, (remote("disable"), tls(None))),
            (Verdict::Ok, (config(&[]), tls(None))),
            (Verdict::Ok, (config(&[]), tls(Some("TLSv1.3")))),
            (Verdict::Ok, (remote("disable"), Facts { by_socket: true, ..tls(None) })),
        ];
        verdicts(table, |(config, facts)| super::tls(facts, config));
    }

    #[test]
    fn what_keeps_commits_from_coming_is_told() {
        let table = vec![
            (Verdict::Ok, facts()),
            (Verdict::Wrong, Facts { standby: true, ..facts() }),
            (Verdict::Wrong, Facts { read_only: true, ..facts() }),
            (Verdict::Warning, Facts { synchronous_standbys: "*".to_owned(), ..facts() }),
        ];
        verdicts(table, writes);
        let (asked, not, unset) =
            (config(&[("signup.notify", "true")]), config(&[("signup.notify", "false")]), config(&[]));
        let prepared = Facts { prepared_transactions: 9, ..facts() };
        let table = vec![
            (Verdict::Ok, (&asked, facts())),
            (Verdict::Warning, (&asked, prepared.clone())),
            (Verdict::Ok, (&unset, prepared.clone())),
            (Verdict::Ok, (&not, prepared)),
            (Verdict::Wrong, (&unset, Facts { queue: 0.5, ..facts() })),
        ];
        verdicts(table, |(config, facts)| notify(facts, config));
    }

    #[test]
    fn room_is_told_before_it_is_gone() {
        let settings = config(&[("tenant.max", "100"), ("work.connections", "32")]);
        let table = vec![
            (Verdict::Ok, facts()),
            (Verdict::Warning, Facts { connections_used: 70, ..facts() }),
            (Verdict::Wrong, Facts { connections_used: 97, ..facts() }),
            (Verdict::Warning, Facts { connections_limit: Some(31), ..facts() }),
            (Verdict::Ok, Facts { connections_limit: Some(32), ..facts() }),
        ];
        verdicts(table, |facts| connections(facts, &settings));
        let table = vec![
            (Verdict::Ok, None),
            (Verdict::Ok, Some(79)),
            (Verdict::Warning, Some(80)),
            (Verdict::Wrong, Some(100)),
        ];
        verdicts(table, |tenants| room(&facts(), *tenants, &settings));
        let table = vec![(Verdict::Ok, 1_000), (Verdict::Warning, 999), (Verdict::Wrong, 99)];
        verdicts(table, |free| disk(*free, 10, None, &settings));
    }

    #[test]
    fn autovacuum_is_judged_by_the_number_of_databases() {
        let table = vec![
            (Verdict::Ok, facts()),
            (Verdict::Ok, Facts { databases: 2_000, ..facts() }),
            (Verdict::Warning, Facts { databases: 10_000, ..facts() }),
            (Verdict::Warning, Facts { autovacuum: false, ..facts() }),
            (Verdict::Warning, Facts { catalogue_rows: (10_001, 2_000), ..facts() }),
            (Verdict::Ok, Facts { catalogue_rows: (10_001, 9_000), ..facts() }),
        ];
        verdicts(table, autovacuum);
    }

    #[test]
    fn collations_clocks_and_programs() {
        let other =
            |name: &str| Collation { database: name.to_owned(), recorded: "1".to_owned(), actual: "2".to_owned() };
        let table = vec![
            (Verdict::Ok, (vec![], 150_018)),
            (Verdict::Ok, (vec![], 140_001)),
            (Verdict::Warning, (vec![other("app")], 150_018)),
            (Verdict::Wrong, (vec![other("app"), other("tenantd_template_x")], 150_018)),
        ];
        verdicts(table, |(found, version)| collation(found, *version));
        let at = |second: i64| Timestamp::from_second(1_000 + second).unwrap();
        let table =
            vec![(Verdict::Ok, 0), (Verdict::Ok, 4), (Verdict::Ok, -4), (Verdict::Warning, 9), (Verdict::Warning, -6)];
        verdicts(table, |second| clock(at(*second), at(0), at(1)));
        let missing = || Err(Error::usage("start pg_dump").hint("install it"));
        let (set, unset) = (config(&[("backup.folder", "/var/backups")]), config(&[]));
        let table = vec![
            (Verdict::Ok, (Ok(()), &set)),
            (Verdict::Ok, (Ok(()), &unset)),
            (Verdict::Wrong, (missing(), &set)),
            (Verdict::Warning, (missing(), &unset)),
        ];
        verdicts(table, |(looked, config)| pg_dump(looked, config));
        assert_eq!(cloned(Duration::from_secs(6), Some("template0")).verdict, Verdict::Warning);
        assert_eq!(cloned(Duration::from_millis(40), None).verdict, Verdict::Ok);
    }
}
