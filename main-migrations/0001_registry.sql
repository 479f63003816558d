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
    -- What a tenant has of its own: a database, or a schema.
    isolation text not null default 'database' check (isolation in ('database', 'schema')),
    -- The database that those schemas are in; null: this one.
    tenants_in text,
    -- The signup table; when another one takes its place, its users are held anew.
    signup_table text,
    -- Which of its rows count as signups, and what the server made of that; null: each does. When it changes, the users whom it brings in are held.
    signup_when jsonb,
    -- When the users from before the installation got their held rows; null: not yet.
    users_held_at timestamptz,
    -- The daemon that builds templates and makes spares, one at a time, and how long it may.
    keeper text,
    keeper_until timestamptz,
    created_at timestamptz not null default now()
);

do $$
begin
    create domain tenantd.state as text check (value in ('requested', 'ready', 'deleting', 'deleted'));
exception when duplicate_object then null;
end
$$;
do $$
begin
    create domain tenantd.work as text check (value in ('idle', 'due', 'failing', 'parked', 'held'));
exception when duplicate_object then null;
end
$$;

-- One row a tenant. `state` is what the application may rely on, `work` what the daemon has still to do.
create table if not exists tenantd.tenant (
    key text primary key,
    name text,
    state tenantd.state not null default 'requested',
    work tenantd.work not null default 'due',
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
    -- The version before the last change of it.
    migrated_from bigint,
    access text,
    database_oid oid,
    verified_at timestamptz,
    cluster text not null default 'main',
    created_at timestamptz not null default now(),
    ready_at timestamptz,
    -- When the key signed up again while its tenant was being deleted: it gets another one when that is done.
    again_at timestamptz
);

create unique index if not exists tenant_name on tenantd.tenant (name) where name is not null;
create index if not exists tenant_due on tenantd.tenant (due_at) where work in ('due', 'failing');

-- What the trigger writes: signups that no daemon has seen yet, each a narrow row without an index, which is the least that a signup can cost.
create table if not exists tenantd.signup (
    key text not null,
    signed_up_at timestamptz not null default clock_timestamp()
);

-- What the trigger on deletions writes, where signup.on_delete = 'drop': users whose tenants go with them.
create table if not exists tenantd.departure (
    key text not null,
    departed_at timestamptz not null default clock_timestamp()
);

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

-- How a migration set goes through the fleet: canaries, then waves. A set without a row here goes to every tenant that lacks it, and to new ones.
create table if not exists tenantd.rollout (
    migration_set text primary key,
    version bigint not null,
    state text not null default 'running' check (state in ('running', 'paused', 'aborted', 'done', 'overtaken')),
    -- Why it is paused.
    why text,
    -- Whether it is paused since every canary failed, and goes on by itself when one of them succeeds.
    by_canaries boolean not null default false,
    -- Those that get it first, and how many tenants were behind when they were chosen.
    canaries text[],
    behind bigint,
    -- Since when new tenants get it: a canary succeeded, or there was nobody to try it on.
    passed_at timestamptz,
    -- What the canaries took, in seconds: of one tenant on average, and the longest.
    seconds double precision,
    longest double precision,
    -- Who drives it, and until when unless renewed.
    leased_by text,
    leased_until timestamptz,
    started_at timestamptz not null default now(),
    started_by text not null,
    ended_at timestamptz
);

-- Templates: each holds exactly one migration set, and every tenant's database begins as a clone of one.
create table if not exists tenantd.template (
    name text primary key,
    migration_set text not null,
    version bigint not null,
    -- Fingerprints of what else is the same in every clone: owner and grants; these and the extensions.
    access text not null,
    shape text not null,
    database_oid oid,
    bytes bigint,
    -- Null while it is being built.
    completed_at timestamptz,
    -- Since when nothing is made from it any more.
    retired_at timestamptz,
    -- How often in a row building it failed, the last time why, and when it is tried again.
    failures integer not null default 0,
    due_at timestamptz not null default now(),
    error_kind text,
    error_text text,
    error_sqlstate text,
    created_at timestamptz not null default now()
);

-- Databases under a random name, each written down before CREATE DATABASE is sent: made ahead of time for anyone, or for one tenant's attempt.
create table if not exists tenantd.spare (
    name text primary key,
    -- The template it is a clone of, and what that holds; null: set aside, to be dropped.
    template text,
    migration_set text,
    version bigint,
    access text,
    -- Both null until it is whole: closed, shut to PUBLIC, never entered.
    database_oid oid,
    made_at timestamptz,
    -- The tenant's attempt that it is for; null: for anyone.
    key text,
    attempt bigint,
    -- The keeper that makes it, where that is no tenant's attempt; a stray when another has taken its place.
    maker text,
    -- Somebody was in its way; not tried before.
    busy_until timestamptz,
    -- A scratch database, which a command looks into or tries something in until then, and drops.
    scratch_until timestamptz,
    created_at timestamptz not null default now()
);

-- What was done to tenants, and by whom: each change by a command, and what the daemon did that a person may ask about later. Sweeps keep the
-- newest two hundred thousand.
create table if not exists tenantd.event (
    id bigint generated always as identity primary key,
    happened_at timestamptz not null default clock_timestamp(),
    -- Null: the fleet as a whole.
    key text,
    what text not null,
    -- The user and the machine: alice@host.
    who text not null,
    detail text
);

create index if not exists event_key on tenantd.event (key, id);

-- Databases that were set aside: of tenants that were dropped, and those that others took the place of. Each is under a random name and closed,
-- and can be taken back until its time of grace is over. The tenant that was dropped with it has its oid still, and is `deleting`.
create table if not exists tenantd.dropped (
    name text primary key,
    key text not null,
    name_before text not null,
    database_oid oid not null,
    -- What the registry knew of it.
    version bigint,
    migration_set text,
    access text,
    migrated_at timestamptz,
    ready_at timestamptz,
    -- Why: dropped, reset, restored.
    what text not null,
    who text not null,
    -- The file of its backup.
    backup text,
    dropped_at timestamptz not null default clock_timestamp(),
    purge_after timestamptz not null,
    -- Since when it is being dropped for good, and cannot be taken back any more.
    condemned_at timestamptz
);

create index if not exists dropped_key on tenantd.dropped (key, dropped_at);

-- The schemas of another database, `tenants_in`, as they were seen last: whoever needs to know looks there, and writes down here what is there, since no
-- statement of this database can. What a transaction of the registry renames it renames here; the schema itself is renamed after the commit, and
-- until then the row is `moved`: the name here is the one that counts, and the oid tells which schema is meant.
create table if not exists tenantd.elsewhere (
    oid oid primary key,
    name text not null,
    owner oid not null,
    -- Whether PUBLIC may enter; who else may.
    public boolean not null,
    users oid[] not null,
    marker text,
    -- Where it was asked for.
    bytes bigint,
    moved boolean not null default false
);

create index if not exists elsewhere_name on tenantd.elsewhere (name);

-- Where tenants may be: the server's databases, or schemas, of this one or of another. `public`: whether PUBLIC may enter.
create or replace view tenantd.place as
select d.datname as name, d.oid, d.datdba as owner, d.datconnlimit <> -2 as valid, d.datallowconn as open,
       d.datacl is null or d.datacl @> makeaclitem(0, d.datdba, 'CONNECT', false) as public, m.description as marker
from pg_database d left join pg_shdescription m on m.objoid = d.oid and m.classoid = 'pg_database'::regclass
where (select isolation from tenantd.registry) = 'database'
union all
select n.nspname, n.oid, n.nspowner, true, true,
       coalesce(n.nspacl @> makeaclitem(0, n.nspowner, 'USAGE', false), false), m.description
from pg_namespace n left join pg_description m on m.objoid = n.oid and m.classoid = 'pg_namespace'::regclass and m.objsubid = 0
where (select isolation = 'schema' and tenants_in is null from tenantd.registry)
union all
select e.name::name, e.oid, e.owner, true, true, e.public, e.marker
from tenantd.elsewhere e where (select isolation = 'schema' and tenants_in is not null from tenantd.registry);

-- Writes down which schemas were seen elsewhere: all, or those of the `names`. `seen`: an array of objects with the columns' names. Returns whether one
-- of all is moved.
create or replace function tenantd.see(names text[], seen json) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from tenantd.elsewhere e
    where (names is null or e.name = any (names)) and not e.moved
      and not exists (select from json_to_recordset(seen) s(oid bigint) where s.oid::oid = e.oid);
    insert into tenantd.elsewhere as e (oid, name, owner, public, users, marker, bytes)
    select s.oid::oid, s.name, s.owner::oid, s.public, coalesce(s.users, '{}')::oid[], s.marker, s.bytes
    from json_to_recordset(seen) s(oid bigint, name text, owner bigint, public boolean, users bigint[], marker text, bytes bigint)
    order by 1
    on conflict (oid) do update
    set name = case when e.moved then e.name else excluded.name end, owner = excluded.owner, public = excluded.public, users = excluded.users,
        marker = excluded.marker, bytes = coalesce(excluded.bytes, e.bytes)
    where (case when e.moved then e.name else excluded.name end, excluded.owner, excluded.public, excluded.users, excluded.marker,
           coalesce(excluded.bytes, e.bytes)) is distinct from (e.name, e.owner, e.public, e.users, e.marker, e.bytes);
    return exists (select from tenantd.elsewhere e where e.moved);
end
$$;
revoke all on function tenantd.see(text[], json) from public;

-- Gives a tenant's database, or schema, another name, in the caller's transaction. One elsewhere gets it after the commit, by whoever sees that it is moved.
create or replace function tenantd.move(before text, after text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    registry tenantd.registry;
begin
    select r.* into strict registry from tenantd.registry r;
    if registry.tenants_in is null then
        execute format('alter %s %I rename to %I', registry.isolation, before, after);
        return;
    end if;
    if exists (select from tenantd.elsewhere e where e.name = after) then
        raise duplicate_schema using message = format('schema %I already exists', after);
    end if;
    update tenantd.elsewhere e set name = after, moved = true where e.name = before;
    if not found then
        raise invalid_schema_name using message = format('schema %I does not exist', before);
    end if;
end
$$;
revoke all on function tenantd.move(text, text) from public;

-- Whether the role may enter the tenant's database, or schema.
create or replace function tenantd.may_enter(role oid, place oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when r.isolation = 'database' then has_database_privilege(role, place, 'connect')
        when r.tenants_in is null then has_schema_privilege(role, place, 'usage')
        else (select e.public or pg_has_role(role, e.owner, 'usage') or exists (select from unnest(e.users) u where pg_has_role(role, u, 'usage'))
              from tenantd.elsewhere e where e.oid = place) end
    from tenantd.registry r
$$;
revoke all on function tenantd.may_enter(oid, oid) from public;

-- The size in bytes of a tenant's database, or schema, by its oid; null for a database that we may not enter.
create or replace function tenantd.bytes(place oid) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when r.isolation = 'database' then case when has_database_privilege(place, 'connect') then pg_database_size(place) end
        when r.tenants_in is null then
            (select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c
             where c.relnamespace = place and c.relkind in ('r', 'm', 'S'))
        else (select e.bytes from tenantd.elsewhere e where e.oid = place) end
    from tenantd.registry r
$$;
revoke all on function tenantd.bytes(oid) from public;

-- The spares that anyone may take, and whether they are as they were made: whatever is not is passed over. Whoever takes one locks its row in
-- the table and asks there again whether it is free: after a lock, what the view says is what was before.
create or replace view tenantd.spares_at_hand as
select s.name, s.template, s.migration_set, s.version, s.access, s.database_oid, s.made_at, p.completed_at,
       pg_get_userbyid(d.datdba)::text as owner
from tenantd.spare s
join pg_database d on d.oid = s.database_oid and d.datname = s.name
left join tenantd.template p on p.name = s.template
where s.made_at is not null and s.key is null and (s.busy_until is null or s.busy_until <= now())
  and not d.datallowconn and d.datconnlimit = -1;

-- The name of the tenant's database for a key; null where the key can have none, and the daemon says why. `naming`: the rule, what names begin
-- with, and for a hash its algorithm and how many hex digits: 'uuid tenant_', 'hash tid_ md5 10', 'key '. The daemon comes to the same names by
-- itself. The words are those that no server from Postgres 13 to 18 takes as a table's name without quotes: categories R and T of
-- pg_get_keywords(), in a list of our own, since they change with the server's version and a tenant's name must not.
create or replace function tenantd.name_of(key text, naming text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    rule constant text := split_part(naming, ' ', 1);
    prefix constant text := split_part(naming, ' ', 2);
    name text collate "C";
begin
    if key = '' then
        return null;
    elsif rule = 'uuid' then
        return case when key ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then prefix || replace(key, '-', '_') end;
    elsif rule = 'hash' then
        return prefix || left(
            case split_part(naming, ' ', 3)
                when 'md5' then md5(convert_to(key, 'UTF8'))
                when 'sha256' then encode(sha256(convert_to(key, 'UTF8')), 'hex')
            end, split_part(naming, ' ', 4)::int);
    elsif rule <> 'key' then
        return null;
    end if;
    name := prefix || key;
    if name ~ '^[a-z_][a-z0-9_]{0,62}$' and not starts_with(name, 'pg_') and not starts_with(name, 'tenantd_')
        and name not in ('postgres', 'template0', 'template1', 'public', 'information_schema', 'tenantd', current_database())
        and name <> all (array[
            'all', 'analyse', 'analyze', 'and', 'any', 'array', 'as', 'asc', 'asymmetric', 'authorization', 'binary', 'both', 'case', 'cast',
            'check', 'collate', 'collation', 'column', 'concurrently', 'constraint', 'create', 'cross', 'current_catalog', 'current_date',
            'current_role', 'current_schema', 'current_time', 'current_timestamp', 'current_user', 'default', 'deferrable', 'desc', 'distinct',
            'do', 'else', 'end', 'except', 'false', 'fetch', 'for', 'foreign', 'freeze', 'from', 'full', 'grant', 'group', 'having', 'ilike',
            'in', 'initially', 'inner', 'intersect', 'into', 'is', 'isnull', 'join', 'lateral', 'leading', 'left', 'like', 'limit', 'localtime',
            'localtimestamp', 'natural', 'not', 'notnull', 'null', 'offset', 'on', 'only', 'or', 'order', 'outer', 'overlaps', 'placing',
            'primary', 'references', 'returning', 'right', 'select', 'session_user', 'similar', 'some', 'symmetric', 'system_user', 'table',
            'tablesample', 'then', 'to', 'trailing', 'true', 'union', 'unique', 'user', 'using', 'variadic', 'verbose', 'when', 'where',
            'window', 'with'])
    then
        return name;
    end if;
    return null;
end
$$;
revoke all on function tenantd.name_of(text, text) from public;

-- Makes the spare the tenant's database: marked, named, open, recorded ready. All of it or nothing, in the caller's transaction. The caller
-- holds the rows of both.
create or replace function tenantd.name_spare(spare text, key text, name text, marker text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('comment on database %I is %L', spare, marker);
    execute format('alter database %I rename to %I', spare, name);
    execute format('alter database %I with allow_connections true', name);
    with named as (delete from tenantd.spare s where s.name = name_spare.spare returning s.*)
    update tenantd.tenant t
    set state = 'ready', work = 'idle', failures = 0, leased_until = null, leased_by = null, name = name_spare.name, database_oid = d.oid,
        version = n.version, migration_set = n.migration_set, access = n.access,
        migrated_at = clock_timestamp(), verified_at = clock_timestamp(), ready_at = clock_timestamp(),
        error_kind = null, error_text = null, error_sqlstate = null, error_step = null
    from named n, pg_database d where t.key = name_spare.key and d.datname = name_spare.name;
end
$$;
revoke all on function tenantd.name_spare(text, text, text, text) from public;

-- Sets the tenant's database, or schema, aside under the name `aside`: closed, in `dropped`, to be purged after the time of grace. In the
-- caller's transaction, who holds the tenant's row and has checked the marker; the tenant's row stays as it is.
create or replace function tenantd.set_aside(key text, aside text, why text, by_whom text, backup text, grace double precision) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    tenant tenantd.tenant;
begin
    select t.* into strict tenant from tenantd.tenant t where t.key = set_aside.key;
    if (select r.isolation from tenantd.registry r) = 'database' then
        execute format('alter database %I with allow_connections false', tenant.name);
    end if;
    perform tenantd.move(tenant.name, aside);
    insert into tenantd.dropped (name, key, name_before, database_oid, version, migration_set, access, migrated_at, ready_at, what, who, backup, purge_after)
    select aside, tenant.key, tenant.name, d.oid, tenant.version, tenant.migration_set, tenant.access, tenant.migrated_at, tenant.ready_at, why, by_whom,
           set_aside.backup, clock_timestamp() + grace * interval '1 second'
    from tenantd.place d where d.name = aside;
end
$$;
revoke all on function tenantd.set_aside(text, text, text, text, text, double precision) from public;

-- Hands spares over to claimed tenants, `wanted` or, if that is null, any that is at hand, those with the newest migrations first. A row for
-- each tenant whose attempt still holds: with a spare and no code it is ready; without a spare there was none for it; with a code
-- (the SQLSTATE) it is as it was before. One that fails does not touch the others.
create or replace function tenantd.hand_over(keys text[], attempts bigint[], worker text, names text[], markers text[], owner text, wanted text)
returns table (key text, spare text, template text, code text, said text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant record;
    taken tenantd.spare;
    none boolean := false;
begin
    for tenant in
        select t.key, t.attempt, n.name, n.marker
        from unnest(hand_over.keys, hand_over.attempts, hand_over.names, hand_over.markers) with ordinality n (key, attempt, name, marker, nth)
        join tenantd.tenant t on t.key = n.key and t.attempt = n.attempt
        where t.leased_by = hand_over.worker and t.leased_until > clock_timestamp()
        order by n.nth for update of t
    loop
        key := tenant.key; spare := null; template := null; code := null; said := null;
        if hand_over.wanted is not null then
            select s.* into taken from tenantd.spare s
            where s.name = hand_over.wanted and s.key = tenant.key and s.attempt = tenant.attempt for update of s;
        elsif not none then
            select s.* into taken from tenantd.spare s join tenantd.spares_at_hand h on h.name = s.name
            where s.key is null and s.made_at is not null and h.owner = hand_over.owner and pg_stat_get_db_numbackends(h.database_oid) = 0
            order by h.completed_at desc nulls last, s.made_at limit 1 for update of s skip locked;
        end if;
        none := none or not found;
        if not none then
            spare := taken.name; template := taken.template;
            begin
                perform tenantd.name_spare(taken.name, tenant.key, tenant.name, tenant.marker);
            exception when others then
                code := sqlstate;
                said := sqlerrm;
                -- That another tenant, or a foreign database, has the name is no fault of the spare's.
                if code not in ('42P04', '23505') then
                    update tenantd.spare s set busy_until = now() + interval '10 seconds' where s.name = taken.name;
                end if;
            end;
        end if;
        return next;
    end loop;
end
$$;
revoke all on function tenantd.hand_over(text[], bigint[], text, text[], text[], text, text) from public;

-- Hands spares over to signups within their own transaction: called by the trigger, for keys whose rows it has just written. Returns how many
-- are ready by this very commit; the others go the ordinary way. Nothing here may fail the signup or make it wait longer than lock_timeout:
-- * Only spares that nobody ever entered: a rename waits up to five seconds for whoever is in a database, autovacuum included.
-- * A crowd goes the ordinary way, and one transaction takes a quarter of the pool at most: a long one must not hold all of it.
-- * After one failure, or when the quarter is taken, no more is tried in the transaction.
create or replace function tenantd.hand_over_at_commit(keys text[], naming text, owner text) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    handed bigint := 0;
    before constant bigint := coalesce(nullif(current_setting('tenantd.handed_over', true), '')::bigint, 0);
    left_over bigint;
    signup text;
    name text;
    taken text;
begin
    if cardinality(keys) > 4 or current_setting('tenantd.hand_over_failed', true) = 'on' then
        return 0;
    end if;
    foreach signup in array keys loop
        begin
            name := tenantd.name_of(signup, naming);
            continue when name is null;
            if before + handed > 0 then
                -- Counted with locks that are given back at once, so that what other open signups hold does not count.
                begin
                    perform from tenantd.spare s join tenantd.spares_at_hand h on h.name = s.name
                    where s.key is null and s.made_at is not null for update of s skip locked;
                    get diagnostics left_over = row_count;
                    raise exception using errcode = 'TD000';
                exception when sqlstate 'TD000' then
                end;
                if (before + handed + 1) * 4 > left_over + before + handed then
                    -- For the rest of the transaction, too: where each row comes by itself the count would be taken for each.
                    perform set_config('tenantd.hand_over_failed', 'on', true);
                    exit;
                end if;
            end if;
            select s.name into taken from tenantd.spare s join tenantd.spares_at_hand h on h.name = s.name
            where s.key is null and s.made_at is not null
              and h.owner = hand_over_at_commit.owner and pg_stat_get_db_numbackends(h.database_oid) = 0
              and pg_stat_get_db_xact_commit(h.database_oid) + pg_stat_get_db_xact_rollback(h.database_oid) = 0
              and not exists (select from pg_prepared_xact() x where x.dbid = h.database_oid)
            order by h.completed_at desc nulls last, s.made_at limit 1 for update of s skip locked;
            exit when not found;
            perform tenantd.name_spare(taken, signup, name,
                (select format('tenantd %s %s', r.id, encode(sha256(convert_to(signup, 'UTF8')), 'hex')) from tenantd.registry r));
            handed := handed + 1;
        exception when others then
            perform set_config('tenantd.hand_over_failed', 'on', true);
            exit;
        end;
    end loop;
    perform set_config('tenantd.handed_over', (before + handed)::text, true);
    return handed;
end
$$;
revoke all on function tenantd.hand_over_at_commit(text[], text, text) from public;

-- What applications read. Deleted tenants are left out.
create or replace view tenantd.tenants as
select key, name, state, work, version, cluster, failures,
       case when error_kind is not null then error_kind || ': ' || error_text end as last_error,
       ready_at
from tenantd.tenant
where state <> 'deleted'
union all
select key, null, 'requested'::tenantd.state, 'due'::tenantd.work, null, 'main', 0, null, null
from tenantd.signup s
where not exists (select from tenantd.tenant t where t.key = s.key and t.state <> 'deleted')
group by key;

-- Waits until the tenant is ready, parked (a person must look) or the time is over, and returns its state; null when there is no such tenant.
-- Without a time (null) it waits as long as by default. Refused where it would wait in vain: a transaction that sees only what was there when it began.
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
        select t.state, t.work into seen from tenantd.tenants t where t.key = wait.key;
        if seen.state = 'ready' or seen.work = 'parked' or clock_timestamp() >= deadline then
            return seen.state;
        end if;
        if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
            raise exception using errcode = 'feature_not_supported',
                message = format('tenantd.wait would not see tenant %s become ready: this transaction is %s', wait.key, current_setting('transaction_isolation')),
                hint = 'Call it after the signup''s commit, in a READ COMMITTED transaction.';
        end if;
        perform pg_sleep(least(pause, extract(epoch from deadline - clock_timestamp())));
        pause := least(pause * 1.5, 0.1);
    end loop;
end
$$;
revoke all on function tenantd.wait(text, interval) from public;

-- Makes tenants of keys that signed up, and of deleted ones that did so again. Returns these; keys that have a tenant already are passed over, and
-- those of tenants that are being deleted are written down for when that is done. A key that is too long for an index could name no tenant, and
-- would keep those that come with it from being taken in: it is left out, with a warning.
-- In plpgsql, as all that signups wait for: it keeps its plans from call to call.
create or replace function tenantd.request(keys text[], since timestamptz[]) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    longest constant bigint := (select max(octet_length(key)) from unnest(request.keys) key);
begin
    if longest > 1000 then
        raise warning 'tenantd: a key of % bytes can name no tenant, and is left out', longest;
    end if;
    return query
    with asked as (
        select a.key, min(a.since) as since from unnest(request.keys, request.since) a (key, since)
        where octet_length(a.key) <= 1000 group by a.key
    ), fresh as (
        insert into tenantd.tenant as t (key, due_at, created_at) select asked.key, asked.since, asked.since from asked
        on conflict (key) do nothing returning t.key
    ), again as (
        -- One that is being deleted is only marked. In one update for both: whoever waits here for the end of a deletion sees what came of it.
        update tenantd.tenant t
        set again_at = case when t.state = 'deleting' then coalesce(t.again_at, asked.since) end,
            (state, work, due_at, failures, name, version, migrated_at, migration_set, access, database_oid, verified_at, ready_at, created_at,
             error_kind, error_text, error_sqlstate, error_step) = (
                select t.state, t.work, t.due_at, t.failures, t.name, t.version, t.migrated_at, t.migration_set, t.access, t.database_oid,
                       t.verified_at, t.ready_at, t.created_at, t.error_kind, t.error_text, t.error_sqlstate, t.error_step
                where t.state = 'deleting'
                union all
                select 'requested', 'due', asked.since, 0, null, null, null, null, null, null, null, null, asked.since, null, null, null, null
                where t.state <> 'deleting')
        from asked where t.key = any (request.keys) and t.key = asked.key and t.state in ('deleted', 'deleting')
        returning t.key, t.state
    )
    select fresh.key from fresh union all select again.key from again where again.state = 'requested';
end
$$;
revoke all on function tenantd.request(text[], timestamptz[]) from public;

-- Makes tenants of signups, a thousand at the most: a few milliseconds' work, for which those that have a tenant already wait. Returns how many.
--
-- Its commit need not be waited for: a crash of the server that loses it puts the signups back.
create or replace function tenantd.take_in() returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    keys text[];
    since timestamptz[];
begin
    with taken as (
        delete from tenantd.signup
        where ctid = any (array(select s.ctid from tenantd.signup s limit 1000 for update skip locked))
        returning key, signed_up_at
    )
    select array_agg(taken.key), array_agg(taken.signed_up_at) into keys, since from taken;
    if keys is not null then
        perform tenantd.request(keys, since);
    end if;
    return coalesce(cardinality(keys), 0);
end
$$;
revoke all on function tenantd.take_in() from public;

-- Takes signups in, and takes due tenants for `worker`: signups first, each kind the longest due first. Of those without a database at most
-- `room`, and `making` beside as many as there are spares at hand, up to `by_spares`; of all that no spare serves as many as there are `lanes`.
--
-- No row where the registry was replaced while this process ran, or needs a tenantd that knows more: then nothing may be claimed, or tenants
-- would be marked as another registry's. Nor is one claimed that this process has in hand: a claim that was lost in a crash of the server
-- gives its number to the next.
--
-- The commit is not waited for: whatever is done under a claim is committed later, in the same log, and makes the claim last.
create or replace function tenantd.claim_due(
    registry uuid, knows bigint, worker text, lease double precision,
    room bigint, making bigint, by_spares bigint, lanes bigint, in_hand text[]
) returns table (
    key text, attempt bigint, name text, state text, work text, failures integer, version bigint, migration_set text, access text,
    database_oid oid, age double precision, spare_at_hand boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    moment timestamptz;
    at_hand bigint;
begin
    if not exists (select from tenantd.registry r where r.id = claim_due.registry and r.needs_version <= claim_due.knows) then
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    perform tenantd.take_in();
    -- After that: what was taken in is due.
    moment := clock_timestamp();
    select least(count(*), claim_due.by_spares) into at_hand from tenantd.spares_at_hand;
    return query
    with making as (
        select key from tenantd.tenant
        where work in ('due', 'failing') and due_at <= moment and state = 'requested' and (leased_until is null or leased_until <= moment)
        and key <> all (claim_due.in_hand)
        order by due_at limit least(claim_due.room, claim_due.making + at_hand) for update skip locked
    ), mending as (
        select key from tenantd.tenant
        where work in ('due', 'failing') and due_at <= moment and state = 'ready' and (leased_until is null or leased_until <= moment)
        and key <> all (claim_due.in_hand)
        order by due_at limit greatest(0, claim_due.lanes - greatest(0, (select count(*) from making) - at_hand)) for update skip locked
    )
    update tenantd.tenant t set attempt = t.attempt + 1, leased_until = moment + claim_due.lease * interval '1 second', leased_by = claim_due.worker
    where t.key = any (array(select key from making union all select key from mending))
    returning t.key, t.attempt, t.name, t.state::text, t.work::text, t.failures, t.version, t.migration_set, t.access, t.database_oid,
        greatest(extract(epoch from clock_timestamp() - t.created_at), 0)::double precision, at_hand > 0;
end
$$;
revoke all on function tenantd.claim_due(uuid, bigint, text, double precision, bigint, bigint, bigint, bigint, text[]) from public;
