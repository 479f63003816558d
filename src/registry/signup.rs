//! The signup table's side: the table, the trigger function, and the reading of the table.
//!
//! Installing compares with the catalogue and does nothing when all is equal. What must lock the signup table gives up
//! after a tenth of a second and tries again, so that a long transaction in front never makes signups queue behind us.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::claim::damaged;
use super::field;
use super::when::{self, When};
use crate::config::{Config, Handover, Signup};
use crate::error::{Error, Kind, Result};
use crate::naming::{KeyType, Names};
use crate::pg::{Doing, quote};

/// The signup table as the catalogue knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The table, quoted.
    pub name: String,
    /// The id column, quoted.
    pub id: String,
    /// The same as the catalogue has it.
    pub id_name: String,
    /// The tables that need a trigger: the table itself, and for classic inheritance its children.
    pub triggers_on: Vec<String>,
    /// Whether a row-level trigger is needed: a statement trigger on a parent does not see inserts into a leaf.
    pub by_row: bool,
    /// The condition under which a row counts as a signup; `None`: each does.
    pub when: Option<When>,
    /// Whether row level security hides rows from tenantd's role.
    pub rows_hidden: bool,
}

impl Table {
    /// The signup table as the settings name it, taken for an ordinary one.
    #[must_use]
    pub fn ordinary(signup: &Signup, when: Option<When>) -> Table {
        let name = format!("{}.{}", quote::identifier(&signup.schema), quote::identifier(&signup.table));
        Table {
            id: quote::identifier(&signup.id_column),
            id_name: signup.id_column.clone(),
            triggers_on: vec![name.clone()],
            by_row: false,
            when,
            rows_hidden: false,
            name,
        }
    }
}

/// Reads what the catalogue says of the signup table, and has the server read the condition.
///
/// # Errors
/// [`Kind::Usage`] when the table, the column or the condition is missing or cannot serve, or `names` has none for keys of its type;
/// [`Kind::Rights`] when a right is missing.
pub async fn inspect(client: &Client, signup: &Signup, names: &Names) -> Result<Table> {
    let name = format!("{}.{}", quote::identifier(&signup.schema), quote::identifier(&signup.table));
    let row = client
        .query_typed_opt(
            "select c.oid, c.relkind::text as kind, format_type(a.atttypid, null) as type, format_type(t.oid, null) as base, t.typcategory::text as category,
                    has_schema_privilege(n.oid, 'usage') as may_enter, has_table_privilege(c.oid, 'trigger') as may_trigger,
                    a.attnum is not null and has_column_privilege(c.oid, a.attnum, 'select') as may_read,
                    row_security_active(c.oid) as rows_hidden, current_user::text as me,
                    array(with recursive heir as (
                              select i.inhrelid from pg_inherits i where i.inhparent = c.oid
                              union select i.inhrelid from pg_inherits i join heir on heir.inhrelid = i.inhparent)
                          select format('%I.%I', n2.nspname, k.relname) from heir
                          join pg_class k on k.oid = heir.inhrelid join pg_namespace n2 on n2.oid = k.relnamespace
                          where not k.relispartition and k.relkind = 'r' order by 1) as children
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             left join pg_attribute a on a.attrelid = c.oid and a.attname = $3 and a.attnum > 0 and not a.attisdropped
             left join lateral (
                 with recursive base as (
                     select b.oid, b.typbasetype from pg_type b where b.oid = a.atttypid
                     union all select b.oid, b.typbasetype from base join pg_type b on b.oid = base.typbasetype)
                 select oid from base where typbasetype = 0) b on true
             left join pg_type t on t.oid = b.oid
             where n.nspname = $1 and c.relname = $2",
            &[(&signup.schema, Type::TEXT), (&signup.table, Type::TEXT), (&signup.id_column, Type::TEXT)],
        )
        .await
        .doing(|| format!("look at the signup table {name}"))?
        .ok_or_else(|| {
            Error::usage(format!("the signup table {name} does not exist in the main database"))
                .hint("signup.table names the application's table; create it first, or correct the setting")
        })?;
    let kind: String = field(&row, "kind")?;
    let column = quote::identifier(&signup.id_column);
    if kind != "r" && kind != "p" {
        return Err(Error::usage(format!("{name} is no table, so no trigger can see its inserts"))
            .hint("signup.table must name the table that the application inserts into"));
    }
    let type_name: Option<String> = field(&row, "type")?;
    let type_name = type_name.ok_or_else(|| {
        Error::usage(format!("the signup table {name} has no column {column}"))
            .hint("signup.id_column names the column that identifies a signup")
    })?;
    let (base, category): (String, String) = (field(&row, "base")?, field(&row, "category")?);
    key_type(&base, &category).and_then(|keys| names.fit(keys)).map_err(|reason| {
        Error::usage(format!("column {column} of {name} is of type {type_name}, after which no tenant can be named"))
            .hint(reason)
    })?;
    let me = quote::identifier(&field::<String>(&row, "me")?);
    if !field::<bool>(&row, "may_enter")? {
        let schema = quote::identifier(&signup.schema);
        return Err(Error::new(Kind::Rights, format!("role {me} may not enter schema {schema}"))
            .hint(format!("as the schema's owner: grant usage on schema {schema} to {me}")));
    }
    if !field::<bool>(&row, "may_trigger")? || !field::<bool>(&row, "may_read")? {
        return Err(Error::new(
            Kind::Rights,
            format!("role {me} may not put a trigger on {name}, or may not read {column}"),
        )
        .hint(format!("as the table's owner: grant select ({column}), trigger on {name} to {me}")));
    }
    let children: Vec<String> = field(&row, "children")?;
    let by_row = kind == "p" || !children.is_empty();
    let triggers_on = std::iter::once(name.clone()).chain(children).collect();
    let when = when::of(client, &name, signup).await?;
    if let Some(when) = &when {
        when::check_rights(client, &name, &column, when).await?;
    }
    Ok(Table { triggers_on, by_row, rows_hidden: field(&row, "rows_hidden")?, ..Table::ordinary(signup, when) })
}

/// What keys are of, by the column's type beneath any domain and the type's category. Others print as a session's settings have it, so that one
/// user could have several keys.
fn key_type(base: &str, category: &str) -> Result<KeyType, &'static str> {
    match (base, category) {
        ("uuid", _) => Ok(KeyType::Uuid),
        ("smallint" | "integer" | "bigint", _) => Ok(KeyType::Integer),
        (_, "S") => Ok(KeyType::Text),
        _ => Err(
            "signup.id_column must name a column of type uuid, text or varchar, smallint, integer or bigint, or a domain over one of these",
        ),
    }
}

/// What the trigger function depends on.
#[derive(Debug, Clone, Copy)]
pub struct Function<'a> {
    /// The quoted id column.
    pub id: &'a str,
    /// Whether signups may ring.
    pub notify: bool,
    /// Whether signups get their spare at their own commit.
    pub hand_over: Option<HandOver<'a>>,
}

/// What the trigger needs to know to hand a spare over by itself.
#[derive(Debug, Clone, Copy)]
pub struct HandOver<'a> {
    /// How tenants are named.
    pub names: &'a Names,
    /// The role that owns their databases.
    pub owner: &'a str,
}

impl<'a> Function<'a> {
    /// As the settings want it, for the quoted column `id`.
    #[must_use]
    pub fn of(config: &'a Config, id: &'a str, notify: bool) -> Self {
        let owner = config.tenant.owner.as_deref().unwrap_or_else(|| config.main.user());
        let hand_over = HandOver { names: &config.tenant.names, owner };
        let at_commit = config.signup.handover == Handover::Commit;
        Function { id, notify, hand_over: at_commit.then_some(hand_over) }
    }

    /// Its body.
    #[must_use]
    pub fn body(&self) -> String {
        let ring = if self.notify { include_str!("sql/ring.sql") } else { "" };
        let (declare, write) = match self.hand_over {
            None => ("", filled(include_str!("sql/write_down.sql"), &[("id", self.id)])),
            Some(HandOver { names, owner }) => {
                let (naming, owner) = (quote::literal(&names.to_string()), quote::literal(owner));
                let values = [("id", self.id), ("naming", naming.as_str()), ("owner", owner.as_str())];
                ("    keys text[] := '{}';\n", filled(include_str!("sql/hand_over.sql"), &values))
            }
        };
        filled(include_str!("sql/signup.sql"), &[("declare", declare), ("write", &write), ("ring", ring)])
    }

    /// The statement that makes it.
    #[must_use]
    pub fn sql(&self) -> String {
        format!(
            "create or replace function tenantd.signup() returns trigger language plpgsql security definer\n\
             set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'\nas {};\n\
             revoke all on function tenantd.signup() from public;\n",
            body_literal(&self.body())
        )
    }
}

/// `template` with each `{name}` as its value. What a value holds is left as it is, also where it looks like a name.
pub(super) fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        text.push_str(before);
        let found =
            values.iter().find_map(|(name, value)| Some((*value, behind.strip_prefix(name)?.strip_prefix('}')?)));
        let (value, after) = found.unwrap_or(("{", behind));
        text.push_str(value);
        rest = after;
    }
    text + rest
}

/// The body of a function as SQL, in a dollar quote that the body itself does not hold, whatever the names in it.
pub(super) fn body_literal(body: &str) -> String {
    let mut quote = "$tenantd$".to_owned();
    while body.contains(quote.trim_end_matches('$')) {
        quote.insert(quote.len() - 1, '_');
    }
    format!("{quote}{body}{quote}")
}

/// Makes the trigger function as it should be. True when something was done.
///
/// # Errors
/// The function could not be made.
pub async fn install_function(client: &Client, table: &Table, function: Function<'_>) -> Result<bool> {
    let doing = || "look at the function tenantd.signup()".to_owned();
    let same = client
        .query_typed_opt(
            "select from pg_proc p where p.oid = to_regprocedure('tenantd.signup()') and p.prosecdef and p.prosrc = $1
             and p.proconfig @> array['search_path=pg_catalog, pg_temp', 'lock_timeout=200ms']
             and not has_function_privilege('public', p.oid, 'execute')",
            &[(&function.body(), Type::TEXT)],
        )
        .await
        .doing(doing)?;
    if same.is_none() {
        client.batch_execute(&function.sql()).await.doing(|| "make the function tenantd.signup()".to_owned())?;
    }
    // Whoever adds a partition puts our trigger on it, and must be allowed to: else the application could add none.
    let owner = client
        .query_typed_opt(
            "select pg_get_userbyid(c.relowner)::text as name from pg_class c where c.oid = $1::text::regclass and c.relkind = 'p'
             and not has_function_privilege(c.relowner, to_regprocedure('tenantd.signup()'), 'execute')",
            &[(&table.name, Type::TEXT)],
        )
        .await
        .doing(doing)?;
    if let Some(row) = &owner {
        let owner = quote::identifier(&field::<String>(row, "name")?);
        client
            .batch_execute(&format!("grant execute on function tenantd.signup() to {owner}"))
            .await
            .doing(|| format!("let {owner} add partitions to {}", table.name))?;
    }
    Ok(same.is_none() || owner.is_some())
}

/// What was found in the signup table that the registry did not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// How many users had no tenant.
    pub users: i64,
    /// Whether they are users from before, and held, rather than due.
    pub held: bool,
}

/// Inserts a row for each user of the signup table that has none: due, or, the first time that the table can be read, held.
///
/// Users from before the trigger are held so that installing beside many fills no disk by surprise. Where only the tenant table was lost, the
/// tenants whose databases stand are due: their markers tell whose they are. Signups that are still to be taken in are not missing.
///
/// # Errors
/// [`Kind::Rights`] when row level security hides rows from tenantd's role: then none was read, and the next call is the first.
/// [`Kind::Usage`] when there is no such table any more.
pub async fn request_missing(client: &mut Client, table: &Table, names: &Names) -> Result<Missing> {
    let sql = format!(
        "with {} select (select count(*) from missing) as users, exists (select from held) as held",
        request_missing_sql(table)
    );
    let doing = || format!("look for users of {} without a tenant", table.name);
    match Box::pin(when::read(client, table, &sql, &[(&names.to_string(), Type::TEXT)], doing)).await {
        Ok(rows) => {
            let row = rows.first().ok_or_else(|| Error::new(Kind::Registry, "a count came back without a row"))?;
            Ok(Missing { users: field(row, "users")?, held: field(row, "held")? })
        }
        Err(error) => Err(why_unread(client, table, error).await),
    }
}

/// The parts of a statement, `missing` and `held`, that do what [`request_missing`] does; its first parameter says how tenants are named. Nobody missing,
/// it writes nothing.
///
/// A view in the table's place would run its maker's functions as us: only of a table can a sample be taken, and this one is all of it. A cast
/// of the id may be somebody's function too, hence concat, as in the trigger. A key too long for the registry is left out there, and here.
pub(super) fn request_missing_sql(table: &Table) -> String {
    // Alone between parentheses, which it cannot end, as was seen when it was compiled.
    let counts = table.when.as_ref().map(|when| format!("and ({}\n)", when.written)).unwrap_or_default();
    format!(
        "missing as (
             insert into tenantd.tenant (key, work)
             select u.key, case when (select users_held_at from tenantd.registry) is null and not exists (
                     select from tenantd.place d, tenantd.registry r
                     where d.name = tenantd.name_of(u.key, $1)::name and d.marker
                         = format('tenantd %s %s', r.id, encode(sha256(convert_to(u.key, 'UTF8')), 'hex')))
                 then 'held' else 'due' end
             from (select concat(new.{id}) as key from {name} as new tablesample system (100) where new.{id} is not null {counts}) u
             left join tenantd.tenant t on t.key = u.key
             where t.key is null and octet_length(u.key) <= 1000
             and not exists (select from tenantd.signup s where s.key = u.key)
             on conflict (key) do nothing returning key
         ), held as (
             update tenantd.registry set users_held_at = now() where users_held_at is null returning one
         )",
        id = table.id,
        name = table.name
    )
}

/// What it means that users without a tenant could not be looked for.
async fn why_unread(client: &Client, table: &Table, error: Error) -> Error {
    if error.kind() == Kind::Rights {
        return error.hint(format!(
            "tenantd's role needs `select ({}{})` on {} and, with row level security on, the attribute bypassrls; until then only the trigger finds signups",
            table.id,
            table.when.as_ref().map(When::and_columns).unwrap_or_default(),
            table.name
        ));
    }
    let stands = client
        .query_typed_opt(
            "select from pg_class where oid = to_regclass($1) and relkind in ('r', 'p')",
            &[(&table.name, Type::TEXT)],
        )
        .await;
    match stands {
        Ok(None) => {
            Error::usage(format!("{} is no table any more, so users without a tenant cannot be looked for", table.name))
                .hint("signup.table must name the table that the application inserts into")
        }
        _ => damaged(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naming::Rule;

    #[test]
    fn names_stay_as_they_are_whatever_they_look_like() {
        let (id, owner) = ("\"{owner}{ring}$tenantd$\"", "{id}'\\{write}");
        let names = Names::new(Rule::Uuid, "tenant_", "app");
        let hand_over = Some(HandOver { names: &names, owner });
        let body = Function { id, notify: true, hand_over }.body();
        assert!(body.contains(&format!("concat(new.{id})")) && body.contains(&quote::literal(owner)), "{body}");
        let sql = Function { id, notify: true, hand_over }.sql();
        assert!(sql.contains("as $tenantd_$\n") && sql.contains("end\n$tenantd_$;"), "{sql}");
    }
}
