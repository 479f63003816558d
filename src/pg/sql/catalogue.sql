-- What people made in a database, one row an object: kind, name, the object that it is part of, definition. Names are written in full, since
-- the search path holds nothing but pg_catalog. {schema}: the one schema that is looked at, as a literal, or null for all.
with member as (
    -- An extension's, or a function that came with a type.
    select classid, objid from pg_depend where deptype = 'e' or deptype = 'i' and classid = 'pg_proc'::regclass
), space as (
    select n.oid, quote_ident(n.nspname) as shown, n.nspname, n.nspowner, n.nspacl
    from pg_namespace n
    where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and ({schema} is null or n.nspname = {schema})
      and not exists (select from member m where m.classid = 'pg_namespace'::regclass and m.objid = n.oid)
), relation as (
    select c.oid, c.relkind, c.relname, format('%s.%I', s.shown, c.relname) as shown, s.shown as space, c.relowner, c.relacl, c.reltype,
           c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relreplident, c.relpartbound, c.reloptions
    from pg_class c join space s on s.oid = c.relnamespace
    where c.relname <> 'tenantd_migration'
      and not exists (select from member m where m.classid = 'pg_class'::regclass and m.objid = c.oid)
), attribute as (
    select r.shown as relation, r.relkind, a.attrelid, a.attnum, a.attname, a.attnotnull, a.attidentity, a.attgenerated, a.attacl, r.relowner,
           format_type(a.atttypid, a.atttypmod) || case when a.attcollation <> 0 and a.attcollation <> t.typcollation
               then (select format(' collate %I.%I', n.nspname, l.collname) from pg_collation l
                     join pg_namespace n on n.oid = l.collnamespace where l.oid = a.attcollation)
               else '' end as type,
           pg_get_expr(d.adbin, d.adrelid) as value
    from relation r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
), routine as (
    select p.oid, format('%s.%I(%s)', s.shown, p.proname, pg_get_function_identity_arguments(p.oid)) as shown, s.shown as space,
           p.prokind, p.proowner, p.proacl
    from pg_proc p join space s on s.oid = p.pronamespace
    where not exists (select from member m where m.classid = 'pg_proc'::regclass and m.objid = p.oid)
), type as (
    select t.oid, format('%s.%I', s.shown, t.typname) as shown, s.shown as space, t.typtype, t.typrelid, t.typowner, t.typacl,
           t.typbasetype, t.typtypmod, t.typnotnull, t.typdefault
    from pg_type t join space s on s.oid = t.typnamespace
    where (t.typtype in ('e', 'd', 'r') or exists (select from pg_class c where c.oid = t.typrelid and c.relkind = 'c'))
      and not exists (select from member m where m.classid = 'pg_type'::regclass and m.objid = t.oid)
), granted (kind, shown, acl, standard) as (
    select 'schema', shown, nspacl, acldefault('n', nspowner) from space
    union all select case relkind when 'S' then 'sequence' else 'table' end, shown, relacl,
                     acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner)
              from relation where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all select 'column', format('%s.%I', relation, attname), attacl, acldefault('c', relowner) from attribute
    union all select 'function', shown, proacl, acldefault('f', proowner) from routine
    union all select 'type', shown, typacl, acldefault('T', typowner) from type
)
select 'schema' as kind, shown as name, null as part_of, format('owner %I', pg_get_userbyid(nspowner)) as definition from space

union all
select 'extension', quote_ident(e.extname), null, format('version %s in %I', e.extversion, n.nspname)
from pg_extension e join pg_namespace n on n.oid = e.extnamespace
where e.extname <> 'plpgsql' and ({schema} is null or n.nspname = {schema})

union all
select 'table', shown, space, concat_ws(', ',
    case relpersistence when 'u' then 'unlogged' end,
    'partitioned by ' || case when relkind = 'p' then pg_get_partkeydef(oid) end,
    'on server ' || (select quote_ident(f.srvname) from pg_foreign_table t join pg_foreign_server f on f.oid = t.ftserver where t.ftrelid = relation.oid),
    'from ' || (select string_agg(i.inhparent::regclass::text, ', ' order by i.inhseqno) from pg_inherits i where i.inhrelid = relation.oid),
    pg_get_expr(relpartbound, oid),
    'with (' || (select string_agg(o, ', ' order by o) from unnest(reloptions) o) || ')',
    case when relrowsecurity then 'row level security' end, case when relforcerowsecurity then 'forced' end,
    case relreplident when 'n' then 'replica identity nothing' when 'f' then 'replica identity full'
        when 'i' then 'replica identity ' || (select i.indexrelid::regclass::text from pg_index i where i.indrelid = relation.oid and i.indisreplident) end,
    format('owner %I', pg_get_userbyid(relowner)))
from relation where relkind in ('r', 'p', 'f')

union all
-- Without its place among the columns: one that was dropped and made again stands behind the others.
select 'column', format('%s.%I', relation, attname), relation, type || case when attnotnull then ' not null' else '' end || coalesce(
    case when attidentity = 'a' then ' generated always as identity' when attidentity = 'd' then ' generated by default as identity'
         when attgenerated = 's' then format(' generated always as (%s) stored', value)
         when attgenerated <> '' then format(' generated always as (%s)', value)
         else ' default ' || value end, '')
from attribute where relkind in ('r', 'p', 'f')

union all
select 'constraint', format('%s.%I', r.shown, c.conname), r.shown, pg_get_constraintdef(c.oid)
from relation r join pg_constraint c on c.conrelid = r.oid
where c.contype not in ('n', 't')

union all
select 'index', i.shown, r.shown, pg_get_indexdef(x.indexrelid) || case when x.indisvalid then '' else ' (invalid)' end
from relation r join pg_index x on x.indrelid = r.oid join relation i on i.oid = x.indexrelid
where not exists (select from pg_constraint c where c.conindid = x.indexrelid and c.contype in ('p', 'u', 'x'))

union all
select 'statistics', format('%s.%I', s.shown, t.stxname), r.shown, pg_get_statisticsobjdef(t.oid)
from relation r join pg_statistic_ext t on t.stxrelid = r.oid join space s on s.oid = t.stxnamespace

union all
select 'sequence', r.shown, coalesce(o.shown, r.space), format('as %s start %s increment %s minimum %s maximum %s cache %s%s%s, owner %I',
    format_type(q.seqtypid, null), q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, case when q.seqcycle then ' cycle' else '' end,
    ' of ' || o.shown || '.' || quote_ident(o.attname), pg_get_userbyid(r.relowner))
from relation r join pg_sequence q on q.seqrelid = r.oid left join lateral (
    select t.shown, a.attname from pg_depend d join relation t on t.oid = d.refobjid
    join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where d.classid = 'pg_class'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
) o on true

union all
select case relkind when 'v' then 'view' else 'materialized view' end, shown, space, concat_ws(', ',
    'with (' || (select string_agg(o, ', ' order by o) from unnest(reloptions) o) || ')',
    format('owner %I', pg_get_userbyid(relowner)), btrim(pg_get_viewdef(oid)))
from relation where relkind in ('v', 'm')

union all
select 'rule', format('%s.%I', r.shown, w.rulename), r.shown, pg_get_ruledef(w.oid) || format(', enabled %s', w.ev_enabled)
from relation r join pg_rewrite w on w.ev_class = r.oid where w.rulename <> '_RETURN'

union all
select 'trigger', format('%s.%I', r.shown, t.tgname), r.shown, pg_get_triggerdef(t.oid)
    || case t.tgenabled when 'O' then '' when 'D' then ' (disabled)' when 'R' then ' (replica)' else ' (always)' end
from relation r join pg_trigger t on t.tgrelid = r.oid where not t.tgisinternal

union all
select 'policy', format('%s.%I', r.shown, p.polname), r.shown, concat_ws(' ',
    case when p.polpermissive then 'permissive' else 'restrictive' end,
    case p.polcmd when 'r' then 'for select' when 'a' then 'for insert' when 'w' then 'for update' when 'd' then 'for delete' else 'for all' end,
    'to ' || (select string_agg(named, ', ' order by named) from unnest(p.polroles) o,
              lateral (select case o when 0 then 'public' else quote_ident(pg_get_userbyid(o)) end as named) n),
    'using (' || pg_get_expr(p.polqual, p.polrelid) || ')', 'with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
from relation r join pg_policy p on p.polrelid = r.oid

union all
select case prokind when 'p' then 'procedure' when 'a' then 'aggregate' else 'function' end, shown, space,
    format('owner %I, ', pg_get_userbyid(proowner)) || case when prokind = 'a'
        then (select format('by %s over %s from %s, final %s', a.aggtransfn, format_type(a.aggtranstype, null), coalesce(a.agginitval, 'null'), a.aggfinalfn)
              from pg_aggregate a where a.aggfnoid = routine.oid)
        else pg_get_functiondef(oid) end
from routine

union all
select 'type', shown, space, case typtype
    when 'e' then (select 'enum (' || string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder) || ')' from pg_enum e where e.enumtypid = type.oid)
    when 'r' then (select 'range over ' || format_type(g.rngsubtype, null) from pg_range g where g.rngtypid = type.oid)
    when 'c' then (select 'composite (' || string_agg(format('%I %s', a.attname, a.type), ', ' order by a.attnum) || ')'
                   from attribute a where a.attrelid = type.typrelid)
    else concat_ws(' ', 'domain over ' || format_type(typbasetype, typtypmod), case when typnotnull then 'not null' end, 'default ' || typdefault,
         (select string_agg(pg_get_constraintdef(c.oid), ' ' order by c.conname) from pg_constraint c where c.contypid = type.oid and c.contype = 'c'))
    end || format(', owner %I', pg_get_userbyid(typowner))
from type

union all
-- What was granted beyond what every such object has from the beginning, and what was taken away from that.
select 'grant', format('on %s %s to %s', o.kind, o.shown, g.grantee), o.shown, string_agg(g.privilege, ', ' order by g.privilege)
from granted o cross join lateral (
    select case e.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(e.grantee)) end as grantee,
           e.sign || lower(e.privilege_type) || case when e.is_grantable then ' with grant option' else '' end as privilege
    from (
        (select '' as sign, grantee, privilege_type, is_grantable from aclexplode(o.acl)
         except select '', grantee, privilege_type, is_grantable from aclexplode(o.standard))
        union all
        (select 'without ', grantee, privilege_type, is_grantable from aclexplode(o.standard)
         except select 'without ', grantee, privilege_type, is_grantable from aclexplode(o.acl))
    ) e
) g
where o.acl is not null
group by o.kind, o.shown, g.grantee

union all
select 'default privileges', format('of %I on %s in %s', pg_get_userbyid(a.defaclrole),
        case a.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' else 'schemas' end,
        coalesce(s.shown, 'every schema')),
    s.shown, (select string_agg(i::text, ', ' order by i::text) from unnest(a.defaclacl) i)
from pg_default_acl a left join space s on s.oid = a.defaclnamespace
where s.oid is not null or a.defaclnamespace = 0 and {schema} is null
