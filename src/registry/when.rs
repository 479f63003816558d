//! `signup.when`: under which condition a row of the signup table counts as a signup.
//!
//! Only the server reads the condition. It is compiled there, in a transaction that is rolled back, and what it comes to is kept in the registry.
//! Triggers bear it as their WHEN: compiled, and run as whoever inserts or updates, never as tenantd. No exception block catches what a WHEN
//! raises, and a signup must not fail because of us: so only what cannot fail is taken. Sweeps read as tenantd, and hold the meaning of the names in
//! it fast while they do, since the table's owner could let a name mean something else, of which a part would run as us.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::field;
use super::signup::Table;
use crate::config::Signup;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};

/// What an expression may be made of, as the server names it within, in this version or that.
const NODES: &[&str] = &[
    "VAR",
    "CONST",
    "OPEXPR",
    "FUNCEXPR",
    "BOOLEXPR",
    "NULLTEST",
    "BOOLEANTEST",
    "DISTINCTEXPR",
    "NULLIFEXPR",
    "RELABELTYPE",
    "SCALARARRAYOPEXPR",
    "ARRAY",
    "ARRAYEXPR",
    "ARRAYCOERCEEXPR",
    "CASETESTEXPR",
    "COALESCE",
    "COALESCEEXPR",
];

/// Functions of the server's own that fail for no value, besides those that it calls leakproof for just that.
const NEVER_FAIL: &str = r#"^((enum|numeric|jsonb|array)_(eq|ne|lt|le|gt|ge)|(date|timestamp)_(eq|ne|lt|le|gt|ge)_(timestamp|date)|(text|bpchar)n?like|texticn?like|jsonb?_(object_field|array_element)(_text)?|jsonb_(exists(_any|_all)?|contains|contained|typeof)|array(contains|contained|overlap)|num_(non)?nulls|cardinality|starts_with|[lrb]trim)\(|^(lower|upper|length|char_length)\(text\)$|^"?numeric"?\((smallint|integer|bigint)\)$|^text\(character\)$"#;

/// A LIKE fails for a pattern that ends in a lone backslash: so the pattern is a constant, or constants in a list, and ends in none.
const LIKE_AT_RISK: &str = r"~~\*? (?!(ANY |ALL )?\(*(ARRAY\[)?')|~~.*\\'::";

/// So many rows are tried before any trigger is put, for what no rule foresees.
const TRIED: usize = 1000;

/// A condition that the server has compiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    /// As it stands in the settings.
    pub written: String,
    /// The columns that it reads, in order.
    pub columns: Vec<String>,
    /// That it is true of the row `new`, as the server writes it.
    pub(super) new: String,
    /// That it is true of the row `new` and was not of `old`.
    pub(super) made_true: String,
    /// What the columns were when it was compiled.
    means: Vec<String>,
}

impl When {
    /// The columns that it reads, quoted, each after a comma: for a list that begins with another.
    #[must_use]
    pub fn and_columns(&self) -> String {
        self.columns.iter().fold(String::new(), |list, column| list + ", " + &quote::identifier(column))
    }
}

/// The condition on the table `name`, quoted; `None` where every row counts. What was compiled before and still holds is taken from the
/// registry; else it is compiled, which changes nothing.
///
/// # Errors
/// [`Kind::Usage`] when it cannot be a condition: it does not parse alone, names what is not there, is not boolean, reads more than the row,
/// depends on more than the row, or may fail. [`Kind::Rights`] when there is no schema to compile it in. [`Kind::Locked`].
pub async fn of(client: &Client, name: &str, signup: &Signup) -> Result<Option<When>> {
    let Some(written) = &signup.when else { return Ok(None) };
    match kept(client, name, written).await? {
        Some(when) => Ok(Some(when)),
        // Boxed: rare, and large for whoever waits for it.
        None => Box::pin(compile(client, name, written)).await.map(Some),
    }
}

/// What the registry has of it, if there is one and nothing has changed since.
async fn kept(client: &Client, name: &str, written: &str) -> Result<Option<When>> {
    let asked = client
        .query_typed_opt(
            "select signup_when::text as kept from tenantd.registry where signup_table = $1 and signup_when ->> 'written' = $2",
            &[(&name, Type::TEXT), (&written, Type::TEXT)],
        )
        .await
        .doing(|| "look for the compiled signup.when".to_owned());
    let row = match asked {
        Ok(row) => row,
        // Before the installation, or in a damaged registry, which others tell.
        Err(error) if error.code().is_some_and(|code| code.starts_with("42")) => None,
        Err(error) => return Err(error),
    };
    let Some(row) = row else { return Ok(None) };
    let Ok(when) = serde_json::from_str::<When>(&field::<String>(&row, "kept")?) else { return Ok(None) };
    let row = client.query_typed_opt(MEANS, &[(&name, Type::TEXT), (&when.columns, Type::TEXT_ARRAY)]).await;
    let Some(row) = row.doing(|| format!("look at the columns of {name}"))? else { return Ok(None) };
    let means: Vec<String> = field(&row, "means")?;
    Ok((means == when.means).then_some(when))
}

/// What the columns `$2` of the table `$1` are: by name and by oid, so that neither a column nor a type can take another's place unseen.
const MEANS: &str = "
select array(select format('%s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attcollation)
             from pg_attribute a where a.attrelid = $1::text::regclass and a.attname = any ($2) and a.attnum > 0 and not a.attisdropped
             order by a.attname) as means";

async fn compile(client: &Client, name: &str, written: &str) -> Result<When> {
    let doing = || "compile signup.when".to_owned();
    let begin = "begin; set local search_path = pg_catalog, pg_temp; set local lock_timeout = '5s'";
    client.batch_execute(begin).await.doing(doing)?;
    let compiled = compile_in_transaction(client, name, written).await;
    let ended = client.batch_execute("rollback").await.doing(doing);
    let when = compiled.map_err(|error| {
        let refused = match error.code() {
            Some("42501") => false,
            Some(code) => ["22", "42", "0A"].iter().any(|class| code.starts_with(class)),
            None => error.kind() == Kind::Other,
        };
        let error = if refused { error.with_kind(Kind::Usage) } else { error };
        error.context(format!("take signup.when = {written:?} as a condition on the rows of {name}")).hint(
            "signup.when is SQL over the signup table's own columns, such as: email_confirmed and deleted_at is null",
        )
    })?;
    ended.map(|()| when)
}

async fn compile_in_transaction(client: &Client, name: &str, written: &str) -> Result<When> {
    // Between brackets, where a parenthesis too many is an error, and between parentheses, as ever after, where a bracket is: so it can end neither.
    // The line's end is for a comment in it. Preparing parses and looks names up, and runs nothing.
    let alone = format!("select array[{written}\n] from {name} as new");
    let alone = client.prepare(&alone).await.doing(|| "read it as one expression".to_owned())?;
    let kind = alone.columns().first().map(|column| column.type_().clone()).filter(|kind| *kind != Type::BOOL_ARRAY);
    if let Some(kind) = kind {
        let kind = kind.name().trim_start_matches('_');
        return Err(Error::usage(format!("its value is of type {kind}, not boolean")));
    }
    let place = place(client).await?;
    let columns = columns_of(client, place, name, written).await?;
    let plain = checked(client, place, name, written, &columns).await?;
    let (new, made_true) = over_rows(client, place, &plain).await?;
    try_on_rows(client, name, written).await?;
    let row = client.query_typed_one(MEANS, &[(&name, Type::TEXT), (&columns, Type::TEXT_ARRAY)]).await;
    let means = field(&row.doing(|| format!("look at the columns of {name}"))?, "means")?;
    Ok(When { written: written.to_owned(), columns, new, made_true, means })
}

/// The schema in which to compile.
async fn place(client: &Client) -> Result<&'static str> {
    let doing = || "find a schema to compile it in".to_owned();
    let row = client
        .query_typed_one(
            "select coalesce(has_schema_privilege(to_regnamespace('tenantd')::oid, 'create'), false) as ours,
                    has_database_privilege(current_database(), 'temporary') as temporary",
            &[],
        )
        .await
        .doing(doing)?;
    if field(&row, "ours")? {
        return Ok("tenantd");
    }
    if field(&row, "temporary")? {
        return Ok("pg_temp");
    }
    // Rolled back with the rest.
    client.batch_execute("create schema tenantd").await.doing(doing)?;
    Ok("tenantd")
}

/// The columns that it reads. Refuses what is no single value, and what would run functions that are not the server's own: also to look at it further.
async fn columns_of(client: &Client, place: &str, name: &str, written: &str) -> Result<Vec<String>> {
    let doing = || "look at what it reads".to_owned();
    let view = format!("create view {place}.when_written as select ({written}\n) as counts from {name} as new");
    client.batch_execute(&view).await.doing(doing).map_err(|error| match error.code() {
        Some("42P16") => Error::usage("it is several values, not one").because(error),
        _ => error,
    })?;
    let row = client
        .query_typed_one(
            &format!(
                "with read as (
                     select d.refclassid as class, d.refobjid as object, d.refobjsubid as part from pg_rewrite r
                     join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                     where r.ev_class = '{place}.when_written'::regclass
                 ), own as (
                     select a.attname, a.atttypid, t.typtype, t.typcategory, t.typnamespace from read
                     join pg_attribute a on class = 'pg_class'::regclass and object = $1::text::regclass
                          and a.attrelid = object and a.attnum = part and part > 0
                     join pg_type t on t.oid = a.atttypid
                 )
                 select array(select attname::text from own order by attname) as columns,
                     array(select pg_describe_object(class, object, 0) from read
                           where class in ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_collation'::regclass)
                           or class = 'pg_type'::regclass and object not in (select atttypid from own)
                           union select format('type %s of column %I', format_type(atttypid, null), attname) from own
                           where typtype = 'b' and typcategory = 'S' and typnamespace <> 'pg_catalog'::regnamespace order by 1) as foreign"
            ),
            &[(&name, Type::TEXT)],
        )
        .await
        .doing(doing)?;
    let foreign: Vec<String> = field(&row, "foreign")?;
    if !foreign.is_empty() {
        let foreign = foreign.join(", ");
        return Err(Error::usage(format!("it uses what is not the server's own: {foreign}")).hint(COLUMN_OF_ITS_OWN));
    }
    let columns: Vec<String> = field(&row, "columns")?;
    if columns.is_empty() {
        return Err(Error::usage(format!("it reads no column of {name}")));
    }
    Ok(columns)
}

const COLUMN_OF_ITS_OWN: &str = "the application may compute it in a column of its own (generated always as (…) stored), which signup.when then names";

/// The condition as the server writes it. Refuses what depends on more than the row, by the rules for an index, and what might fail.
async fn checked(client: &Client, place: &str, name: &str, written: &str, columns: &[String]) -> Result<String> {
    let columns: Vec<String> = columns.iter().map(|column| quote::identifier(column)).collect();
    let table = format!("create table {place}.new as select {} from {name} as new with no data", columns.join(", "));
    client.batch_execute(&table).await.doing(|| "make a table of the columns that it reads".to_owned())?;
    let index = format!("create index when_checked on {place}.new ((1)) where ({written}\n)");
    client.batch_execute(&index).await.doing(|| "see whether it depends on the row alone".to_owned()).map_err(
        |error| match error.code() {
            Some("42P17") => {
                Error::usage("it depends on more than the row, as now(), random() and current_user do").because(error)
            }
            Some("42803") => Error::usage("it holds an aggregate, and a signup is one row").because(error),
            Some("0A000" | "42P20") => {
                Error::usage("it reads more than the row: a subquery, a set or a system column").because(error)
            }
            _ => error,
        },
    )?;
    let row = client
        .query_typed_one(
            &format!(
                "select pg_get_expr(i.indpred, i.indrelid) as plain, i.indpred::text ~ ':varattno 0 ' as whole,
                        array(select distinct lower(m[1]) from regexp_matches(i.indpred::text, '\\{{([A-Z_]+)', 'g') m
                              where m[1] <> all ($1) order by 1) as nodes,
                        array(select distinct coalesce('operator ' || (select min(o.oprname) from pg_operator o where o.oprcode = p.oid),
                                                       'function ' || p.oid::regprocedure, 'function ' || m[1])
                              from regexp_matches(i.indpred::text, ':(?:opfuncid|funcid) (\\d+)', 'g') m left join pg_proc p on p.oid = m[1]::oid
                              where not coalesce(p.proleakproof or p.oid::regprocedure::text ~ $2, false) order by 1) as functions,
                        exists (select from regexp_matches(i.indpred::text, ':(?:opfuncid|funcid) (\\d+)[^{{}}]* :inputcollid 0 ', 'g') m
                                join pg_proc p on p.oid = m[1]::oid join pg_type t on t.oid = any (p.proargtypes) and t.typcollation <> 0) as collations,
                        pg_get_expr(i.indpred, i.indrelid) ~ $3 as patterns
                 from pg_index i where i.indexrelid = '{place}.when_checked'::regclass"
            ),
            &[(&NODES, Type::TEXT_ARRAY), (&NEVER_FAIL, Type::TEXT), (&LIKE_AT_RISK, Type::TEXT)],
        )
        .await
        .doing(|| "see whether it could fail".to_owned())?;
    let mut risks: Vec<String> = field(&row, "functions")?;
    risks.extend(field::<Vec<String>>(&row, "nodes")?);
    for (column, risk) in [
        ("whole", "the row as a whole"),
        ("collations", "two collations that contradict each other"),
        ("patterns", "LIKE with a pattern that is no constant or ends in a backslash"),
    ] {
        risks.extend(field::<bool>(&row, column)?.then(|| risk.to_owned()));
    }
    if risks.is_empty() {
        return field(&row, "plain");
    }
    let risks = risks.join(", ");
    Err(Error::usage(format!("it could fail for some row, and the application's statement with it: it uses {risks}"))
        .hint(COLUMN_OF_ITS_OWN))
}

/// The condition with its columns taken of `new`, and that it is true of `new` and not of `old`. The server puts the names before the columns: random
/// ones, by which ours are told from whatever stands in the condition's texts.
async fn over_rows(client: &Client, place: &str, plain: &str) -> Result<(String, String)> {
    let (one, other) = (format!("r{}", Uuid::new_v4().simple()), format!("r{}", Uuid::new_v4().simple()));
    let named = |text: &str| text.replace(&one, "new").replace(&other, "old");
    let sql = format!(
        "create table {place}.when_nothing ();
         create view {place}.when_row as select ({plain}) as {one} from {place}.new as {one}, {place}.when_nothing"
    );
    client.batch_execute(&sql).await.doing(|| "take it of a row".to_owned())?;
    let row = defined(client, &format!("{place}.when_row"), &one).await?;
    let sql = format!(
        "create view {place}.when_rows as select ({row}) is true and ({}) is not true as {one} from {place}.new as {one}, {place}.new as {other}",
        row.replace(&one, &other)
    );
    client.batch_execute(&sql).await.doing(|| "take it of a row before and after".to_owned())?;
    let rows = defined(client, &format!("{place}.when_rows"), &one).await?;
    Ok((named(&row), named(&rows)))
}

/// The one expression, called `column`, that the view gives.
async fn defined(client: &Client, view: &str, column: &str) -> Result<String> {
    let sql = format!("select pg_get_viewdef('{view}'::regclass) as text");
    let row = client.query_typed_one(&sql, &[]).await.doing(|| "read what the server made of it".to_owned())?;
    let text: String = field(&row, "text")?;
    let expression = text.trim_start().strip_prefix("SELECT ").and_then(|text| text.rsplit_once("\n   FROM "));
    let expression = expression.and_then(|(text, _)| text.strip_suffix(&format!(" AS {column}")));
    expression.map(str::to_owned).ok_or_else(|| Error::new(Kind::Other, format!("the server wrote it as {text:?}")))
}

/// Tries it on some rows that are there, if we may read them.
async fn try_on_rows(client: &Client, name: &str, written: &str) -> Result<()> {
    let may_read = "select has_any_column_privilege($1::text::regclass, 'select') and not row_security_active($1::text::regclass) as may";
    let row = client.query_typed_one(may_read, &[(&name, Type::TEXT)]).await;
    if !field::<bool>(&row.doing(|| format!("see whether {name} can be read"))?, "may")? {
        return Ok(());
    }
    let sql =
        format!("select from (select ({written}\n) from {name} as new tablesample system (100) limit {TRIED}) tried");
    client.batch_execute("savepoint tried").await.doing(|| "set a savepoint".to_owned())?;
    match client.query_typed(&sql, &[]).await.doing(|| "try it on rows that are there".to_owned()) {
        Err(error) if error.kind() != Kind::Rights => Err(error),
        // A missing right is told when it is asked for, and is no fault of the condition's.
        _ => client.batch_execute("rollback to tried").await.doing(|| "roll back".to_owned()),
    }
}

/// Checks that we may read what the condition reads, for sweeps.
///
/// # Errors
/// [`Kind::Rights`].
pub(super) async fn check_rights(client: &Client, name: &str, id: &str, when: &When) -> Result<()> {
    let row = client
        .query_typed_one(
            "select current_user::text as me, not exists (
                 select from unnest($2::text[]) c where not has_column_privilege($1::text::regclass, c, 'select')) as may",
            &[(&name, Type::TEXT), (&when.columns, Type::TEXT_ARRAY)],
        )
        .await
        .doing(|| format!("see whether the columns of {name} can be read"))?;
    if field(&row, "may")? {
        return Ok(());
    }
    let (me, columns) = (quote::identifier(&field::<String>(&row, "me")?), when.and_columns());
    Err(Error::new(Kind::Rights, format!("role {me} may not read all columns of {name} that signup.when reads"))
        .hint(format!("as the table's owner: grant select ({id}{columns}), trigger on {name} to {me}")))
}

/// The rows of `sql`, which reads the signup table `table` by its condition, if it has one: then in a transaction in which every name in that
/// means what it did when it was checked. The table is locked against whoever would change its columns before they are looked at.
///
/// # Errors
/// [`Kind::Usage`] when the columns have changed, or the condition cannot be asked any more: nothing was done. Those of `sql`.
pub(super) async fn read(
    client: &mut Client,
    table: &Table,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
    doing: impl Fn() -> String,
) -> Result<Vec<Row>> {
    let Some(when) = &table.when else { return client.query_typed(sql, parameters).await.doing(doing) };
    let transaction = client.transaction().await.doing(&doing)?;
    transaction.batch_execute("set local search_path = pg_catalog, pg_temp").await.doing(&doing)?;
    let means =
        format!("{MEANS}, (select count(*) from {} as new tablesample system (100) where false) as locked", table.name);
    let row = transaction
        .query_typed_one(&means, &[(&table.name, Type::TEXT), (&when.columns, Type::TEXT_ARRAY)])
        .await
        .doing(&doing)?;
    if field::<Vec<String>>(&row, "means")? != when.means {
        return Err(Error::usage(format!("the columns of {} that signup.when reads have changed", table.name))
            .hint("the next look at the installation takes the condition anew, or says what is wrong with it")
            .context(doing()));
    }
    let rows = transaction.query_typed(sql, parameters).await.doing(&doing).map_err(|error| match error.code() {
        // A value of an enum that was renamed, say.
        Some(code) if code.starts_with("22") => error
            .with_kind(Kind::Usage)
            .hint("signup.when cannot be asked of the rows any more; correct it, and reload tenantd"),
        _ => error,
    })?;
    transaction.commit().await.doing(&doing)?;
    Ok(rows)
}
