//! Roles and grants in the main database: who may read the view, and whether the roles that the settings name can do their part.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::field;
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, quote};

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
                    coalesce(case when $3 then (select has_database_privilege(oid, 'create') from pg_database where datname = coalesce($4, current_database())) end,
                             (select rolcreatedb or rolsuper from pg_roles where rolname = current_user)) as may_create,
                    coalesce($4, current_database()::text) as here,
                    $3 and exists (select from pg_database where datname = coalesce($4, current_database())) as there,
                    coalesce((select pg_has_role(current_user, oid, 'usage') and case
                        when current_setting('server_version_num')::int >= 160000 then pg_has_role(current_user, oid, 'set') else true end
                        from pg_roles where rolname = $2), true) as may_own,
                    coalesce((select rolcanlogin from pg_roles where rolname = $2), false) as owner_logs_in,
                    current_user::text as me",
            &[
                (&named, Type::TEXT_ARRAY),
                (&tenant.owner, Type::TEXT),
                (&schemas, Type::BOOL),
                (&tenant.database, Type::TEXT),
            ],
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
        lacking.push(if field(&row, "there")? {
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
