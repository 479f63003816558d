//! The figures, and that nothing is left to be wished for.

use tenantd::config::Isolation;

use crate::figures::Figures;
use crate::page::time;
use crate::stage::{Stage, User};
use crate::support::audit::audit;

/// Tells what was measured, counts, and looks for what must not be left in the database.
pub(crate) async fn tell(stage: &Stage, users: &[User], figures: &Figures) {
    let page = &stage.page;
    let signed_up = stage.count("select count(*) from public.users").await;
    let ready = stage.count("select count(*) from tenantd.tenants where state = 'ready' and work = 'idle'").await;
    let databases = stage.database.tenant_databases().await.len();
    assert_eq!((signed_up, ready, databases), (20, 20, 20), "users, tenants ready, databases");
    assert_eq!(users.len(), 20, "users of the story");
    let admin = stage.database.superuser().await;
    let found = audit(&admin, &stage.database.place(&admin).await, stage.database.prefix(), &[]).await;
    assert!(found.is_empty(), "left behind:\n{}", found.join("\n"));
    page.heading("In short");
    let isolation = stage.database.isolation();
    page.line(&format!("{signed_up} users = {ready} tenants ready = {databases} {isolation}s; nothing half-made, no lock, no connection left."));
    let (ready, create) = (&figures.ready, &figures.create);
    page.line(&format!(
        "Signup to ready, one at a time ({} users): p50 {}, p95 {}, max {}.",
        ready.count(),
        time(ready.quantile(50)),
        time(ready.quantile(95)),
        time(ready.quantile(100))
    ));
    page.line(&format!(
        "{} alone ({} times): median {}; tenantd takes {:.2} times that, migrations included.",
        if isolation == Isolation::Schema { "CREATE SCHEMA and the migration" } else { "CREATE DATABASE" },
        create.count(),
        time(create.quantile(50)),
        ready.quantile(50).as_secs_f64() / create.quantile(50).as_secs_f64()
    ));
    page.line(&format!(
        "{} signups in one statement: the last ready after {}.",
        figures.burst.0,
        time(figures.burst.1)
    ));
    page.line(&format!(
        "The statement of a signup: median {}; with the registry locked {}.",
        time(figures.signup.quantile(50)),
        time(figures.locked)
    ));
    page.line("The server and its directory are being removed.");
}
