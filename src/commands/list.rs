//! `tenantd list`: the tenants, page by page, so that thousands of them take no more memory than a few.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::given::{Filters, Given};
use super::{ExitStatus, output};
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::lookup::Filter;
use crate::registry::tenants::{By, Order, Page, Tenant};

/// So many tenants are read at a time.
const PAGE: i64 = 500;

/// So many where each one's database is measured: that takes about a millisecond each.
const SIZED_PAGE: i64 = 100;

/// `tenantd list`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tenantd list --work failing --work parked      who is in trouble
  tenantd list --behind --limit 20               who lacks the newest migrations
  tenantd list --sort size --reverse --limit 10  the ten largest
  tenantd list --json | jq -r '.tenants[].key'   every key, one a line")]
pub struct List {
    /// Which tenants
    #[command(flatten)]
    pub filters: Filters,
    /// What they are ordered by, the smallest first
    #[arg(long, value_enum, default_value_t = Sort::Key)]
    pub sort: Sort,
    /// The largest first
    #[arg(long)]
    pub reverse: bool,
    /// Not more than so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub limit: Option<i64>,
    /// Measure their databases, too, which reads the folder of each
    #[arg(long)]
    pub size: bool,
}

/// What a list is ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The key
    Key,
    /// The time since the signup
    Age,
    /// The newest migration
    Version,
    /// The size of the database
    Size,
    /// The name of the database
    Name,
    /// Failures in a row
    Failures,
}

impl List {
    fn sized(&self) -> bool {
        self.size || self.sort == Sort::Size
    }

    /// Sizes are not the registry's: all are measured in the order of the keys, and sorted here.
    fn order(&self) -> Order {
        let by = match self.sort {
            Sort::Size => return Order { by: By::Key, reverse: false },
            Sort::Key => By::Key,
            Sort::Age => By::Age,
            Sort::Version => By::Version,
            Sort::Name => By::Name,
            Sort::Failures => By::Failures,
        };
        Order { by, reverse: self.reverse }
    }
}

/// Writes the tenants that fit the filters, as a table or as one object, and how many there are. Only reads; signups that no daemon has seen
/// yet are among them. In the order of sizes all are held in memory, else a page.
///
/// # Errors
/// The main database cannot be reached, or there is no registry; `out` cannot be written to.
pub async fn run(given: &Given, list: &List, out: &mut impl Write) -> Result<ExitStatus> {
    let registry = given.registry().await?;
    let filter = list.filters.filter(&given.set.id());
    if list.sized() {
        registry.see_all(true).await?;
    }
    let mut shown = Shown::new(given.json, list.sized());
    let mut pages = Pages::new(&registry, &filter, list);
    output::text(out, shown.begin())?;
    if list.sort == Sort::Size {
        output::text(out, &shown.page(&by_size(&mut pages, list).await?))?;
    } else {
        loop {
            let page = pages.next().await?;
            if page.is_empty() || !output::more(out, &shown.page(&page))? {
                break;
            }
        }
    }
    let total = if list.limit.is_some() { registry.count(&filter).await? } else { shown.count };
    output::text(out, &shown.end(total))?;
    Ok(ExitStatus::Well)
}

async fn by_size(pages: &mut Pages<'_>, list: &List) -> Result<Vec<Tenant>> {
    let limit = pages.left.take();
    let mut all = Vec::new();
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    let compare = |one: &Tenant, other: &Tenant| one.bytes.cmp(&other.bytes).then_with(|| one.key.cmp(&other.key));
    let turned = |order: Ordering| if list.reverse { order.reverse() } else { order };
    all.sort_by(|one, other| turned(compare(one, other)));
    all.truncate(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX));
    Ok(all)
}

/// The tenants page by page.
struct Pages<'a> {
    registry: &'a Registry,
    filter: &'a Filter,
    order: Order,
    sized: bool,
    last: Option<Tenant>,
    /// How many more there may be; `None`: all.
    left: Option<i64>,
}

impl<'a> Pages<'a> {
    fn new(registry: &'a Registry, filter: &'a Filter, list: &List) -> Pages<'a> {
        Pages { registry, filter, order: list.order(), sized: list.sized(), last: None, left: list.limit }
    }

    /// The next page; an empty one when there is none.
    async fn next(&mut self) -> Result<Vec<Tenant>> {
        let full = if self.sized { SIZED_PAGE } else { PAGE };
        let most = self.left.map_or(full, |left| left.min(full));
        let page = Page { order: self.order, after: self.last.as_ref(), most, sized: self.sized };
        let tenants = if most == 0 { Vec::new() } else { self.registry.tenants(self.filter, page).await? };
        if let Some(left) = &mut self.left {
            *left -= i64::try_from(tenants.len()).unwrap_or(*left);
        }
        self.last = tenants.last().cloned().or(self.last.take());
        Ok(tenants)
    }
}

/// What was written so far.
struct Shown {
    json: bool,
    sized: bool,
    count: i64,
    /// How wide each column is, as the head and all rows until now need it.
    widths: Vec<usize>,
}

impl Shown {
    fn new(json: bool, sized: bool) -> Shown {
        Shown { json, sized, count: 0, widths: Vec::new() }
    }

    fn begin(&self) -> &'static str {
        if self.json { "{\n  \"format\": 1,\n  \"tenants\": [" } else { "" }
    }

    fn page(&mut self, tenants: &[Tenant]) -> String {
        let mut text = String::new();
        if self.json {
            for tenant in tenants {
                let comma = if self.count == 0 { "" } else { "," };
                let _ = write!(text, "{comma}\n    {}", object(tenant, self.sized));
                self.count += 1;
            }
            return text;
        }
        let mut rows: Vec<Vec<String>> = tenants.iter().map(|tenant| self.row(tenant)).collect();
        if self.count == 0 && !rows.is_empty() {
            let mut head = vec!["KEY", "STATE", "WORK", "VERSION", "AGE"];
            head.extend(self.sized.then_some("SIZE"));
            rows.insert(0, head.into_iter().map(str::to_owned).collect());
            self.widths = vec![0; rows[0].len()];
        }
        self.count += i64::try_from(tenants.len()).unwrap_or(i64::MAX);
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let cells = row.iter().zip(&self.widths).enumerate();
            // Words to the left, numbers to the right.
            let cells = cells.map(|(column, (cell, width))| match column {
                0..3 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        text
    }

    fn row(&self, tenant: &Tenant) -> Vec<String> {
        let none = || "-".to_owned();
        let mut row = vec![
            output::line(&tenant.key),
            output::line(&tenant.state),
            output::line(&tenant.work),
            tenant.version.map_or_else(none, |version| version.to_string()),
            output::duration(tenant.age),
        ];
        row.extend(self.sized.then(|| tenant.bytes.map_or_else(none, output::bytes)));
        row
    }

    fn end(&self, total: i64) -> String {
        if self.json {
            return format!("\n  ],\n  \"total\": {total}\n}}\n");
        }
        let shown = self.count;
        if shown < total {
            format!("{shown} of {}\n", output::counted(total, "tenant"))
        } else {
            format!("{}\n", output::counted(shown, "tenant"))
        }
    }
}

/// One tenant for programs; `sized`: with the size of its database.
pub(super) fn object(tenant: &Tenant, sized: bool) -> Value {
    let error = tenant
        .error
        .as_ref()
        .map(|error| json!({ "kind": error.kind, "text": error.text, "sqlstate": error.sqlstate, "step": error.step }));
    let mut object = json!({
        "key": tenant.key,
        "name": tenant.name,
        "state": tenant.state,
        "work": tenant.work,
        "version": tenant.version,
        "failures": tenant.failures,
        "error": error,
        "cluster": tenant.cluster,
        "created_at": tenant.created_at.to_string(),
        "age_seconds": tenant.age.as_secs_f64(),
        "ready_at": tenant.ready_at.map(|at| at.to_string()),
        "migrated_at": tenant.migrated_at.map(|at| at.to_string()),
        "leased_by": tenant.leased_by,
    });
    if sized && let Value::Object(object) = &mut object {
        object.insert("bytes".to_owned(), json!(tenant.bytes));
    }
    object
}
