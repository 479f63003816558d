//! A tenant's schema among others in one database: what a migration finds without naming a schema, and what it must leave alone.

use std::fmt::Write as _;

use crate::pg::quote;

/// The SQLSTATE under which [`Among::guard`] refuses a migration.
pub(super) const REFUSED: &str = "TD001";

/// Where the schema that is migrated is one of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Among {
    /// The schemas that are searched behind the tenant's own, in this order.
    pub shared: Vec<String>,
    /// What the session, which others use after it, is called while this one is migrated; `None`: as ever.
    pub application_name: Option<String>,
}

impl Among {
    /// What is searched: the tenant's own schema first, so that what is made without the name of a schema is made there.
    pub(super) fn search_path(&self, schema: &str) -> String {
        self.shared.iter().fold(quote::identifier(schema), |mut path, shared| {
            // Writing to a String cannot fail.
            let _ = write!(path, ", {}", quote::identifier(shared));
            path
        })
    }

    /// Calls the session by its name for as long as the transaction lasts.
    pub(super) fn name_session(&self) -> String {
        let name = |name: &String| format!("set local application_name = {};", quote::literal(name));
        self.application_name.as_ref().map_or_else(String::new, name)
    }

    /// Remembers within the transaction which relations there were before the file, those of `schema` and all: cursors see what was there when they
    /// were declared. They are read only if something was dropped.
    pub(super) fn remember(schema: &str) -> String {
        format!(
            "declare tenantd_own cursor for
             with own as (
                 select d.objid as oid from pg_catalog.pg_depend d
                 where d.refclassid = 'pg_catalog.pg_namespace'::regclass and d.refobjid = pg_catalog.to_regnamespace({schema})
                 and d.classid = 'pg_catalog.pg_class'::regclass
             ), stored as (
                 select oid from own
                 union all select c.reltoastrelid from own join pg_catalog.pg_class c on c.oid = own.oid where c.reltoastrelid <> 0
             )
             select oid from stored union all select i.indexrelid from stored join pg_catalog.pg_index i on i.indrelid = stored.oid;
             declare tenantd_all cursor for
             select c.oid, c.relname, n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace;",
            schema = quote::literal(&quote::identifier(schema))
        )
    }

    /// Refuses the transaction if it locked away a relation outside the tenant's `schema`, which whoever changes or drops one does, or made or dropped
    /// an extension, of which there were so many. A foreign key to a shared table takes a weaker lock, and passes.
    pub(super) fn guard(schema: &str, extensions: &str) -> String {
        let said = format!(
            "raise exception using errcode = '{REFUSED}', message = pg_catalog.format('it changes %I.%I, which is not the tenant''s', one.nspname, one.relname)"
        );
        format!(
            "set local search_path = pg_catalog, pg_temp;
             do $tenantd$
             declare
                 here constant oid := to_regnamespace({schema});
                 of_all constant refcursor := 'tenantd_all';
                 of_own constant refcursor := 'tenantd_own';
                 gone oid[] := '{{}}';
                 one record;
             begin
                 if (select count(*) from pg_extension) <> {extensions} then
                     raise exception using errcode = '{REFUSED}', message = 'it makes or drops an extension, which all tenants of the database share';
                 end if;
                 for one in
                     select l.relation, c.relname, n.nspname, n.oid as nspoid from pg_locks l
                     left join pg_class c on c.oid = l.relation left join pg_namespace n on n.oid = c.relnamespace
                     where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted
                     and l.database = (select d.oid from pg_database d where d.datname = current_database())
                     and (n.oid is null or n.oid <> here and n.nspname !~ '^pg_(toast|temp)')
                 loop
                     if one.nspoid is not null then {said}; end if;
                     gone := gone || one.relation;
                 end loop;
                 -- What it dropped can be seen by those cursors only. What they do not know either it made itself.
                 if cardinality(gone) > 0 then
                     loop fetch of_own into one; exit when not found; gone := array_remove(gone, one.oid); end loop;
                 end if;
                 if cardinality(gone) > 0 then
                     loop
                         fetch of_all into one;
                         exit when not found;
                         if one.oid = any (gone) and one.nspname !~ '^pg_(toast|temp)' then {said}; end if;
                     end loop;
                 end if;
             end
             $tenantd$;",
            schema = quote::literal(&quote::identifier(schema)),
        )
    }
}
