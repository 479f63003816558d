//! A rollout whose driver loses an answer: the next sweep goes on, and no tenant is migrated twice or left out.

use crate::fleet::{execute, write_migrations};
use crate::sql::one;
use crate::support::count::is_long;
use crate::support::daemon::Program;
use crate::support::database::TestDatabase;
use crate::support::proxy::{Mode, Proxy};

/// The points that this test comes to.
pub(super) const POINTS: &[&str] = &["CanariesPassed", "WaveEnded", "RolloutDone", "RolloutPaused"];

/// Each with a part of the statement before it.
const CASES: [(&str, &str); 3] = [
    ("CanariesPassed", "passed_at = coalesce(passed_at, now()),\n             seconds"),
    ("RolloutDone", "set state = 'done'"),
    // A wave's last record.
    ("WaveEnded", "update tenantd.tenant t set state = 'ready', work = 'idle', failures = 0"),
];

/// Goal: a rollout that loses the answer to any step of its own goes on and ends; a paused one stays paused. Method: five tenants and a new
/// migration for each case; a sweep through a proxy that loses the answer, then one that does not. Last, a migration that fails everywhere.
#[tokio::test]
async fn a_rollout_that_lost_an_answer_goes_on() {
    let database = TestDatabase::new().await;
    let proxy = Proxy::start(database.server().address()).await;
    let folder = tempfile::tempdir().expect("a folder");
    write_migrations(folder.path(), &[("0001_note.sql", "create table note (id int)")]);
    let direct = Program::for_database(&database)
        .setting("tenant.migrations", &folder.path().display().to_string())
        .setting("rollout.canary", "2")
        .setting("log.level", "error");
    let through = direct.clone().setting("main.url", &proxy.plain_url(&database.url()));
    assert_eq!(direct.run(&["setup"]).await.code(), 0);
    for user in 0..5 {
        database.sign_up(&format!("{user}@example.org")).await;
    }
    assert_eq!(direct.run(&["--sweep-once"]).await.code(), 0);
    let client = database.superuser().await;
    let number = if is_long() { CASES.len() } else { 2 };
    for (nth, (point, statement)) in CASES[..number].iter().enumerate() {
        let file = format!("{:04}_more.sql", nth + 2);
        write_migrations(folder.path(), &[(&file, &format!("alter table note add more{nth} int"))]);
        proxy.set(Mode::LoseAnswer(statement));
        let lossy = through.run(&["--sweep-once"]).await;
        assert_eq!(proxy.lost(), nth + 1, "{point}: {lossy:?}");
        execute(&database, "update tenantd.rollout set leased_until = now() where leased_until is not null").await;
        assert_eq!(direct.run(&["release-lock"]).await.code(), 0, "{point}");
        let swept = direct.run(&["--sweep-once"]).await;
        assert_eq!(swept.code(), 0, "{point}: {swept:?}");
        let done = format!(
            "select count(*) filter (where version = {} and work = 'idle' and failures = 0 and leased_until is null) from tenantd.tenant",
            nth + 2
        );
        assert_eq!(one::<i64>(&client, &done).await, 5, "{point}: {swept:?}");
        let running = "select count(*) from tenantd.rollout where state not in ('done', 'aborted')";
        assert_eq!(one::<i64>(&client, running).await, 0, "{point}");
    }

    // It holds for a template made anew, and for no tenant that has a row.
    write_migrations(
        folder.path(),
        &[("0009_breaks.sql", "do $$ begin if exists (select from note) then raise 'a row'; end if; end $$")],
    );
    for name in database.tenant_databases().await {
        database.tenant_superuser(&name).await.batch_execute("insert into note (id) values (1)").await.expect("a row");
    }
    proxy.set(Mode::LoseAnswer("set state = 'paused'"));
    let lossy = through.run(&["--sweep-once"]).await;
    assert_eq!(proxy.lost(), number + 1, "{lossy:?}");
    assert_ne!(lossy.code(), 0, "{lossy:?}");
    let paused = "select count(*) from tenantd.rollout where state = 'paused'";
    assert_eq!(one::<i64>(&client, paused).await, 1);
    let failed = "select count(*) from tenantd.tenant where failures > 0";
    assert_eq!(one::<i64>(&client, failed).await, 2, "the canaries and nobody else");
    drop((proxy, client));
    database.finish().await;
}
