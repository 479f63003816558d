//! Line 7: what the trigger costs a crowd. pgbench inserts users through the socket, 32 clients at a time.

use std::fs;

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Application, Stage};
use crate::support::process::run;

const CLIENTS: &str = "32";

const SIGNUP: &str = "insert into public.users (email) values (gen_random_uuid()::text);";

/// A trigger that people write: a row and a notice for each signup.
const NOTIFYING: &str = "
    create table public.job (id bigserial primary key, user_id uuid not null);
    create function public.enqueue() returns trigger language plpgsql security definer as $$
    begin
        insert into public.job (user_id) values (new.id);
        perform pg_notify('job', new.id::text);
        return null;
    end $$;
    create trigger enqueue after insert on public.users for each row execute function public.enqueue();";

/// The least that a trigger of our kind costs.
const EMPTY: &str = "
    create function public.nothing() returns trigger language plpgsql security definer as $$ begin return null; end $$;
    create trigger nothing after insert on public.users referencing new table as added for each statement execute function public.nothing();";

/// Each kind of trigger on a main database of its own, on one server, in turn.
pub(crate) async fn measure(size: Size) -> Results {
    // 32 clients in the same server as the daemon; each main database has its own.
    let ours = Stage::set().await;
    let server = ours.database.server();
    let (none, notifying, empty) = (Stage::on(server).await, Stage::on(server).await, Stage::on(server).await);
    notifying.admin.batch_execute(NOTIFYING).await.expect("make the notifying trigger");
    let listener = Application::connect(&notifying.database, "job").await;
    empty.admin.batch_execute(EMPTY).await.expect("make the empty trigger");
    // What making the databases costs is other lines' matter: the brakes hold them back, and the daemon looks for signups as ever.
    let daemon = ours.daemon(&ours.program.clone().setting("tenant.max", "1")).await;
    let seconds = size.pick("2", "10");
    let mut samples = [Samples::default(), Samples::default(), Samples::default(), Samples::default()];
    for _ in 0..size.pick(1, 5) {
        for (stage, samples) in [&ours, &none, &empty, &notifying].into_iter().zip(&mut samples) {
            samples.add(rate(stage, seconds).await);
        }
    }
    drop(listener);
    drop(daemon);
    let [ours, none, empty, notifying] = samples;
    let row = |what: &str| Measure::new(7, what, Unit::PerSecond, &ours);
    vec![
        row("signups of 32 clients, trigger and daemon there")
            .beside("no trigger", &none)
            .reach(Reach::TimesAtLeast(0.6)),
        row("signups of 32 clients, beside a trigger that notifies")
            .beside("a row and NOTIFY for each", &notifying)
            .reach(Reach::TimesAtLeast(3.0)),
        row("signups of 32 clients, beside an empty trigger").beside("a trigger that does nothing", &empty),
    ]
    .into()
}

/// Signups a second for so many seconds, on a table that is empty at first.
async fn rate(stage: &Stage, seconds: &str) -> f64 {
    let empty = "truncate public.users";
    stage.admin.batch_execute(empty).await.expect("empty the table");
    if stage.number("select count(*) from pg_namespace join pg_class c on relnamespace = pg_namespace.oid where nspname = 'tenantd' and relname = 'tenant'").await > 0 {
        // In the order in which a look of the daemon takes them.
        stage.admin.batch_execute("truncate tenantd.signup, tenantd.tenant; checkpoint").await.expect("empty the registry");
    } else {
        stage.admin.batch_execute("checkpoint").await.expect("write everything");
    }
    let server = stage.database.server();
    let script = server.directory().join("signup.sql");
    fs::write(&script, SIGNUP).expect("write the script");
    let mut command = server.program("pgbench");
    command.arg("-h").arg(server.directory()).args(["-p", &server.address().port().to_string(), "-U", "app", "-n"]);
    command
        .args(["-M", "prepared", "-c", CLIENTS, "-j", "2", "-T", seconds, "-f"])
        .arg(script)
        .arg(stage.database.name());
    let said = tokio::task::block_in_place(|| run(&mut command));
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap_or_else(|| panic!("pgbench names no rate:\n{said}"))
}
