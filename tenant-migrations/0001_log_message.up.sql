-- The example schema: what one tenant's application wants to remember. Put your own migrations in place of this folder,
-- or point tenant.migrations at yours.
create table log_message (
    id uuid primary key default gen_random_uuid(),
    message text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
