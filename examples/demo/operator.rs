//! The acts of a person at the terminal: a bad rollout that stops, a rollback, a drift that is found, a tenant that goes and comes back.

use std::fs;

use crate::stage::{DEADLINE, Stage, User};
use crate::support::until::until;

const FILE: &str = "0003_level.up.sql";
const BAD: &str = "alter table log_message add column level nonsense;
";
const GOOD: &str = "alter table log_message add column level text not null default 'info';
";
const DOWN: &str = "alter table log_message drop column level;
";

/// The fleet as a list, and a migration that is wrong for everybody: the canaries fail, and nobody else is touched.
pub(crate) async fn stops_a_bad_rollout(stage: &Stage, users: &[User]) {
    let page = &stage.page;
    page.heading("A migration that is wrong for everybody");
    stage.tenantd(&["list", "--limit", "3"], &[0]).await;
    fs::write(stage.migrations.join(FILE), BAD).expect("write the migration");
    fs::write(stage.migrations.join("0003_level.down.sql"), DOWN).expect("write the down file");
    page.line(&format!("{FILE} is laid into the folder of migrations:"));
    page.quote(BAD);
    let report = stage.tenantd(&["migrate", "--canary", "2"], &[1]).await.stdout;
    assert!(report.contains("is paused: every canary failed"), "no pause in the report");
    let all = i64::try_from(users.len()).expect("few");
    let untouched = "select count(*) from tenantd.tenants where state = 'ready' and work = 'idle' and version = 2";
    assert_eq!(stage.count(untouched).await, all - 2, "tenants that nobody touched");
    stage.tenantd(&["rollout"], &[1]).await;
    fs::write(stage.migrations.join(FILE), GOOD).expect("mend the migration");
    page.line("The file is mended, which makes another set of it, with a rollout of its own:");
    page.quote(GOOD);
    stage.tenantd(&["migrate", "--dry-run", &users[0].key], &[0]).await;
    stage.tenantd(&["migrate"], &[0]).await;
    let migrated = "select count(*) from tenantd.tenants where state = 'ready' and version = 3";
    assert_eq!(stage.count(migrated).await, all, "tenants at the new migration");
}

/// One tenant goes back, and on again.
pub(crate) async fn takes_back(stage: &Stage, user: &User) {
    stage.page.heading("One tenant goes back by a migration, and on again");
    let version = format!("select version from tenantd.tenants where key = '{}'", user.key);
    stage.tenantd(&["rollback", &user.key, "--steps", "1", "--yes"], &[0]).await;
    assert_eq!(stage.count(&version).await, 2, "its version");
    stage.tenantd(&["release", &user.key], &[0]).await;
    stage.tenantd(&["migrate", &user.key], &[0]).await;
    assert_eq!(stage.count(&version).await, 3, "its version");
}

/// Somebody changes a tenant by hand.
pub(crate) async fn finds_a_drift(stage: &Stage, user: &User) {
    let page = &stage.page;
    page.heading("Somebody changes a tenant by hand");
    let tenant = stage.database.tenant_superuser(&stage.name(user)).await;
    let change = "alter table log_message drop column level";
    tenant.batch_execute(change).await.expect("change the tenant");
    page.line(&format!("In {}: {change}", stage.name(user)));
    let report = stage.tenantd(&["check"], &[1]).await.stdout;
    assert!(report.contains("level"), "the drift is not in the report");
    tenant.batch_execute(GOOD).await.expect("mend the tenant");
    drop(tenant);
    page.line("It is put back.");
    stage.tenantd(&["check"], &[0]).await;
}

/// A tenant is dropped, and taken back.
pub(crate) async fn drops_and_restores(stage: &Stage, user: &User) {
    stage.page.heading("A tenant goes, and comes back");
    stage.tenantd(&["drop", &user.key], &[0]).await;
    assert_eq!(stage.state(user).await.as_deref(), Some("deleting"), "its state");
    stage.tenantd(&["restore", &user.key], &[0]).await;
    until("it is ready again", DEADLINE, async || stage.state(user).await.as_deref() == Some("ready")).await;
    let events = stage.tenantd(&["events", &user.key], &[0]).await.stdout;
    assert!(events.contains("dropped") && events.contains("restored"), "events of both");
    stage.tenantd(&["--sweep-once"], &[0]).await;
}
