//! The database that the tenants' schemas are in, made ready for them: there, entered by those who may, with the extensions that tenants share.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::elsewhere::unreachable;
use super::field;
use super::hand_over::grant_connect;
use crate::config::{Config, Isolation};
use crate::error::{Error, Kind, Result};
use crate::pg::{Doing, Server, quote};
use crate::tenant::RANDOM_PREFIX;

/// Makes what is missing, where tenants have schemas. `main` is a session on the main database.
///
/// # Errors
/// [`Kind::Usage`] when the tenants' owner has more there than tenants, or a schema that they are to share is missing; [`Kind::Rights`], with the statement for
/// whoever may.
pub(super) async fn prepare(
    server: &Server,
    main: &Client,
    config: &Config,
    changes: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    if config.tenant.isolation != Isolation::Schema {
        return Ok(());
    }
    let Some(database) = &config.tenant.database else {
        owner_has_tenants_only(main, main, config).await?;
        look_at_shared(main, config, notes).await?;
        return make_extensions(main, config, changes).await;
    };
    let there = match server.connect(Some(database), "tenantd:setup").await {
        Err(error) if error.code() == Some("3D000") => {
            make(main, config, database).await?;
            changes.push(format!("made the database {database} for the tenants' schemas"));
            server.connect(Some(database), "tenantd:setup").await
        }
        connected => connected,
    };
    let there = there.map_err(|error| unreachable(error, database))?;
    owner_has_tenants_only(main, &there, config).await?;
    look_at_shared(&there, config, notes).await?;
    make_extensions(&there, config, changes).await?;
    there.close().await;
    Ok(())
}

/// Makes the database, which only those may enter who work in the tenants. One that was there before keeps the rights that it has.
async fn make(main: &Client, config: &Config, database: &str) -> Result<()> {
    let name = quote::identifier(database);
    let create = format!("create database {name}");
    main.batch_execute(&create).await.doing(|| create.clone()).map_err(|error| match error.kind() {
        Kind::Rights => error.hint(format!("as an administrator: {create} owner …, or: alter role … createdb")),
        _ => error,
    })?;
    let roles: Vec<String> = config.tenant.use_roles.iter().chain(&config.tenant.connect_roles).cloned().collect();
    let rights =
        format!("revoke connect, temporary on database {name} from public; {}", grant_connect(database, &roles));
    main.batch_execute(&rights).await.doing(|| rights.clone())
}

/// Makes sure that the tenants' owner owns nothing but tenants, in the database that their schemas are in: its migrations could reach that. A role
/// that it is a member of counts as itself. Whatever is named as a tenant is taken for one, restored or left over: a sweep tells of it, and it must not stop
/// the others.
///
/// # Errors
/// [`Kind::Usage`], naming what it owns.
async fn owner_has_tenants_only(main: &Client, there: &Client, config: &Config) -> Result<()> {
    let Some(owner) = &config.tenant.owner else { return Ok(()) };
    let ours = main
        .query_typed_one(
            "select format('tenantd %s ', id) as marks, array(select name from tenantd.tenant where name is not null) as names from tenantd.registry",
            &[],
        )
        .await
        .doing(|| "look which schemas are ours".to_owned())?;
    let (marks, tenants): (String, Vec<String>) = (field(&ours, "marks")?, field(&ours, "names")?);
    let row = there
        .query_typed_one(
            "with tenants as (
                 select n.oid from pg_namespace n left join pg_description m on m.objoid = n.oid and m.classoid = 'pg_namespace'::regclass and m.objsubid = 0
                 where starts_with(m.description, $2) or n.nspname = any ($3::text[]::name[]) or starts_with(n.nspname, $4)
                 or $5 <> '' and starts_with(n.nspname, $5) or n.nspname ~ '^pg_(toast|temp)'
             ), own as (
                 select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where pg_has_role($1, c.relowner, 'usage') and c.relnamespace not in (select oid from tenants) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                 union all
                 select format('the schema %I', n.nspname) from pg_namespace n
                 where pg_has_role($1, n.nspowner, 'usage') and n.oid not in (select oid from tenants)
             )
             select array(select name from own order by 1 limit 5) as named, (select count(*) from own) as number",
            &[
                (owner, Type::TEXT),
                (&marks, Type::TEXT),
                (&tenants, Type::TEXT_ARRAY),
                (&RANDOM_PREFIX, Type::TEXT),
                (&config.tenant.names.prefix(), Type::TEXT),
            ],
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

/// Makes sure that the schemas which tenants share are there, and notes who of those that work in tenants may not enter one.
///
/// # Errors
/// [`Kind::Usage`], naming what is missing.
async fn look_at_shared(client: &Client, config: &Config, notes: &mut Vec<String>) -> Result<()> {
    let tenant = &config.tenant;
    let roles: Vec<&String> = tenant.owner.iter().chain(&tenant.use_roles).collect();
    let row = client
        .query_typed_one(
            "select array(select s from unnest($1::text[]) s where to_regnamespace(quote_ident(s)) is null) as missing,
                    array(select format('grant usage on schema %I to %I', n.nspname, r.rolname)
                          from pg_namespace n, pg_roles r where n.nspname = any ($1::text[]::name[]) and r.rolname = any ($2::text[]::name[])
                          and not has_schema_privilege(r.oid, n.oid, 'usage') order by 1) as shut,
                    current_database()::text as here",
            &[(&tenant.shared_schemas, Type::TEXT_ARRAY), (&roles, Type::TEXT_ARRAY)],
        )
        .await
        .doing(|| "look at the schemas in tenant.shared_schemas".to_owned())?;
    let (missing, here): (Vec<String>, String) = (field(&row, "missing")?, field(&row, "here")?);
    if !missing.is_empty() {
        let create: Vec<String> =
            missing.iter().map(|name| format!("create schema {}", quote::identifier(name))).collect();
        return Err(Error::usage(format!(
            "tenant.shared_schemas names what database {here:?} does not have: {}",
            missing.join(", ")
        ))
        .hint(format!("correct the setting, or make them there: {}", create.join("; "))));
    }
    let shut: Vec<String> = field(&row, "shut")?;
    if !shut.is_empty() {
        notes
            .push(format!("who works in tenants may not enter every shared schema; as its owner: {}", shut.join("; ")));
    }
    Ok(())
}

/// Makes the extensions that tenants share, in the first of the shared schemas.
///
/// # Errors
/// [`Kind::Rights`], with the statement for whoever may.
async fn make_extensions(client: &Client, config: &Config, changes: &mut Vec<String>) -> Result<()> {
    let Some(schema) = config.tenant.shared_schemas.first() else { return Ok(()) };
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
            Kind::Rights => error.hint(format!(
                "as a superuser, in database {}: {create}",
                quote::identifier(config.tenant.database.as_ref().unwrap_or(&config.main.database))
            )),
            _ => error.hint("is it on the server? select name from pg_available_extensions"),
        })?;
        changes.push(format!("made the extension {name} in the schema {schema}"));
    }
    Ok(())
}
