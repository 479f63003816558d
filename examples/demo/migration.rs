//! The act of the new migration, which one tenant's data contradict.

use std::fs;

use crate::page::time;
use crate::stage::{DEADLINE, Stage, User};
use crate::support::daemon::Daemon;
use crate::support::until::until;

const FILE: &str = "0002_message_not_empty.sql";
const MIGRATION: &str = "-- A message says something.
alter table log_message
    add constraint message_not_empty check (message <> '');
";
/// Who holds the row that breaks it, among the users.
const BROKEN: usize = 2;

/// All get the new migration but one, which fails alone, is mended and swept again.
pub(crate) async fn breaks_for_one(stage: &Stage, users: &[User]) {
    let page = &stage.page;
    page.heading("A new migration, which the data of one tenant break");
    let broken = &users[BROKEN];
    let tenant = stage.tenant(broken).await;
    tenant.execute("insert into log_message (message) values ('')", &[]).await.expect("insert as app");
    fs::write(stage.migrations.join(FILE), MIGRATION).expect("write the migration");
    page.line(&format!("{FILE} is laid into the folder of migrations:"));
    page.quote(MIGRATION);
    page.line(&format!("{} has a message that says nothing.", broken.email));
    let report = stage.tenantd(&["--sweep-once"], &[1]).await.stdout;
    let place = format!("{FILE}:2:1");
    assert!(report.contains(&place) && report.contains("23514"), "no {place} with SQLSTATE 23514 in the report");
    let all = i64::try_from(users.len()).expect("few");
    assert_eq!(at_version(stage, 2).await, all - 1, "tenants at the new migration");
    let failing = "select count(*) from tenantd.tenants where state = 'ready' and version = 1 and work = 'failing'";
    assert_eq!(stage.count(failing).await, 1, "tenants that fail, and are ready at their version still");
    stage.tenantd(&["status"], &[0, 1]).await;
    let mend = "update log_message set message = '(nothing)' where message = ''";
    assert_eq!(tenant.execute(mend, &[]).await.expect("mend as app"), 1, "rows to mend");
    page.line("The application mends the row.");
    drop(tenant);
    stage.tenantd(&["--sweep-once"], &[0]).await;
    assert_eq!(at_version(stage, 2).await, all, "tenants at the new migration");
}

async fn at_version(stage: &Stage, version: i64) -> i64 {
    stage.count(&format!("select count(*) from tenantd.tenants where state = 'ready' and version = {version}")).await
}

/// The running daemon takes the new migration up, and the next user has it, from the start or a moment later.
pub(crate) async fn reload(stage: &mut Stage, daemon: &mut Daemon) -> Vec<User> {
    let lines = daemon.lines().len();
    daemon.hang_up();
    daemon.wait_for_line_after(lines, "settings and migrations reloaded", DEADLINE).await;
    stage.page.line("SIGHUP: the daemon takes the new migrations up; one more user signs up.");
    let users = stage.sign_up(&["tia"]).await;
    let database = stage.name(&users[0]);
    stage
        .wait_for(&users, |page, user, at| {
            let after = time(at - user.committed);
            page.line(&format!("{:16}  {database}  ready {after} after the commit", user.email));
        })
        .await;
    // Until the template of the new migrations is built the one before serves signups, and a sweep follows.
    until("no tenant is at the old migration", DEADLINE, async || at_version(stage, 1).await == 0).await;
    users
}
