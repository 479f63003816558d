//! The log: to stderr as text or JSON, or to the journal with its own fields, never to both.

use std::io;
use std::sync::Arc;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::error::{Error, Kind, Result};

/// What an entry's own fields are called in the journal: `journalctl TENANTD_KEY=…`.
const JOURNAL_PREFIX: &str = "TENANTD";

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Text { colours: bool },
    Json,
    Journal,
}

/// Changes what is logged while the daemon runs. Clones change the same log.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogLevel")
    }
}

impl LogLevel {
    /// Logs from now on what `level` says: a level, or directives as in `log.level`.
    ///
    /// # Errors
    /// `level` cannot be read, and everything stays as it was.
    pub fn set(&self, level: &str) -> Result<()> {
        (self.0)(filter(level)?).map_err(|error| Error::new(Kind::Other, "change the log's level").because(error))
    }
}

/// Installs the log of the process: once, before anything is logged.
///
/// `journal`: stderr goes to systemd's journal ([`Sources::stderr_is_journal`](crate::config::Sources::stderr_is_journal)). `terminal`: a
/// person reads stderr. `NO_COLOR` takes the colours away. Whatever the level, the driver's debug lines are left out, since they hold SQL and
/// with it what users entered.
///
/// # Errors
/// [`Kind::Usage`] when `log.format = "journald"` and there is no journal; another when a log is installed already.
pub fn init(log: &Log, journal: bool, terminal: bool) -> Result<LogLevel> {
    let output = output(log.format, journal, terminal);
    let (subscriber, level) = match journal_of(output, log.format)? {
        Some(journal) => leveled(&log.level, journal.boxed())?,
        None => leveled(&log.level, lines(output, io::stderr))?,
    };
    subscriber.try_init().map_err(|error| Error::new(Kind::Other, "install the log").because(error))?;
    Ok(level)
}

fn output(format: LogFormat, journal: bool, terminal: bool) -> Output {
    match format {
        LogFormat::Journald => Output::Journal,
        LogFormat::Auto if journal => Output::Journal,
        LogFormat::Text => Output::Text { colours: terminal },
        LogFormat::Auto if terminal => Output::Text { colours: true },
        LogFormat::Auto | LogFormat::Json => Output::Json,
    }
}

/// The way to the journal, if the lines should go there. Where nobody asked for it in so many words, stderr does as well: it ends in
/// the journal too.
fn journal_of(output: Output, format: LogFormat) -> Result<Option<tracing_journald::Layer>> {
    if output != Output::Journal {
        return Ok(None);
    }
    match tracing_journald::layer() {
        Ok(layer) => {
            let layer = layer.with_field_prefix(Some(JOURNAL_PREFIX.to_owned()));
            Ok(Some(layer.with_syslog_identifier("tenantd".to_owned())))
        }
        Err(error) if format == LogFormat::Journald => {
            let hint = "Leave log.format out: \"auto\" takes the journal where there is one.";
            Err(Error::usage("log.format is \"journald\", and the journal cannot be reached").because(error).hint(hint))
        }
        Err(_) => Ok(None),
    }
}

type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// Lines to `writer`. Colours are for a terminal only, and the crate itself leaves them out where `NO_COLOR` is set.
fn lines<W>(output: Output, writer: W) -> Lines
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer);
    match output {
        Output::Text { colours: true } => layer.boxed(),
        Output::Text { colours: false } => layer.with_ansi(false).boxed(),
        Output::Json | Output::Journal => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

fn leveled(level: &str, lines: Lines) -> Result<(impl Subscriber + Send + Sync + 'static, LogLevel)> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let level = LogLevel(Arc::new(move |filter| handle.reload(filter)));
    Ok((tracing_subscriber::registry().with(lines.with_filter(filter.and(filter_fn(holds_no_sql)))), level))
}

fn filter(level: &str) -> Result<EnvFilter> {
    EnvFilter::builder().parse(level).map_err(|error| {
        let hint = "Write off, error, warn, info, debug, trace, or directives such as \"info,tenantd::pg=debug\".";
        Error::usage(format!("log.level: {level:?} cannot be read")).because(error).hint(hint)
    })
}

/// The driver prints whole statements below info.
fn holds_no_sql(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("tokio_postgres") || *metadata.level() <= Level::INFO
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use serde_json::Value;

    use super::*;

    const PLAIN: Output = Output::Text { colours: false };

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written at `level` while `work` runs.
    fn logged(output: Output, level: &str, work: impl FnOnce(&LogLevel)) -> String {
        let written = Written::default();
        let writer = written.clone();
        let (subscriber, handle) = leveled(level, lines(output, move || writer.clone())).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&handle));
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn auto_takes_the_journal_then_the_terminal_then_json() {
        let auto = |journal, terminal| output(LogFormat::Auto, journal, terminal);
        assert_eq!(auto(true, true), Output::Journal);
        assert_eq!(auto(false, true), Output::Text { colours: true });
        assert_eq!(auto(false, false), Output::Json);
        assert_eq!(output(LogFormat::Json, true, true), Output::Json);
        assert_eq!(output(LogFormat::Text, true, false), PLAIN);
        assert_eq!(output(LogFormat::Journald, false, false), Output::Journal);
    }

    #[test]
    fn a_journal_that_is_not_there_is_an_error_only_where_it_was_asked_for() {
        assert!(journal_of(Output::Json, LogFormat::Auto).unwrap().is_none());
        assert!(journal_of(Output::Journal, LogFormat::Auto).is_ok());
        match journal_of(Output::Journal, LogFormat::Journald) {
            Ok(journal) => assert!(journal.is_some()),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Usage);
                assert!(error.chain().starts_with("log.format is \"journald\""), "{}", error.chain());
            }
        }
    }

    #[test]
    fn json_is_one_object_a_line_with_its_spans() {
        let text = logged(Output::Json, "info", |_| {
            let _tenant = tracing::info_span!("reconcile", key = "k").entered();
            tracing::info_span!("step", step = "make").in_scope(|| tracing::warn!(error = "why", "it failed"));
        });
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "it failed");
        assert_eq!(line["error"], "why");
        assert_eq!((&line["spans"][0]["key"], &line["spans"][1]["step"]), (&"k".into(), &"make".into()));
    }

    #[test]
    fn text_that_no_terminal_shows_has_no_colours() {
        let text = logged(PLAIN, "info", |_| tracing::info!("plain"));
        assert!(text.contains("INFO") && text.contains("plain") && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let text = logged(PLAIN, "warn", |level| {
            tracing::info!("before");
            level.set("debug").unwrap();
            tracing::debug!("after");
            assert_eq!(level.set("tenantd=nonsense").unwrap_err().kind(), Kind::Usage);
            tracing::debug!("still");
            level.set("off").unwrap();
            tracing::error!("silence");
        });
        assert!(!text.contains("before") && text.contains("after"), "{text}");
        assert!(text.contains("still") && !text.contains("silence"), "{text}");
    }

    #[test]
    fn sql_of_the_driver_is_never_shown() {
        for level in ["trace", "tokio_postgres=trace", "tokio_postgres=info,tokio_postgres::query=debug"] {
            let text = logged(PLAIN, level, |_| {
                tracing::debug!(target: "tokio_postgres::query", "executing statement select 'canary'");
                tracing::info!(target: "tokio_postgres::connection", "a notice");
            });
            assert!(!text.contains("canary") && text.contains("a notice"), "{level}: {text}");
        }
        let text = logged(PLAIN, "error", |_| tracing::info!(target: "tokio_postgres", "a notice"));
        assert!(text.is_empty(), "the rule lets nothing through that the level holds back: {text}");
    }
}
