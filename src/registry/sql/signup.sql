
declare
    written bigint;
begin
    -- One wait a transaction: after the first failure nothing is tried again.
    if current_setting('tenantd.gave_up', true) = 'on' then
        return null;
    end if;
    begin
        if tg_level = 'STATEMENT' then
            insert into tenantd.tenant (key)
            select distinct added.{id}::text from added where added.{id} is not null
            on conflict (key) do nothing;
            get diagnostics written = row_count;
            if written < (select count(*) from added) then
                written := written + tenantd.request_again(array(select added.{id}::text from added));
            end if;
        else
            insert into tenantd.tenant (key) select new.{id}::text where new.{id} is not null
            on conflict (key) do nothing;
            get diagnostics written = row_count;
            if written = 0 then
                written := tenantd.request_again(array[new.{id}::text]);
            end if;
        end if;
{ring}    exception when others then
        perform set_config('tenantd.gave_up', 'on', true);
        raise warning 'tenantd: the signup is kept; its tenant will be found by the next sweep: %', sqlerrm using errcode = sqlstate;
    end;
    return null;
end
