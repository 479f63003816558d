
begin
    -- One wait a transaction, shared with the signups.
    if current_setting('tenantd.gave_up', true) = 'on' then
        return null;
    end if;
    begin
        -- A short statement_timeout would end a wait for the registry before lock_timeout does, and the deletion with it.
        if current_setting('statement_timeout') <> '0' and current_setting('statement_timeout')::interval < interval '800 ms' then
            perform set_config('lock_timeout',
                greatest(1, (extract(epoch from current_setting('statement_timeout')::interval) * 250)::int)::text, true);
        end if;
        -- concat and not a cast, as for a signup.
        if tg_level = 'STATEMENT' then
            insert into tenantd.departure (key) select concat(removed.{id}) from removed where removed.{id} is not null;
        else
            insert into tenantd.departure (key) select concat(old.{id}) where old.{id} is not null;
        end if;
    exception when others then
        perform set_config('tenantd.gave_up', 'on', true);
        raise warning 'tenantd: the deletion is kept; its tenant stays until somebody drops it: %', sqlerrm using errcode = sqlstate;
    end;
    return null;
end
