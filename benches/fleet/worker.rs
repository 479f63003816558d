//! The yardstick of a signup: a job worker as people write it. A trigger queues a job and notifies; the worker makes the database, connects,
//! migrates, and marks the job done.

use tenantd::tasks::Tasks;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::stage::{Application, PATIENCE};
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::listening::Listener;

const SCHEMA: &str = "
    create table public.job (id bigserial primary key, user_id uuid not null, state text not null default 'waiting');
    create index on public.job (state) where state = 'waiting';
    grant select, update on public.job to tenantd;
    create function public.enqueue() returns trigger language plpgsql security definer as $$
    begin
        insert into public.job (user_id) values (new.id);
        perform pg_notify('job', '');
        return null;
    end $$;
    create trigger enqueue after insert on public.users for each row execute function public.enqueue();";

const MIGRATION: &str = include_str!("../../tenant-migrations/0001_log_message.up.sql");

/// Milliseconds from the signup's commit to that of the finished job, by the server's clock.
const WAIT: &str = "
    select (extract(epoch from pg_xact_commit_timestamp(j.xmin) - pg_xact_commit_timestamp(u.xmin)) * 1000)::float8
    from public.users u join public.job j on j.user_id = u.id where u.id = $1::text::uuid";

/// A running worker on a main database of its own.
pub(crate) struct Worker {
    admin: Client,
    application: Application,
    tasks: Tasks,
}

impl Worker {
    /// Starts it on `database`.
    pub(crate) async fn start(database: &TestDatabase) -> Self {
        let admin = database.superuser().await;
        admin.batch_execute(SCHEMA).await.expect("make the jobs");
        let listener = Listener::connect(database.server(), "tenantd", TENANTD_PASSWORD, database.name()).await;
        listener.client.batch_execute("listen job").await.expect("listen");
        let (tasks, server) = (Tasks::new(), database.server().clone());
        let cancelled = tasks.cancelled();
        let work = async move {
            let mut listener = listener;
            while listener.next(PATIENCE).await.is_some() {
                while let Some((job, user)) = next(&listener.client).await {
                    let name = format!("job_{}", user.simple());
                    let client = &listener.client;
                    client.batch_execute(&format!("create database {name}")).await.expect("create a database");
                    let tenant = server.client("tenantd", TENANTD_PASSWORD, &name).await;
                    migrate(&tenant).await;
                    let done = "update public.job set state = 'done' where id = $1";
                    client.execute(done, &[&job]).await.expect("mark the job done");
                    let notify = "select pg_notify('job_done', $1)";
                    client.execute(notify, &[&user.to_string()]).await.expect("tell the application");
                }
            }
        };
        tasks.spawn("job worker", cancelled.run_until_cancelled_owned(work));
        let application = Application::connect(database, "job_done").await;
        Worker { admin, application, tasks }
    }

    /// One signup: how long until its database was ready, in milliseconds.
    pub(crate) async fn sign_up(&mut self) -> f64 {
        let (key, _, _) = self.application.sign_up().await;
        self.application.heard(&key).await;
        self.admin.query_one(WAIT, &[&key]).await.expect("read the commits' moments").get(0)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.cancelled().cancel();
    }
}

async fn next(client: &Client) -> Option<(i64, Uuid)> {
    let take = "update public.job set state = 'running' where id = (
                    select id from public.job where state = 'waiting' order by id limit 1 for update skip locked)
                returning id, user_id";
    let row = client.query_opt(take, &[]).await.expect("take a job")?;
    Some((row.get(0), row.get(1)))
}

async fn migrate(tenant: &Client) {
    let history = "create table if not exists migration (version bigint primary key, applied_at timestamptz not null default now())";
    tenant.batch_execute(history).await.expect("make the history");
    let applied = tenant.query("select version from migration", &[]).await.expect("read the history");
    assert!(applied.is_empty(), "a new database has a history");
    let migration = format!("begin; {MIGRATION}; insert into migration (version) values (1); commit");
    tenant.batch_execute(&migration).await.expect("migrate");
}
