//! Line 2: signups without a spare, beside the bare command.

use std::time::Instant;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Application, PATIENCE, Stage, milliseconds};
use crate::support::until::until;

/// A bare CREATE DATABASE from the daemon's own template.
pub(crate) struct Bare {
    client: Client,
    template: String,
}

impl Bare {
    /// As tenantd's role, over a connection that is open already.
    pub(crate) async fn new(stage: &Stage) -> Self {
        let select = "select name from tenantd.template where completed_at is not null and retired_at is null";
        let built = async || stage.admin.query_opt(select, &[]).await.expect("look for the template").is_some();
        until("the template is built", PATIENCE, built).await;
        let template = stage.admin.query_one(select, &[]).await.expect("one template").get(0);
        Bare { client: stage.database.tenantd().await, template }
    }

    /// Makes one: how long the command took, in milliseconds.
    pub(crate) async fn create(&self) -> f64 {
        let name = format!("bare_{}", Uuid::new_v4().simple());
        let create = format!("create database {name} template {}", self.template);
        let began = Instant::now();
        self.client.batch_execute(&create).await.expect("create a database");
        milliseconds(began.elapsed())
    }
}

/// One round of signups and bare commands in turn.
pub(crate) async fn round(
    stage: &Stage,
    application: &mut Application,
    bare: &Bare,
    number: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut keys, mut created) = (Vec::new(), Vec::new());
    for _ in 0..number {
        let (key, _, _) = application.sign_up().await;
        application.heard(&key).await;
        keys.push(key);
        created.push(bare.create().await);
    }
    (stage.waits(&keys).await, created)
}

/// A signup, a bare command, a signup, and so on.
pub(crate) async fn measure(size: Size) -> Results {
    let stage = Stage::set().await;
    let daemon = stage.daemon(&stage.with_spares(0, 0)).await;
    let mut application = stage.application().await;
    let bare = Bare::new(&stage).await;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..size.pick(2, 10) {
        let (waits, created) = round(&stage, &mut application, &bare, size.pick(6, 20)).await;
        ours.round(waits);
        theirs.round(created);
    }
    drop(daemon);
    let what = "signup's commit to tenant ready, cold: p50";
    let yardstick = "CREATE DATABASE from the same template";
    vec![
        Measure::new(2, what, Unit::Milliseconds, &ours).beside(yardstick, &theirs).reach(Reach::TimesAtMost(1.15)),
        Measure::new(2, "signup's commit to tenant ready, cold: p99", Unit::Milliseconds, &ours)
            .at(99)
            .beside(yardstick, &theirs),
    ]
    .into()
}
