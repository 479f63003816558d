//! What must not be found in a main database when a test has ended, whatever happened in it.

use std::time::{Duration, Instant};

use tenantd::config::Isolation;
use tokio_postgres::Client;

use super::until::INTERVAL;

/// How long the locks and connections of an ended process may still be seen.
const FADING: Duration = Duration::from_secs(10);

/// One thing to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A user nobody recorded.
    UserWithoutTenant,
    /// A tenant the application relies on, and no database.
    ReadyWithoutDatabase,
    /// A database with this test's prefix that the registry does not know.
    DatabaseWithoutTenant,
    /// A database left by an interrupted CREATE or DROP.
    InvalidDatabase,
    /// Two databases that say they are the same tenant.
    DuplicateMarker,
    /// A lease that ran out, and nobody took the tenant over.
    ExpiredLease,
    /// A tenant that every role may enter.
    OpenToPublic,
    /// A spare, a template in service or what was set aside, that somebody may enter.
    OpenSpare,
    /// An advisory lock that is still held.
    LockHeld,
    /// A connection of tenantd's that is still there.
    ConnectionLeft,
}

impl Finding {
    /// All of them.
    pub const ALL: [Finding; 10] = [
        Finding::UserWithoutTenant,
        Finding::ReadyWithoutDatabase,
        Finding::DatabaseWithoutTenant,
        Finding::InvalidDatabase,
        Finding::DuplicateMarker,
        Finding::ExpiredLease,
        Finding::OpenToPublic,
        Finding::OpenSpare,
        Finding::LockHeld,
        Finding::ConnectionLeft,
    ];

    /// A query for names of what is found; `$1` is the prefix of the tenants, `{place}` stands for where tenants may be.
    fn query(self) -> &'static str {
        match self {
            Finding::UserWithoutTenant => {
                "select id::text from public.users u
                 where $1::text is not null and not exists (select from tenantd.tenant t where t.key = u.id::text)
                   and not exists (select from tenantd.signup s where s.key = u.id::text)"
            }
            Finding::ReadyWithoutDatabase => {
                "select key from tenantd.tenant t
                 where $1::text is not null and state = 'ready' and not exists (select from {place} p where p.name = t.name)"
            }
            Finding::DatabaseWithoutTenant => {
                "select name from {place} p
                 where starts_with(name, $1) and not exists (select from tenantd.tenant t where t.name = p.name)"
            }
            Finding::InvalidDatabase => {
                "select datname::text from pg_database
                 where datconnlimit = -2
                   and (starts_with(datname, $1) or exists (select from tenantd.spare s where s.name = datname)
                        or exists (select from tenantd.template p where p.name = datname)
                        or exists (select from tenantd.dropped p where p.name = datname))"
            }
            Finding::DuplicateMarker => {
                "select marker from {place} p
                 where starts_with(name, $1) and marker is not null group by 1 having count(*) > 1"
            }
            Finding::ExpiredLease => {
                "select key from tenantd.tenant where $1::text is not null and leased_until < clock_timestamp()"
            }
            Finding::OpenToPublic => {
                "select name from {place} p where starts_with(name, $1) and exists (select from aclexplode(acl) where grantee = 0)"
            }
            Finding::OpenSpare => {
                "select datname::text from pg_database
                 where $1::text is not null and (datallowconn or has_database_privilege('public', oid, 'connect'))
                   and (exists (select from tenantd.spare s where s.name = datname and s.made_at is not null)
                        or exists (select from tenantd.template p where p.name = datname and p.completed_at is not null)
                        or exists (select from tenantd.dropped p where p.name = datname))"
            }
            Finding::LockHeld => {
                "select format('(%s, %s) held by %s', classid, objid, coalesce(application_name, 'a prepared transaction'))
                 from pg_locks l join pg_database d on d.oid = l.database left join pg_stat_activity using (pid)
                 where locktype = 'advisory' and granted
                   and (d.datname in (current_database(), 'tenants_of_' || current_database()) or starts_with(d.datname, $1))"
            }
            Finding::ConnectionLeft => {
                "select format('%s in %s: %s', application_name, datname, query) from pg_stat_activity
                 where starts_with(application_name, 'tenantd') 
                   and (datname in (current_database(), 'tenants_of_' || current_database()) or starts_with(datname, $1))"
            }
        }
    }

    /// What ends a moment after the process that had it.
    fn fades(self) -> bool {
        matches!(self, Finding::LockHeld | Finding::ConnectionLeft)
    }

    /// Whether the question makes sense only where tenantd has been installed.
    fn needs_registry(self) -> bool {
        !self.fades() && !matches!(self, Finding::DuplicateMarker | Finding::OpenToPublic)
    }
}

/// Where tenants may be, as a table of name, oid, owner, marker, rights, and whether PUBLIC may enter.
#[must_use]
pub fn place(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Database => {
            "(select datname::text as name, oid, pg_get_userbyid(datdba)::text as owner, shobj_description(oid, 'pg_database') as marker,
                     coalesce(datacl, acldefault('d', datdba)) as acl, has_database_privilege('public', oid, 'connect') as public
              from pg_database)"
        }
        Isolation::Schema => {
            "(select nspname::text as name, oid, pg_get_userbyid(nspowner)::text as owner, obj_description(oid, 'pg_namespace') as marker,
                     coalesce(nspacl, acldefault('n', nspowner)) as acl, has_schema_privilege('public', oid, 'usage') as public
              from pg_namespace)"
        }
    }
}

/// Everything found in the main database that `client` is connected to and that is not among `allowed`, as sentences.
///
/// `place`: where its tenants may be, a table as [`place`] gives it.
pub async fn audit(client: &Client, place: &str, prefix: &str, allowed: &[Finding]) -> Vec<String> {
    let tables = "select to_regclass('tenantd.tenant') is not null and to_regclass('tenantd.spare') is not null and to_regclass('tenantd.dropped') is not null";
    let registry: bool = client.query_one(tables, &[]).await.expect("look for the registry").get(0);
    let start = Instant::now();
    let mut found = Vec::new();
    for finding in Finding::ALL {
        if !allowed.contains(&finding) && (registry || !finding.needs_registry()) {
            found.extend(
                look(client, place, prefix, finding, start).await.iter().map(|name| format!("{finding:?}: {name}")),
            );
        }
    }
    found
}

async fn look(client: &Client, place: &str, prefix: &str, finding: Finding, start: Instant) -> Vec<String> {
    let sql = finding.query().replace("{place}", place);
    loop {
        let rows = client.query(&sql, &[&prefix]).await.unwrap_or_else(|error| panic!("{finding:?}: {error:?}"));
        if rows.is_empty() || !finding.fades() || start.elapsed() > FADING {
            return rows.iter().map(|row| row.get(0)).collect();
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
