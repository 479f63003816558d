//! tenantd at work, told as a story: `make demo`.
//!
//! Starts a Postgres of its own, lets twenty users sign up, and shows what becomes of them. It checks all that it says: the exit code is 0
//! only if everything was as told. Whatever happens, Ctrl-C included, server, daemon and directories are gone afterwards.

#[path = "../tests/support/mod.rs"]
pub mod support;

#[path = "demo/figures.rs"]
mod figures;
#[path = "demo/migration.rs"]
mod migration;
#[path = "demo/operator.rs"]
mod operator;
#[path = "demo/page.rs"]
mod page;
#[path = "demo/signups.rs"]
mod signups;
#[path = "demo/stage.rs"]
mod stage;
#[path = "demo/summary.rs"]
mod summary;

use std::process::ExitCode;

use figures::Figures;
use page::Page;
use stage::Stage;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    tokio::select! {
        biased;
        code = interrupted() => ExitCode::from(code),
        () = story() => ExitCode::SUCCESS,
    }
}

/// The story, act by act. Panics where something is not as it should be; what was started ends with the values that hold it.
async fn story() {
    let mut stage = Stage::set().await;
    let directory = stage.database.server().directory().to_owned();
    let mut figures = Figures::default();
    let daemon = signups::install(&stage).await;
    let mut users = signups::one_by_one(&mut stage, &mut figures).await;
    users.extend(signups::at_once(&mut stage, &mut figures).await);
    signups::application_works(&stage, &users[0]).await;
    let (mut daemon, late) = signups::while_stopped(&mut stage, daemon).await;
    users.extend(late);
    users.extend(signups::while_locked(&mut stage, &mut figures).await);
    migration::breaks_for_one(&stage, &users).await;
    users.extend(migration::reload(&mut stage, &mut daemon).await);
    operator::stops_a_bad_rollout(&stage, &users).await;
    operator::takes_back(&stage, &users[3]).await;
    operator::finds_a_drift(&stage, &users[4]).await;
    operator::drops_and_restores(&stage, &users[5]).await;
    signups::end(&stage, daemon).await;
    summary::tell(&stage, &users, &figures).await;
    drop(stage);
    assert!(!directory.exists(), "{} is still there", directory.display());
}

/// Returns the exit code for the first signal that asks for an end.
async fn interrupted() -> u8 {
    let hear = |kind| signal(kind).expect("hear signals");
    let (mut interrupt, mut terminate, mut hangup) =
        (hear(SignalKind::interrupt()), hear(SignalKind::terminate()), hear(SignalKind::hangup()));
    let code = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    };
    Page::open().heading("Interrupted: server, daemon and directories are being removed.");
    code
}
