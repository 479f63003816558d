        -- At the signup's own commit, for as many as there are spares for; only the others ring.
        if keys is not null then
            perform set_config('lock_timeout', least(50, extract(epoch from current_setting('lock_timeout')::interval) * 1000)::int::text, true);
            written := written - tenantd.hand_over_at_commit(keys, {prefix}, {owner});
        end if;
