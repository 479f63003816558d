        if tg_level = 'STATEMENT' then
            insert into tenantd.signup (key) select concat(added.{id}) from added where added.{id} is not null;
        else
            insert into tenantd.signup (key) select concat(new.{id}) where new.{id} is not null;
        end if;
        get diagnostics written = row_count;
