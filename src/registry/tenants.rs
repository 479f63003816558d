//! Tenants as commands show them; signups that are still to be taken in are tenants too. Nothing here changes anything.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::lookup::{Filter, TENANTS};
use super::{Registry, field};
use crate::error::{Error, Kind, Result};
use crate::tenant::{State, Work};

/// One tenant, as far as the main database shows it.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its key.
    pub key: String,
    /// The name of its database, once it was given one.
    pub name: Option<String>,
    /// The word of its [`State`], or of one that a newer tenantd knows.
    pub state: String,
    /// The word of its [`Work`], or of one that a newer tenantd knows.
    pub work: String,
    /// How often it was claimed.
    pub attempt: i64,
    /// Failures in a row.
    pub failures: i32,
    /// When it is due, if it is.
    pub due_at: Timestamp,
    /// Who works on it now, as `host:pid:random`.
    pub leased_by: Option<String>,
    /// How long the lease of whoever works on it lasts, unless it is renewed.
    pub lease_lasts: Option<Duration>,
    /// The last failure.
    pub error: Option<LastError>,
    /// The newest migration it is known to have.
    pub version: Option<i64>,
    /// When a migration ran in it last.
    pub migrated_at: Option<Timestamp>,
    /// The id of the migration set it was last brought to.
    pub migration_set: Option<String>,
    /// The oid of its database, once it had one.
    pub database_oid: Option<u32>,
    /// When it was last looked at from within.
    pub verified_at: Option<Timestamp>,
    /// The server it is on.
    pub cluster: String,
    /// When it signed up.
    pub created_at: Timestamp,
    /// The time since then, by the server's clock.
    pub age: Duration,
    /// When it became ready.
    pub ready_at: Option<Timestamp>,
    /// The size of its database, where that was asked for and may be known.
    pub bytes: Option<u64>,
    /// Where it stands in the order it was read in.
    place: String,
}

/// Why the last work on a tenant failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// The word of the error's kind.
    pub kind: String,
    /// The error in full, and on a line of its own what to do.
    pub text: String,
    /// The server's SQLSTATE, when the server said something.
    pub sqlstate: Option<String>,
    /// The step that failed.
    pub step: Option<String>,
}

impl Tenant {
    /// Whether the application may use it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready.word()
    }

    /// Whether a person should look.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.work == Work::Parked.word()
    }
}

/// What tenants are ordered by; those that are the same in it, by their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Their keys.
    Key,
    /// The time since the signup, the youngest first.
    Age,
    /// The newest migration, those without any first.
    Version,
    /// The database's name, those without one first.
    Name,
    /// Failures in a row, the fewest first.
    Failures,
}

/// In which order tenants are read.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// What they are ordered by.
    pub by: By,
    /// The other way round.
    pub reverse: bool,
}

/// One page of tenants.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// In which order.
    pub order: Order,
    /// The last tenant of the page before; `None`: this is the first.
    pub after: Option<&'a Tenant>,
    /// How many there are at the most.
    pub most: i64,
    /// Whether their databases are measured, which reads each one's folder.
    pub sized: bool,
}

const AGE: &str = "greatest(extract(epoch from clock_timestamp() - p.created_at), 0)::float8 as age,
    case when p.leased_until > now() then extract(epoch from p.leased_until - now())::float8 end as lasts";

/// By its oid: what stands under its name in the place of ours is not its own. What we may not enter we may not measure.
const BYTES: &str = "(
    select tenantd.bytes(d.oid) from tenantd.place d where d.oid = p.database_oid
) as bytes";

impl By {
    /// What is compared, never null, and its type.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            By::Key => ("t.key", "text"),
            By::Age => ("t.created_at", "timestamptz"),
            By::Version => ("coalesce(t.version, 0)", "int8"),
            By::Name => ("coalesce(t.name, '')", "text"),
            By::Failures => ("t.failures", "int4"),
        }
    }
}

impl Order {
    /// Whether what is compared falls from row to row.
    fn falls(self) -> bool {
        // Who is younger signed up later.
        self.reverse != (self.by == By::Age)
    }
}

impl Registry {
    /// The tenants of one page that fit `filter`. Read anew for each page, so that whoever comes or changes meanwhile is there or not, but no
    /// tenant that stays as it is is met twice or left out.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn tenants(&self, filter: &Filter, page: Page<'_>) -> Result<Vec<Tenant>> {
        let (column, as_type) = page.order.by.sql();
        let (sign, direction) = if page.order.falls() { ("<", "desc") } else { (">", "asc") };
        let bytes = if page.sized { BYTES } else { "null::int8 as bytes" };
        let sql = format!(
            "select p.*, {AGE}, {bytes} from (
                 select t.*, ({column})::text as place from {TENANTS} where {filter}
                 and ($7::text is null or ({column}, t.key) {sign} ($7::{as_type}, $8))
                 order by {column} {direction}, t.key {direction} limit $9
             ) p",
            filter = Filter::SQL
        );
        let values = filter.values();
        let mut parameters = values.parameters();
        let (place, key) = (page.after.map(|tenant| &tenant.place), page.after.map(|tenant| &tenant.key));
        let after: [(&(dyn ToSql + Sync), Type); 3] =
            [(&place, Type::TEXT), (&key, Type::TEXT), (&page.most, Type::INT8)];
        parameters.extend(after);
        self.query(&sql, &parameters, || "read the tenants".to_owned()).await?.iter().map(read).collect()
    }

    /// How many tenants fit `filter`.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn count(&self, filter: &Filter) -> Result<i64> {
        let sql = format!("select count(*) as tenants from {TENANTS} where {}", Filter::SQL);
        let rows = self.query(&sql, &filter.values().parameters(), || "count the tenants".to_owned()).await?;
        let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a count came back without a row"))?;
        field(row, "tenants")
    }

    /// The tenant `key`, deleted or not, not measured; `None` when there is none.
    ///
    /// # Errors
    /// The main database cannot be reached, or the registry is damaged.
    pub async fn tenant(&self, key: &str) -> Result<Option<Tenant>> {
        let sql =
            format!("select p.*, {AGE}, {BYTES} from (select t.*, t.key as place from {TENANTS} where t.key = $1) p");
        let rows = self.query(&sql, &[(&key, Type::TEXT)], || format!("read the tenant {key:?}")).await?;
        rows.first().map(read).transpose()
    }
}

fn read(row: &Row) -> Result<Tenant> {
    let length = |name| {
        let seconds = field::<Option<f64>>(row, name)?;
        Ok::<_, Error>(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
    };
    let lease_lasts = length("lasts")?;
    let kind: Option<String> = field(row, "error_kind")?;
    let error = kind.map(|kind| {
        let text: Option<String> = field(row, "error_text")?;
        let (text, sqlstate, step) =
            (text.unwrap_or_default(), field(row, "error_sqlstate")?, field(row, "error_step")?);
        Ok::<_, Error>(LastError { kind, text, sqlstate, step })
    });
    Ok(Tenant {
        key: field(row, "key")?,
        name: field(row, "name")?,
        state: field(row, "state")?,
        work: field(row, "work")?,
        attempt: field(row, "attempt")?,
        failures: field(row, "failures")?,
        due_at: field(row, "due_at")?,
        leased_by: if lease_lasts.is_some() { field(row, "leased_by")? } else { None },
        lease_lasts,
        error: error.transpose()?,
        version: field(row, "version")?,
        migrated_at: field(row, "migrated_at")?,
        migration_set: field(row, "migration_set")?,
        database_oid: field(row, "database_oid")?,
        verified_at: field(row, "verified_at")?,
        cluster: field(row, "cluster")?,
        created_at: field(row, "created_at")?,
        age: length("age")?.unwrap_or_default(),
        ready_at: field(row, "ready_at")?,
        bytes: field::<Option<i64>>(row, "bytes")?.and_then(|bytes| u64::try_from(bytes).ok()),
        place: field(row, "place")?,
    })
}
