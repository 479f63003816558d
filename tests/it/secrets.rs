//! A word to look for is the password, whichever way tenantd is told it, and everything that anybody could read is searched for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use tenantd::cli::Cli;

use crate::fleet::write_migrations;
use crate::life::files;
use crate::pages::Pages;
use crate::sql::{one, run};
use crate::support::count::{is_long, times};
use crate::support::daemon::Program;
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::process::Signal;
use crate::support::server::{TestServer, programs};

const SOON: Duration = Duration::from_mins(1);

/// In every password that tenantd is told here.
const WORD: &str = "swordfish";

/// Everything that was written anywhere, by where.
#[derive(Default)]
struct Written(BTreeMap<String, String>);

impl Written {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.entry(place.into()).or_default().push_str(&text.into());
    }

    async fn run(&mut self, program: &Program, how: &str, arguments: &[&str]) -> i32 {
        let output = program.run(arguments).await;
        let code = output.code();
        self.add(format!("{how}: {arguments:?}"), output.stdout + &output.stderr);
        code
    }
}

/// The server, which tells everything it knows from `tell_all` on; before that roles were made, with their passwords.
async fn tell_all(database: &TestDatabase) -> usize {
    let admin = database.superuser().await;
    for (name, value) in [
        ("log_statement", "all"),
        ("log_min_duration_statement", "0"),
        ("log_connections", "on"),
        ("log_disconnections", "on"),
        ("log_min_messages", "debug5"),
        ("log_error_verbosity", "verbose"),
        ("log_parameter_max_length_on_error", "-1"),
    ] {
        run(&admin, &format!("alter system set {name} = '{value}'")).await;
    }
    run(&admin, "select pg_reload_conf()").await;
    crate::support::until::until("the server tells all", SOON, async || {
        one::<String>(&admin, "show log_min_messages").await == "debug5"
    })
    .await;
    database.server().log().len()
}

/// `pg_dump` and `pg_restore` that write down what everybody, or every child of theirs, could read of them, before they become themselves.
fn talkative_programs(folder: &Path) -> String {
    for name in ["pg_dump", "pg_restore"] {
        let script = format!(
            "#!/bin/sh\ntr '\\0' '\\n' < /proc/$$/cmdline >> {0}/children\ntr '\\0' '\\n' < /proc/$$/environ >> {0}/children\n\
             exec {1}/{name} \"$@\"\n",
            folder.display(),
            programs().display()
        );
        fs::write(folder.join(name), script).expect("write it");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).expect("let it run");
    }
    folder.join("pg_dump").display().to_string()
}

/// The ways to be told the password, each with the settings for it.
fn ways(database: &TestDatabase, folder: &Path, backups: &Path) -> Vec<(&'static str, Program)> {
    let plain = |program: Program| {
        program
            .setting("log.level", "trace")
            .setting("backup.folder", &backups.display().to_string())
            .setting("backup.pg_dump", &talkative_programs(folder))
            .setting("tenant.migrations", &folder.join("migrations").display().to_string())
            .variable("PATH", &format!("{}:/usr/bin:/bin", programs().display()))
    };
    let url = database.url();
    let at = url.find("swordfish").expect("its password");
    let without = format!("{}{}", &url[..at - 1], &url[url.find('@').expect("the host")..]);
    assert!(!without.contains(WORD));
    let file = folder.join("password");
    fs::write(&file, TENANTD_PASSWORD).expect("write the password");
    let program = || plain(Program::for_database(database));
    let quoted = TENANTD_PASSWORD.replace(':', "\\:");
    fs::write(folder.join("pgpass"), format!("*:*:*:*:{quoted}\n")).expect("write the password");
    fs::set_permissions(folder.join("pgpass"), fs::Permissions::from_mode(0o600)).expect("for us alone");
    vec![
        ("url", program()),
        ("variable", program().setting("main.url", &without).variable("PGPASSWORD", TENANTD_PASSWORD)),
        ("file", program().setting("main.url", &without).setting("main.password_file", &file.display().to_string())),
        (
            "command",
            program()
                .setting("main.url", &without)
                .setting("main.password_command", &format!("printf %s '{TENANTD_PASSWORD}'")),
        ),
        ("DATABASE_URL", program().unset("main.url").variable("DATABASE_URL", &url)),
        (
            "passfile",
            program()
                .setting("main.url", &without)
                .variable("PGPASSFILE", &folder.join("pgpass").display().to_string()),
        ),
    ]
}

/// Every command, in an order in which each has something to do; `KEY` is a tenant.
const COMMANDS: [&[&str]; 39] = [
    &["setup", "--print-sql"],
    &["setup"],
    &["doctor"],
    &["status"],
    &["status", "--json"],
    &["list", "--size"],
    &["list", "--json"],
    &["show", "KEY"],
    &["show", "KEY", "--json"],
    &["url", "KEY"],
    &["psql", "KEY", "--", "-c", "\\! cat /proc/$PPID/cmdline /proc/$PPID/environ"],
    &["psql", "KEY", "--", "-c", "\\! env"],
    &["wait", "KEY"],
    &["lint"],
    &["migrate", "--dry-run"],
    &["migrate"],
    &["rollout", "show"],
    &["check"],
    &["adopt", "--orphans", "--yes"],
    &["sync", "KEY"],
    &["retry"],
    &["hold", "KEY"],
    &["release", "KEY"],
    &["release-lock"],
    &["backup", "KEY"],
    &["reset", "KEY", "--yes"],
    &["drop", "KEY"],
    &["restore", "KEY"],
    &["rollback", "KEY", "--to", "1", "--yes"],
    &["events"],
    &["events", "--json"],
    &["create", "5a0c6e5e-9a3f-4a53-8f39-0a6f1a6f0001"],
    &["config", "check"],
    &["config", "show"],
    &["config", "show", "--json"],
    &["completions", "bash"],
    &["man"],
    &["--sweep-once", "--json"],
    &["new", "something"],
];

/// What cannot succeed, and says why: nobody there, another password, another TLS, a URL that is none.
async fn fail(written: &mut Written, database: &TestDatabase, program: &Program) {
    // The password is the URL's, where there is one.
    let program = program.clone().unset("main.password_file").unset("main.password_command");
    let url = database.url();
    let nobody = url.replace(&database.server().address().to_string(), &Pages::reserve().listen());
    for (how, url) in [
        ("nobody listens", nobody),
        ("wrong password", url.replace("swordfish", "wrong-swordfish")),
        ("no such database", url.replace(database.name(), "nothing")),
        ("no TLS", url.replace("verify-full", "disable")),
        ("not encoded", url.replace("%3A", ":/?@")),
        ("keywords", format!("host=localhost user=tenantd password={TENANTD_PASSWORD} dbname=x")),
        ("another scheme", url.replace("postgresql", "postgresqll")),
    ] {
        let program = program.clone().setting("main.url", &url).setting("main.connect_timeout", "2s");
        let all = [&["status"][..], &["config", "show"], &["--sweep-once"], &["doctor"]];
        for arguments in &all[..times(2, 4)] {
            let code = written.run(&program, how, arguments).await;
            assert!(code != 0 || arguments[0] == "config", "{how} {arguments:?}");
        }
    }
}

/// A daemon at work, through a signup, a migration that fails, lost connections and a reload.
async fn daemon(written: &mut Written, how: &str, database: &TestDatabase, program: &Program, migrations: &Path) {
    let pages = Pages::reserve();
    let mut daemon = program
        .clone()
        .setting("http.listen", &pages.listen())
        .setting("sweep.every", "1s")
        .setting("spares.max", "2")
        .start();
    daemon.wait_for_line("tenantd is at work", SOON).await;
    database.sign_up(&format!("{how}@example.org")).await;
    daemon.wait_for_line("tenant ready", SOON).await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'tenantd:%' and datname = current_database()";
    run(&database.superuser().await, end).await;
    // Another each time: one that was given up is not tried again.
    write_migrations(migrations, &[("9999_fails.sql", &format!("select 1/0; -- {how}"))]);
    let lines = daemon.lines().len();
    daemon.hang_up();
    daemon.wait_for_line_after(lines, "division by zero", SOON).await;
    daemon.wait_for_line_after(lines, "rollout paused", SOON).await;
    fs::remove_file(migrations.join("9999_fails.sql")).expect("withdraw it");
    for page in ["/metrics", "/readyz", "/healthz", "/nothing"] {
        written.add(page, pages.get(page).await.map(|page| page.1).unwrap_or_default());
    }
    written.add("command line", fs::read_to_string(format!("/proc/{}/cmdline", daemon.id())).expect("read"));
    daemon.signal(Signal::TERM);
    daemon.ended(SOON).await;
    written.add(format!("{how}: log"), daemon.lines().join("\n"));
    written.add(format!("{how}: stdout"), daemon.stdout());
    daemon.kill();
    assert_eq!(written.run(program, how, &["rollout", "abort", "--version", "9999"]).await, 0, "{how}");
}

/// Every row of every table of the registry, and what the server says of statements.
async fn registry(database: &TestDatabase) -> String {
    let admin = database.superuser().await;
    let tables =
        "select format('select coalesce(string_agg(t::text, chr(10)), '''') from tenantd.%I t', relname) from pg_class
                  where relnamespace = 'tenantd'::regnamespace and relkind in ('r', 'v')";
    let mut text = String::new();
    for row in admin.query(tables, &[]).await.expect("list") {
        text += &one::<String>(&admin, row.get(0)).await;
    }
    text + &one::<String>(&admin, "select string_agg(a::text, chr(10)) from pg_stat_activity a").await
}

/// Goal: a password is in nothing that anybody reads but who was told it: logs at any level, the server's log at its most talkative, output, pages,
/// events, tables, names of files, arguments and variables of children. Method: six ways to be told it; every command, a daemon in trouble, every
/// way to fail to connect; one search over all of it.
#[tokio::test]
async fn no_password_is_found_anywhere() {
    let server: Arc<TestServer> = TestServer::builder().start();
    let database = TestDatabase::on(&server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (migrations, backups) = (folder.path().join("migrations"), folder.path().join("backups"));
    fs::create_dir(&migrations).expect("a folder");
    let back = ("0002_second.down.sql", "drop table second;");
    write_migrations(
        &migrations,
        &[("0001_first.sql", "create table first ();"), ("0002_second.up.sql", "create table second ();"), back],
    );
    let begin = tell_all(&database).await;
    let (mut written, mut key) = (Written::default(), String::new());
    for (number, (how, program)) in ways(&database, folder.path(), &backups).into_iter().enumerate() {
        let every = number == 0 || is_long();
        if every {
            assert_eq!(written.run(&program, how, &["setup"]).await, 0, "{how}");
            key = database.sign_up(&format!("{how} first@example.org")).await;
            assert_eq!(written.run(&program, how, &["--sweep-once"]).await, 0, "{how}");
        }
        let some: &[&[&str]] =
            &[&["backup", "KEY"], &["psql", "KEY", "--", "-c", "\\! cat /proc/$PPID/environ"], &["config", "show"]];
        for arguments in if every { &COMMANDS[..] } else { some } {
            let arguments: Vec<&str> =
                arguments.iter().map(|word| if *word == "KEY" { key.as_str() } else { word }).collect();
            let code = written.run(&program.clone().directory(folder.path()), how, &arguments).await;
            assert!(code == 0, "{how} {arguments:?}: {code}\n{}", written.0[&format!("{how}: {arguments:?}")]);
        }
        for made in files(&migrations).iter().filter(|file| file.display().to_string().contains("something")) {
            fs::remove_file(made).expect("remove what `new` made");
        }
        if every {
            daemon(&mut written, how, &database, &program, &migrations).await;
            fail(&mut written, &database, &program).await;
        }
    }
    let known: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let untried =
        known.iter().filter(|name| *name != "help" && !COMMANDS.iter().any(|arguments| arguments[0] == *name));
    assert_eq!(untried.count(), 0, "a command is not among those that are tried: {known:?}");

    written.add("registry", registry(&database).await);
    written.add("children", fs::read_to_string(folder.path().join("children")).expect("what the children had"));
    assert!(written.0["children"].contains("PGPASSFILE=/proc/self/fd/"));
    for file in files(&backups) {
        written.add("names of backups", file.display().to_string());
        written.add("backups", String::from_utf8_lossy(&fs::read(&file).expect("read")));
    }
    assert!(written.0.contains_key("backups"));
    written.add("the server's log", &server.log()[begin..]);
    let talkative =
        written.0["the server's log"].contains("DEBUG:") && written.0["url: log"].contains("\"level\":\"DEBUG\"");
    assert!(talkative, "the logs are talkative");
    for (place, text) in &written.0 {
        let found = text.lines().find(|line| line.contains(WORD));
        assert!(found.is_none(), "in {place}: {}", found.unwrap_or_default());
    }
    drop(written);
    database.finish().await;
}
