//! The dry run: what each tenant's steps would be, and the SQL of the migrations among them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::commands::given::Given;
use crate::commands::{ExitStatus, output};
use crate::error::Result;
use crate::plan::Step;
use crate::provision::Context;
use crate::provision::foresight::foresee;
use crate::registry::lookup::Filter;
use crate::tenant::State;

/// So many keys are read at a time.
const PAGE: i64 = 1000;

/// A tenant, and what would be done to it.
struct Foreseen {
    key: String,
    steps: Result<Vec<Step>>,
}

/// Prints the steps of each of `keys`, or of every tenant that has some where none is named, and the SQL of the migrations.
/// [`ExitStatus::Findings`] where some tenant's could not be told.
///
/// # Errors
/// The main database cannot be reached; `out` cannot be written to.
pub(super) async fn print(
    given: &Given,
    context: &Arc<Context>,
    keys: Vec<String>,
    out: &mut impl Write,
) -> Result<ExitStatus> {
    let named = !keys.is_empty();
    let mut foreseen = Vec::new();
    if named {
        foreseen = look(context, keys).await?;
    } else {
        let filter = Filter { states: vec![State::Requested, State::Ready], ..Filter::default() };
        let mut after = String::new();
        loop {
            let page = context.registry.keys(&filter, &after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(last);
            let with_steps = |one: &Foreseen| one.steps.as_ref().map_or(true, |steps| !steps.is_empty());
            foreseen.extend(look(context, page).await?.into_iter().filter(with_steps));
        }
    }
    foreseen.sort_by(|one, other| one.key.cmp(&other.key));
    let versions: BTreeSet<i64> = foreseen.iter().flat_map(Foreseen::versions).collect();
    if given.json {
        output::object(out, &object(context, &foreseen, &versions))?;
    } else {
        output::text(out, &text(context, &foreseen, &versions))?;
    }
    Ok(if foreseen.iter().any(|one| one.steps.is_err()) { ExitStatus::Findings } else { ExitStatus::Well })
}

async fn look(context: &Arc<Context>, keys: Vec<String>) -> Result<Vec<Foreseen>> {
    let one = |key: String| async move {
        let glance = context.registry.glance(&key, &[State::Requested, State::Ready]).await?;
        let steps = Box::pin(foresee(context, &glance)).await;
        match steps {
            Err(error) if error.kind().is_out_of_reach() => Err(error),
            steps => Ok(Foreseen { key, steps }),
        }
    };
    let looked = stream::iter(keys).map(one).buffer_unordered(context.config.sweep.parallel);
    looked.collect::<Vec<_>>().await.into_iter().collect()
}

impl Foreseen {
    fn versions(&self) -> impl Iterator<Item = i64> + '_ {
        let versions = |step: &Step| match step {
            Step::Migrate(versions) => versions.clone(),
            _ => Vec::new(),
        };
        self.steps.iter().flatten().flat_map(versions)
    }
}

fn text(context: &Context, foreseen: &[Foreseen], versions: &BTreeSet<i64>) -> String {
    let mut text = String::new();
    for Foreseen { key, steps } in foreseen {
        let told = match steps {
            Ok(steps) if steps.is_empty() => "nothing to do".to_owned(),
            Ok(steps) => steps.iter().map(Step::to_string).collect::<Vec<_>>().join("; "),
            Err(error) => output::line(&error.with_advice()),
        };
        let _ = writeln!(text, "{}: {told}", output::line(key));
    }
    for migration in versions.iter().filter_map(|version| context.set.get(*version)) {
        let _ = write!(text, "\n-- {}\n{}", migration.file, migration.sql);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let tenants = output::counted(i64::try_from(foreseen.len()).unwrap_or(i64::MAX), "tenant");
    let _ = writeln!(text, "{tenants} would be worked on; nothing was changed");
    text
}

fn object(context: &Context, foreseen: &[Foreseen], versions: &BTreeSet<i64>) -> Value {
    let step = |step: &Step| match step {
        Step::Migrate(versions) => json!({ "step": step.word(), "versions": versions }),
        step => json!({ "step": step.word() }),
    };
    let tenant = |Foreseen { key, steps }: &Foreseen| match steps {
        Ok(steps) => json!({ "key": key, "steps": steps.iter().map(step).collect::<Vec<_>>() }),
        Err(error) => json!({ "key": key, "error": output::error(error) }),
    };
    let migrations = versions.iter().filter_map(|version| context.set.get(*version));
    let migrations =
        migrations.map(|one| json!({ "version": one.version, "name": one.name, "file": one.file, "sql": one.sql }));
    json!({
        "dry_run": true,
        "version": context.set.newest_version(),
        "tenants": foreseen.iter().map(tenant).collect::<Vec<_>>(),
        "migrations": migrations.collect::<Vec<_>>(),
    })
}
