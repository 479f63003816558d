//! Line 2: signups without a spare, beside the bare command.

use std::time::Instant;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::Size;
use crate::figures::Samples;
use crate::measure::{Measure, Reach, Results, Unit};
use crate::stage::{Application, Stage, milliseconds};

/// A bare CREATE DATABASE from the daemon's own template.
pub(crate) struct Bare {
    client: Client,
    template: String,
}

impl Bare {
    /// As tenantd's role, over a connection that is open already.
    pub(crate) async fn new(stage: &Stage) -> Self {
        let template =
            "select datname::text from pg_database where datname ~ '^tenantd_template_' order by oid desc limit 1";
        let template = stage.admin.query_opt(template, &[]).await.expect("look for the template");
        let template = template.map_or_else(|| "template0".to_owned(), |row| row.get(0));
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
    let daemon = stage.daemon(&stage.program.clone()).await;
    let mut application = stage.application().await;
    let bare = Bare::new(&stage).await;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..size.pick(5, 10) {
        let (waits, created) = round(&stage, &mut application, &bare, size.pick(8, 20)).await;
        ours.round(waits);
        theirs.round(created);
    }
    drop(daemon);
    let what = "signup's commit to tenant ready, cold: p50";
    let yardstick =
        format!("CREATE DATABASE … TEMPLATE {}", if bare.template == "template0" { "template0" } else { "the same" });
    vec![
        Measure::new(2, what, Unit::Milliseconds, &ours)
            .beside(yardstick.clone(), &theirs)
            .reach(Reach::TimesAtMost(1.15)),
        Measure::new(2, "the same: p99", Unit::Milliseconds, &ours).at(99).beside(yardstick, &theirs),
    ]
    .into()
}
