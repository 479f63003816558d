//! What must hold at any moment, and what must hold when all has come to rest.

use tokio_postgres::Client;

use crate::support::audit::{Finding, audit, place};
use crate::support::database::TestDatabase;

/// What may be so for a moment, and nowhere else: it is looked for at the end.
const PASSING: [Finding; 5] = [
    Finding::UserWithoutTenant,
    Finding::InvalidDatabase,
    Finding::ExpiredLease,
    Finding::LockHeld,
    Finding::ConnectionLeft,
];

/// Ready tenants whose database, or schema, is not the registered one, not whole, or bears another marker than theirs; `$1` is the prefix.
const NOT_THEIRS: &str = "
    select t.key from tenantd.tenant t
    join tenantd.registry r on true left join {place} p on p.name = t.name
    where t.state = 'ready' and starts_with(t.name, $1) and (p.oid is distinct from t.database_oid
        or exists (select from pg_database d where d.datname = t.name and d.datconnlimit = -2)
        or p.marker is distinct from 'tenantd ' || r.id || ' ' || encode(sha256(convert_to(t.key, 'utf8')), 'hex'))";

/// Tenants called ready that never were.
const HALF_READY: &str = "
    select key from tenantd.tenant where $1::text is not null and state = 'ready' and (ready_at is null or version is null or name is null)";

/// What is wrong now and may never be, as sentences.
pub async fn always(database: &TestDatabase, client: &Client) -> Vec<String> {
    let mut found = Vec::new();
    let mut queries = vec![("half ready", HALF_READY)];
    // Schemas in another database follow the registry a moment later, and no snapshot holds both.
    if database.around_tenants() == database.name() {
        found = audit(client, place(database.isolation()), database.prefix(), &PASSING).await;
        queries.push(("ready with what is not its own", NOT_THEIRS));
    }
    for (what, query) in queries {
        let query = query.replace("{place}", place(database.isolation()));
        let rows =
            client.query(&query, &[&database.prefix()]).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        found.extend(rows.iter().map(|row| format!("{what}: {}", row.get::<_, String>(0))));
    }
    found
}

/// What the fleet has still to do, as sentences; `$1` is the newest version, `$2` the keys that were dropped.
const UNREST: [&str; 7] = [
    "select 'user without a tenant: ' || id from public.users u
     where $1::bigint is not null and $2::text[] is not null and not exists (select from tenantd.tenant t where t.key = u.id::text)",
    "select format('tenant %s is %s %s at version %s, verified at %s, leased until %s: %s %s', key, state, work, version, verified_at, leased_until,
                   error_kind, error_text) from tenantd.tenant
     where not (state = 'ready' and work = 'idle' and version = $1 and verified_at is not null and leased_until is null
                and exists (select from public.users u where u.id::text = key))
       and not (state = 'deleted' and (key = any ($2) or not exists (select from public.users u where u.id::text = key)))",
    "select format('rollout to version %s is %s, driven by %s: %s', version, state, leased_by, why) from tenantd.rollout
     where version = $1 and $2::text[] is not null and (state <> 'done' or leased_by is not null)",
    "select format('in the making: %s', s.name) from tenantd.spare s join {place} p on p.name = s.name
     where $1::bigint is not null and $2::text[] is not null and (s.made_at is null or s.key is not null or s.version <> $1)",
    "select format('template %s of version %s, complete: %s, retired: %s', name, version, completed_at, retired_at) from tenantd.template p
     where $2::text[] is not null and (version <> $1 or completed_at is null or retired_at is not null)
       -- What a dead process announced, and did not come to make, is kept in mind for two hours, and so is what it was to be a clone of.
       and not exists (select from tenantd.spare s where s.template = p.name and not exists (select from pg_database where datname = s.name))",
    "select 'set aside: ' || name from tenantd.dropped where $1::bigint is not null and $2::text[] is not null",
    "select 'nobody knows ' || p.name from {place} p
     where $1::bigint is not null and $2::text[] is not null and p.name like 'tenantd\\_%' and not exists (
         select from tenantd.spare s where s.name = p.name union all select from tenantd.template t where t.name = p.name
         union all select from tenantd.dropped d where d.name = p.name)",
];

/// What there is still to do.
pub async fn unrest(database: &TestDatabase, client: &Client, version: i64, dropped: &[String]) -> Vec<String> {
    let place = database.place(client).await;
    let mut found = Vec::new();
    for query in UNREST {
        let query = query.replace("{place}", &place);
        let rows =
            client.query(&query, &[&version, &dropped]).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
        found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    found
}

/// What is wrong inside the tenants: each has every migration of `version`, whole, once.
pub async fn inside(database: &TestDatabase, version: i64) -> Vec<String> {
    let mut found = Vec::new();
    for name in database.tenant_databases().await {
        let select = "select (select count(*) from tenantd_migration where applied_at is not null),
                             (select count(*) from tenantd_migration where applied_at is null),
                             (select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid
                              where not i.indisvalid and c.relnamespace = current_schema()::regnamespace),
                             (select count(*) from pg_class
                              where relname like 'added_%' and relkind = 'r' and relnamespace = current_schema()::regnamespace)";
        let row = database.tenant_superuser(&name).await.query_one(select, &[]).await.expect("look into a tenant");
        let seen: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        if seen != [version, 0, 0, version - 1] {
            found.push(format!("{name} has applied, unfinished migrations, invalid indexes, tables: {seen:?}"));
        }
    }
    found
}
