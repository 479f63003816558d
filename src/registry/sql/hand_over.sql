        if tg_level = 'STATEMENT' then
            keys := array(select concat(added.{id}) from added where added.{id} is not null);
        elsif new.{id} is not null then
            keys := array[concat(new.{id})];
        end if;
        if current_setting('tenantd.hand_over_failed', true) = 'on' or current_setting('transaction_isolation') = 'serializable' then
            -- No more spares in this transaction: written down, which costs least, above all where each row comes by itself.
            -- What signups read of the spares and of tenants makes SERIALIZABLE ones conflict, at their commit, where nothing can be caught.
            insert into tenantd.signup (key) select unnest(keys);
            get diagnostics written = row_count;
        else
            keys := array(select tenantd.request(keys, array_fill(clock_timestamp(), array[cardinality(keys)])));
            written := cardinality(keys);
            -- At the signup's own commit, for as many as there are spares for; only the others ring.
            if written > 0 then
                perform set_config('lock_timeout', least(50, extract(epoch from current_setting('lock_timeout')::interval) * 1000)::int::text, true);
                written := written - tenantd.hand_over_at_commit(keys, {naming}, {owner});
            end if;
        end if;
