-- tenantd: breaking = yes, the first registry
--
-- Written so that it can run again over what is there: `tenantd setup` mends a registry from which a table was dropped.

-- Which registry this is, and which database it was made for. A copy of the database on the same server is told by the pair.
create table if not exists tenantd.registry (
    one boolean primary key default true check (one),
    id uuid not null default gen_random_uuid(),
    system_identifier bigint not null,
    database_oid oid not null,
    -- The newest breaking migration of the registry: a tenantd that does not carry it must not work here.
    needs_version bigint not null default 1,
    -- The signup table; when another one takes its place, its users are held anew.
    signup_table text,
    -- When the users from before the installation got their held rows; null: not yet.
    users_held_at timestamptz,
    created_at timestamptz not null default now()
);

-- One row a tenant. `state` is what the application may rely on, `work` what the daemon has still to do.
create table if not exists tenantd.tenant (
    key text primary key,
    name text,
    state text not null default 'requested' check (state in ('requested', 'ready', 'deleting', 'deleted')),
    work text not null default 'due' check (work in ('idle', 'due', 'failing', 'parked', 'held')),
    attempt bigint not null default 0,
    failures integer not null default 0,
    due_at timestamptz not null default now(),
    leased_until timestamptz,
    leased_by text,
    error_kind text,
    error_text text,
    error_sqlstate text,
    error_step text,
    version bigint,
    migrated_at timestamptz,
    migration_set text,
    access text,
    database_oid oid,
    verified_at timestamptz,
    cluster text not null default 'main',
    created_at timestamptz not null default now(),
    ready_at timestamptz
);

-- Both are partial so that a signup, which has neither a name nor anything but work due, pays for as little as can be.
create unique index if not exists tenant_name on tenantd.tenant (name) where name is not null;
create index if not exists tenant_due on tenantd.tenant (due_at) where work in ('due', 'failing');

-- Every migration set that ever ran, whole: what a tenant has is compared with it without a connection to the tenant.
create table if not exists tenantd.migration_set (
    id text not null,
    position integer not null,
    version bigint not null,
    name text not null,
    checksum text not null,
    seen_at timestamptz not null default now(),
    primary key (id, position)
);

-- Databases in the making, each under a random name, written before CREATE DATABASE is sent.
create table if not exists tenantd.spare (
    name text primary key,
    key text not null,
    attempt bigint not null,
    created_at timestamptz not null default now()
);

-- What applications read. Deleted tenants are left out.
create or replace view tenantd.tenants as
select key, name, state, work, version, cluster, failures,
       case when error_kind is not null then error_kind || ': ' || error_text end as last_error,
       ready_at
from tenantd.tenant
where state <> 'deleted';

-- Waits until the tenant is ready, parked (a person must look) or the time is over, and returns its state; null when there is no such tenant.
-- Without a time (null) it waits as long as by default.
create or replace function tenantd.wait(key text, timeout interval default '30 seconds') returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    deadline constant timestamptz := clock_timestamp() + coalesce(wait.timeout, '30 seconds');
    pause double precision := 0.005;
    seen record;
begin
    loop
        select t.state, t.work into seen from tenantd.tenant t where t.key = wait.key and t.state <> 'deleted';
        if seen.state = 'ready' or seen.work = 'parked' or clock_timestamp() >= deadline then
            return seen.state;
        end if;
        perform pg_sleep(least(pause, extract(epoch from deadline - clock_timestamp())));
        pause := least(pause * 1.5, 0.1);
    end loop;
end
$$;
revoke all on function tenantd.wait(text, interval) from public;

-- Tenants that were deleted and whose key signs up again. Called by the trigger only when it met a key that it knew.
create or replace function tenantd.request_again(keys text[]) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    requested bigint;
begin
    update tenantd.tenant t
    set state = 'requested', work = 'due', due_at = now(), failures = 0, name = null, version = null, migrated_at = null,
        migration_set = null, access = null, database_oid = null, verified_at = null, ready_at = null, created_at = now(),
        error_kind = null, error_text = null, error_sqlstate = null, error_step = null
    where t.key = any (keys) and t.state = 'deleted';
    get diagnostics requested = row_count;
    return requested;
end
$$;
revoke all on function tenantd.request_again(text[]) from public;
