//! The triggers that notice signups: one on inserts and, where `signup.when` is set, one on the updates that make its condition true.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::field;
use super::signup::Table;
use super::triggers::{CREATE_OR_REPLACE, Trigger, put_trigger, server_version, stands, without_queueing};
use super::when::When;
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};

/// The trigger on inserts.
pub const ON_INSERT: &str = "tenantd_signup";
/// The trigger on updates.
pub const ON_UPDATE: &str = "tenantd_signup_update";

/// A trigger as it should be. It calls the function and does nothing else, since a role with TRIGGER alone cannot drop it, only replace it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'static str,
    /// The table it is on, quoted.
    pub on: &'a str,
    fires: Fires<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Fires<'a> {
    /// Once for all rows of an insert.
    ForStatement,
    /// For each row that is inserted.
    ForRow,
    /// For each row that is inserted with the condition true. By row, since a WHEN runs as whoever inserts, and what the function does as tenantd.
    When(&'a When),
    /// For each row of which an update makes the condition true. Others cost nothing, or the condition alone if they write its columns.
    MadeTrue(&'a When),
    /// Never: what is left of one that we may not drop. The column is the id's, which is hardly ever updated.
    Never(&'a str),
}

/// The triggers that `table` should have.
#[must_use]
pub fn wanted(table: &Table) -> Vec<Wanted<'_>> {
    table.triggers_on.iter().flat_map(|on| wanted_on(table, on)).collect()
}

fn wanted_on<'a>(table: &'a Table, on: &'a str) -> Vec<Wanted<'a>> {
    let inserts = match &table.when {
        Some(when) => Fires::When(when),
        None if table.by_row => Fires::ForRow,
        None => Fires::ForStatement,
    };
    let updates = table.when.as_ref().map(|when| Wanted { name: ON_UPDATE, on, fires: Fires::MadeTrue(when) });
    std::iter::once(Wanted { name: ON_INSERT, on, fires: inserts }).chain(updates).collect()
}

impl Wanted<'_> {
    /// The statement that makes it, in the place of another of its name if `replace` says so.
    #[must_use]
    pub fn sql(&self, replace: bool) -> String {
        let create = if replace { "create or replace" } else { "create" };
        let columns: Vec<String> = self.columns().iter().map(|column| quote::identifier(column)).collect();
        let event = match self.fires {
            Fires::MadeTrue(_) | Fires::Never(_) => format!("update of {}", columns.join(", ")),
            _ => "insert".to_owned(),
        };
        let each = match self.fires {
            Fires::ForStatement => "referencing new table as added for each statement",
            _ => "for each row",
        };
        let when = self.when().map(|when| format!(" when ({when})")).unwrap_or_default();
        format!(
            "{create} trigger {} after {event} on {} {each}{when} execute function tenantd.signup();\n",
            self.name, self.on
        )
    }

    fn columns(&self) -> Vec<&str> {
        match self.fires {
            Fires::MadeTrue(when) => when.columns.iter().map(String::as_str).collect(),
            Fires::Never(column) => vec![column],
            _ => Vec::new(),
        }
    }

    fn when(&self) -> Option<&str> {
        match self.fires {
            Fires::When(when) => Some(&when.new),
            Fires::MadeTrue(when) => Some(&when.made_true),
            Fires::Never(_) => Some("false"),
            _ => None,
        }
    }

    /// How it stands.
    ///
    /// # Errors
    /// The catalogue could not be read.
    pub async fn stands(&self, client: &Client) -> Result<Trigger> {
        let (kind, added): (i16, Option<&str>) = match self.fires {
            Fires::ForStatement => (4, Some("added")),
            Fires::ForRow | Fires::When(_) => (5, None),
            Fires::MadeTrue(_) | Fires::Never(_) => (17, None),
        };
        let (columns, when) = (self.columns(), self.when());
        let ours = "t.tgfoid = to_regprocedure('tenantd.signup()') and t.tgtype = $3 and t.tgnewtable is not distinct from $4
                    and array(select a.attname::text from pg_attribute a
                              where a.attrelid = t.tgrelid and a.attnum = any (t.tgattr) order by a.attname) = $5
                    and substring(pg_get_triggerdef(t.oid) from ' WHEN \\((.*)\\) EXECUTE FUNCTION ') is not distinct from $6";
        let parameters: super::Parameters<'_> =
            &[(&kind, Type::INT2), (&added, Type::TEXT), (&columns, Type::TEXT_ARRAY), (&when, Type::TEXT)];
        stands(client, self.on, self.name, ours, parameters).await
    }

    /// Puts it there if it is missing or wrong. Returns how it stood before.
    ///
    /// # Errors
    /// [`Kind::Locked`] when the table could not be had between long transactions: nothing was changed, signups went on. [`Kind::Rights`].
    async fn put(&self, client: &Client) -> Result<Trigger> {
        let stands = self.stands(client).await?;
        if matches!(stands, Trigger::Missing | Trigger::Wrong) {
            let put = put_trigger(client, self.name, self.on, stands, |replace| self.sql(replace)).await;
            put.map_err(|error| {
                let hint = match error.kind() {
                    Kind::Locked => {
                        "a long transaction, or a VACUUM, on the signup table is in the way; tenantd tries again, and sweeps find the users meanwhile"
                    }
                    Kind::Rights => "as its owner, grant trigger on the table that is named to tenantd's role; a partitioned table needs it on each partition",
                    _ => "nothing was changed; signups go on",
                };
                error.hint(hint).context(format!("put the trigger {} on {}", self.name, self.on))
            })?;
        }
        Ok(stands)
    }
}

/// Puts every trigger that `table` should have, and takes away the one on updates where there is no condition any more. Compares with the
/// catalogue first.
///
/// # Errors
/// As for one trigger; that of a child table which we have no right on is only a note.
pub async fn install(client: &Client, table: &Table, changes: &mut Vec<String>, notes: &mut Vec<String>) -> Result<()> {
    for on in &table.triggers_on {
        let installed = install_on(client, table, on, changes, notes).await;
        match installed {
            // A child that the application added must not keep the daemon from all the others.
            Err(error) if error.kind() == Kind::Rights && *on != table.name => notes.push(format!(
                "only sweeps find the signups of {on}: {}; {}",
                error.chain(),
                error.advice().unwrap_or_default()
            )),
            installed => installed?,
        }
    }
    Ok(())
}

async fn install_on(
    client: &Client,
    table: &Table,
    on: &str,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    for wanted in wanted_on(table, on) {
        let name = wanted.name;
        match wanted.put(client).await? {
            Trigger::Right => {}
            Trigger::Missing | Trigger::Wrong => changes.push(format!("put the trigger {name} on {on}")),
            Trigger::Disabled => notes.push(format!(
                "the trigger {name} on {on} is switched off, so only sweeps find its signups: alter table {on} enable trigger {name}"
            )),
        }
    }
    if table.when.is_none() { take_away(client, table, on, changes, notes).await } else { Ok(()) }
}

/// Takes the trigger on updates away, or, where only the table's owner may do that, lets it never fire.
async fn take_away(
    client: &Client,
    table: &Table,
    on: &str,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let never = Wanted { name: ON_UPDATE, on, fires: Fires::Never(&table.id_name) };
    let stands = never.stands(client).await?;
    if stands == Trigger::Missing {
        return Ok(());
    }
    let may_drop = "select pg_has_role(c.relowner, 'usage') as may from pg_class c where c.oid = $1::text::regclass";
    let row = client.query_typed_one(may_drop, &[(&on, Type::TEXT)]).await;
    if field(&row.doing(|| format!("see who owns {on}"))?, "may")? {
        without_queueing(client, &format!("drop trigger {ON_UPDATE} on {on}")).await.map_err(taking(on))?;
        changes.push(format!("took the trigger {ON_UPDATE} on {on} away"));
        return Ok(());
    }
    let owner = format!("its owner may drop it: drop trigger {ON_UPDATE} on {on}");
    if server_version(client).await? < CREATE_OR_REPLACE {
        notes.push(format!("the trigger {ON_UPDATE} on {on} serves a condition that is set no more; {owner}"));
    } else if stands == Trigger::Wrong {
        without_queueing(client, &never.sql(true)).await.map_err(taking(on))?;
        changes.push(format!("let the trigger {ON_UPDATE} on {on} do nothing any more; {owner}"));
    }
    Ok(())
}

fn taking(on: &str) -> impl FnOnce(Error) -> Error {
    move |error| error.context(format!("take the trigger {ON_UPDATE} on {on} away"))
}

#[cfg(test)]
mod tests {
    use crate::config::{Sources, load};

    use super::*;

    #[test]
    fn each_trigger_is_one_line_that_calls_the_function() {
        let config = load(&Sources::of([
            ("PGHOST", "localhost"),
            ("PGUSER", "tenantd"),
            ("PGDATABASE", "app"),
            ("TENANTD_SIGNUP__TABLE", "a.\"b.c\""),
        ]))
        .unwrap()
        .config;
        let plain = Table::ordinary(&config.signup, None);
        let sql = |table: &Table| wanted(table).iter().map(|wanted| wanted.sql(false)).collect::<String>();
        let insert = "create trigger tenantd_signup after insert on \"a\".\"b.c\"";
        let call = "execute function tenantd.signup();\n";
        assert_eq!(sql(&plain), format!("{insert} referencing new table as added for each statement {call}"));
        assert_eq!(sql(&Table { by_row: true, ..plain.clone() }), format!("{insert} for each row {call}"));
        let when = r#"{"written": "x", "columns": ["Paid", "x"], "new": "(new.x)", "made_true": "(new.x AND NOT old.x)", "means": []}"#;
        let when = Table { when: serde_json::from_str(when).unwrap(), ..plain };
        let update = "create trigger tenantd_signup_update after update of \"Paid\", \"x\" on \"a\".\"b.c\" for each row when ((new.x AND NOT old.x))";
        assert_eq!(sql(&when), format!("{insert} for each row when ((new.x)) {call}{update} {call}"));
        let never = Wanted { name: ON_UPDATE, on: "t", fires: Fires::Never("id") }.sql(true);
        assert_eq!(
            never,
            format!(
                "create or replace trigger tenantd_signup_update after update of \"id\" on t for each row when (false) {call}"
            )
        );
    }
}
