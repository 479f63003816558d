//! Each line of the design's measures, beside its yardstick in the same run: `make bench`, or `make bench-quick`.
//!
//! Each line starts a Postgres of its own and runs the built tenantd as a process. Subject and yardstick alternate in rounds, so that what
//! else the machine does falls on both. A line that is not reached is told and no failure: this is a measurement, not a test. Ctrl-C ends it
//! and leaves nothing behind.

#[path = "../../tests/support/mod.rs"]
pub mod support;

mod bystander;
mod chart;
mod cold;
mod figures;
mod files;
mod floor;
mod growth;
mod idle;
mod instant;
mod isolations;
mod machine;
mod measure;
mod rollout;
mod signups;
mod stage;
mod table;
mod warm;
mod worker;

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};

use machine::Machine;
use measure::Results;

/// Measures tenantd beside its yardsticks.
#[derive(Debug, Parser)]
struct Options {
    /// Fewer rounds and smaller fleets: under three minutes.
    #[arg(long)]
    quick: bool,
    /// Only these lines of the design's table, by number; 0 is what the floor is made of.
    #[arg(long, value_delimiter = ',')]
    lines: Vec<u8>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    quick: bool,
}

impl Size {
    /// One for the quick run, one for the whole.
    pub(crate) fn pick<T>(self, quick: T, whole: T) -> T {
        if self.quick { quick } else { whole }
    }
}

/// Lines that are measured together, and what they are about.
const GROUPS: [(&[u8], &str); 10] = [
    (&[1, 3], "signups while spares are there"),
    (&[2], "signups without a spare"),
    (&[4, 5], "one new migration over many tenants"),
    (&[6, 10], "ten thousand tenants and nothing to do"),
    (&[7], "signups of 32 clients"),
    (&[8], "what others feel while spares are refilled"),
    (&[9], "instant hand-over"),
    (&[0], "what the floor is made of"),
    (&[11], "provisions as tenants grow"),
    (ISOLATIONS, "a schema for each tenant, and a database for each"),
];

const ISOLATIONS: &[u8] = &[12];

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tokio::select! {
        biased;
        code = interrupted() => ExitCode::from(code),
        () = run(&options) => ExitCode::SUCCESS,
    }
}

async fn run(options: &Options) {
    let mut results = Results::default();
    let (began, machine, size) = (Instant::now(), Machine::look(), Size { quick: options.quick });
    for (lines, about) in GROUPS {
        // Two fleets of their own are not for every day.
        let chosen = if options.lines.is_empty() {
            !(options.quick && lines == ISOLATIONS)
        } else {
            lines.iter().any(|line| options.lines.contains(line))
        };
        if !chosen {
            continue;
        }
        let since = Instant::now();
        let told = format!("{:>5} s  {about} …", began.elapsed().as_secs());
        talk(&told);
        match AssertUnwindSafe(group(lines[0], size)).catch_unwind().await {
            Ok(measured) => results.extend(measured),
            Err(_) => results.missing.push((about.to_owned(), "it failed; see above".to_owned())),
        }
        talk(&format!("{:>5} s  {about}: {} s", began.elapsed().as_secs(), since.elapsed().as_secs()));
        // After each group, so that a run that is broken off leaves what it has.
        files::write(&results, &machine, options.quick);
    }
    let _ = std::io::stdout().write_all(table::text(&results, &machine).as_bytes());
    talk(&format!("JSON, markdown and a plot: {}", files::folder().display()));
}

async fn group(first: u8, size: Size) -> Results {
    match first {
        0 => floor::measure(size).boxed_local().await,
        1 => warm::measure(size).boxed_local().await,
        2 => cold::measure(size).boxed_local().await,
        4 => rollout::measure(size).boxed_local().await,
        6 => idle::measure(size).boxed_local().await,
        7 => signups::measure(size).boxed_local().await,
        8 => bystander::measure(size).boxed_local().await,
        9 => instant::measure(size).boxed_local().await,
        11 => growth::measure(size).boxed_local().await,
        _ => isolations::measure(size).boxed_local().await,
    }
}

/// Returns the exit code for the first signal that asks for an end.
async fn interrupted() -> u8 {
    let hear = |kind| signal(kind).expect("hear signals");
    let (mut interrupt, mut terminate) = (hear(SignalKind::interrupt()), hear(SignalKind::terminate()));
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}

fn talk(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
