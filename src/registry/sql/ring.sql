        -- The shared lock is to be had while no daemon sleeps; held until this transaction ends, it lets none fall asleep before the
        -- row is visible. Otherwise one sleeps, and is rung for, unless the queue is so full that the commit could fail.
        if written > 0 and not pg_try_advisory_xact_lock_shared(20250, 1) and pg_notification_queue_usage() < 0.5 then
            perform pg_notify('tenantd_doorbell', '');
        end if;
