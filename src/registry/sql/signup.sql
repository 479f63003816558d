
declare
    written bigint;
{declare}begin
    -- One wait a transaction: after the first failure nothing is tried again.
    if current_setting('tenantd.gave_up', true) = 'on' then
        return null;
    end if;
    begin
        -- A short statement_timeout would end a wait for the registry before lock_timeout does, and the signup with it.
        if current_setting('statement_timeout') <> '0' and current_setting('statement_timeout')::interval < interval '800 ms' then
            perform set_config('lock_timeout',
                greatest(1, (extract(epoch from current_setting('statement_timeout')::interval) * 250)::int)::text, true);
        end if;
        -- concat and not a cast: it is the type's own output, whereas a cast may be a function that the type's owner wrote, run as us.
{write}{ring}    exception when others then
        perform set_config('tenantd.gave_up', 'on', true);
        raise warning 'tenantd: the signup is kept; its tenant will be found by the next sweep: %', sqlerrm using errcode = sqlstate;
    end;
    return null;
end
