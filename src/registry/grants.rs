//! Roles and grants in the main database: who may read the view, and whether the roles that the settings name can do their part.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::field;
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};
use crate::tenant::RANDOM_PREFIX;

/// Lets the application's roles read the view and wait.
///
/// # Errors
/// The server did not let us grant.
pub(super) async fn grant(
    client: &Client,
    config: &Config,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let tenant = &config.tenant;
    for role in &tenant.use_roles {
        let granted = client
            .query_typed_one(
                "select has_schema_privilege($1, 'tenantd', 'usage') and has_table_privilege($1, 'tenantd.tenants', 'select')
                 and has_function_privilege($1, 'tenantd.wait(text, interval)', 'execute') as granted",
                &[(role, Type::TEXT)],
            )
            .await
            .doing(|| format!("look at the grants of role {role:?}"))?;
        if !field::<bool>(&granted, "granted")? {
            let role = quote::identifier(role);
            client
                .batch_execute(&format!(
                    "grant usage on schema tenantd to {role}; grant select on tenantd.tenants to {role};
                     grant execute on function tenantd.wait(text, interval) to {role}"
                ))
                .await
                .doing(|| format!("let role {role} read the view tenantd.tenants"))?;
            changes.push(format!("let role {role} read the view tenantd.tenants and call tenantd.wait()"));
        }
    }
    notes.extend(notes_on_roles(config));
    Ok(())
}

/// What a person should know of the roles that the settings name, or leave out.
#[must_use]
pub fn notes_on_roles(config: &Config) -> Vec<String> {
    let tenant = &config.tenant;
    let mut notes = Vec::new();
    if tenant.use_roles.is_empty() && tenant.connect_roles.is_empty() {
        notes.push("nobody but tenantd could use a tenant: name the application's role in tenant.use".to_owned());
    }
    if tenant.owner.is_none() {
        notes.push(
            "the tenants belong to tenantd's own role: name a role without login in tenant.owner to keep the two apart"
                .to_owned(),
        );
    }
    notes
}

/// Checks the roles that the settings name, and that ours may make databases and give them away.
///
/// # Errors
/// [`Kind::Usage`] for a role that does not exist; [`Kind::Rights`] for a right that is missing, with the statement that gives it.
pub(super) async fn check_roles(client: &Client, config: &Config, notes: &mut Vec<String>) -> Result<()> {
    match lacking(client, config, notes).await?.into_iter().next() {
        Some(lacks) => Err(lacks),
        None => Ok(()),
    }
}

/// Makes sure that the tenants' owner owns nothing but tenants, where these have schemas in the main database: its migrations could reach that. A role
/// that it is a member of counts as itself. Whatever is named as a tenant is taken for one, restored or left over: a sweep tells of it, and it must
/// not stop the others.
///
/// # Errors
/// [`Kind::Usage`], naming what it owns.
pub(super) async fn owner_has_tenants_only(client: &Client, config: &Config) -> Result<()> {
    let (Isolation::Schema, Some(owner)) = (config.tenant.isolation, &config.tenant.owner) else { return Ok(()) };
    let row = client
        .query_typed_one(
            "with tenants as (
                 select n.oid from pg_namespace n left join pg_description m on m.objoid = n.oid and m.classoid = 'pg_namespace'::regclass and m.objsubid = 0
                 where starts_with(m.description, 'tenantd ' || (select id from tenantd.registry) || ' ')
                 or n.nspname in (select name from tenantd.tenant) or starts_with(n.nspname, $2) or $3 <> '' and starts_with(n.nspname, $3)
                 or n.nspname ~ '^pg_(toast|temp)'
             ), own as (
                 select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where pg_has_role($1, c.relowner, 'usage') and c.relnamespace not in (select oid from tenants) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                 union all
                 select format('the schema %I', n.nspname) from pg_namespace n
                 where pg_has_role($1, n.nspowner, 'usage') and n.oid not in (select oid from tenants)
             )
             select array(select name from own order by 1 limit 5) as named, (select count(*) from own) as number",
            &[(owner, Type::TEXT), (&RANDOM_PREFIX, Type::TEXT), (&config.tenant.names.prefix(), Type::TEXT)],
        )
        .await
        .doing(|| format!("look what role {owner:?} owns"))?;
    let (named, number): (Vec<String>, i64) = (field(&row, "named")?, field(&row, "number")?);
    if number == 0 {
        return Ok(());
    }
    let more = if number > 5 { " and more" } else { "" };
    Err(Error::usage(format!("role {owner:?}, which is to own the tenants' schemas, has more than these: {}{more}", named.join(", "))).hint(
        "a careless migration could change or drop that: give it to another role (alter … owner to), or name a role that owns nothing in tenant.owner",
    ))
}

/// Makes the extensions that tenants share, in the first of the shared schemas.
///
/// # Errors
/// [`Kind::Rights`], with the statement for whoever may.
pub(super) async fn make_extensions(client: &Client, config: &Config, changes: &mut Vec<String>) -> Result<()> {
    let (Isolation::Schema, Some(schema)) = (config.tenant.isolation, config.tenant.shared_schemas.first()) else {
        return Ok(());
    };
    for name in &config.tenant.extensions {
        let there = client
            .query_typed_opt("select from pg_extension where extname = $1", &[(name, Type::TEXT)])
            .await
            .doing(|| format!("look for the extension {name:?}"))?;
        if there.is_some() {
            continue;
        }
        let create =
            format!("create extension if not exists {} schema {}", quote::identifier(name), quote::identifier(schema));
        client.batch_execute(&create).await.doing(|| create.clone()).map_err(|error| match error.kind() {
            Kind::Rights => error.hint(format!("as a superuser, in the main database: {create}")),
            _ => error.hint("is it on the server? select name from pg_available_extensions"),
        })?;
        changes.push(format!("made the extension {name} in the schema {schema}"));
    }
    Ok(())
}

/// What the roles lack, each as the error that it would come to.
///
/// # Errors
/// The server cannot be asked.
pub async fn lacking(client: &Client, config: &Config, notes: &mut Vec<String>) -> Result<Vec<Error>> {
    let tenant = &config.tenant;
    let schemas = tenant.isolation == Isolation::Schema;
    let named: Vec<&String> = tenant.owner.iter().chain(&tenant.use_roles).chain(&tenant.connect_roles).collect();
    let row = client
        .query_typed_one(
            "select array(select r from unnest($1::text[]) r where not exists (select from pg_roles where rolname = r)) as missing,
                    case when $3 then has_database_privilege(current_database(), 'create')
                         else (select rolcreatedb or rolsuper from pg_roles where rolname = current_user) end as may_create,
                    current_database()::text as here,
                    coalesce((select pg_has_role(current_user, oid, 'usage') and case
                        when current_setting('server_version_num')::int >= 160000 then pg_has_role(current_user, oid, 'set') else true end
                        from pg_roles where rolname = $2), true) as may_own,
                    coalesce((select rolcanlogin from pg_roles where rolname = $2), false) as owner_logs_in,
                    current_user::text as me",
            &[(&named, Type::TEXT_ARRAY), (&tenant.owner, Type::TEXT), (&schemas, Type::BOOL)],
        )
        .await
        .doing(|| "look at the roles named in the settings".to_owned())?;
    let missing: Vec<String> = field(&row, "missing")?;
    let me = quote::identifier(&field::<String>(&row, "me")?);
    let mut lacking = Vec::new();
    if !missing.is_empty() {
        lacking.push(Error::usage(format!("the server has no role {}", missing.join(", ")))
            .hint("tenant.owner, tenant.use and tenant.connect name roles of the server: create them, or correct the settings"));
    }
    if !field::<bool>(&row, "may_create")? {
        lacking.push(if schemas {
            let here = quote::identifier(&field::<String>(&row, "here")?);
            Error::new(Kind::Rights, format!("role {me} may not create schemas in database {here}"))
                .hint(format!("as an administrator: grant create on database {here} to {me}"))
        } else {
            Error::new(Kind::Rights, format!("role {me} may not create databases"))
                .hint(format!("as an administrator: alter role {me} createdb"))
        });
    }
    if !field::<bool>(&row, "may_own")? {
        let owner = quote::identifier(tenant.owner.as_deref().unwrap_or_default());
        lacking.push(Error::new(Kind::Rights, format!("role {me} is no member of {owner}")).hint(format!(
            "as an administrator: grant {owner} to {me} (Postgres 16 and later: with inherit true, set true)"
        )));
    }
    if field::<bool>(&row, "owner_logs_in")? {
        notes.push(
            "the role in tenant.owner may log in: what it makes in a tenant (triggers, views) runs while tenantd migrates, with tenantd's \
             rights; take a role without login, and name the application's role in tenant.use"
                .to_owned(),
        );
    }
    Ok(lacking)
}
