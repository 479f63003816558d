//! Where settings may come from: what the command line asks for, the environment, an env file, the settings file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::problem::Problem;

/// The settings file that is read when none is named. Only this one may be missing.
pub const DEFAULT_FILE: &str = "/etc/tenantd/tenantd.toml";

/// Everything that [`load`](super::load) may read. Kept by the daemon, so that a reload looks at the same places again.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `--config`: must exist when named.
    pub file: Option<PathBuf>,
    /// `--env-file`: must exist when named. Its variables are weaker than those of `environment`.
    pub env_file: Option<PathBuf>,
    /// Keys given by other flags, such as `log.level`; the strongest of all. Written as in a variable: a list with commas.
    pub flags: BTreeMap<String, String>,
    /// The variables of the process.
    pub environment: Environment,
    /// Read when neither `file` nor `$TENANTD_CONFIG` names one.
    pub default_file: PathBuf,
}

impl Sources {
    /// The process's own environment and [`DEFAULT_FILE`]. The only place of the crate that reads the environment.
    #[must_use]
    pub fn of_process() -> Self {
        let sources = Sources::of(std::env::vars_os());
        #[cfg(debug_assertions)]
        if let Some(point) =
            sources.environment.0.get(OsStr::new("TENANTD_FAIL_POINT")).and_then(|point| point.to_str())
        {
            crate::fail_points::arm(point);
        }
        sources
    }

    /// The same for any other set of variables.
    pub fn of<K: Into<OsString>, V: Into<OsString>>(environment: impl IntoIterator<Item = (K, V)>) -> Self {
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Sources {
            file: None,
            env_file: None,
            flags: BTreeMap::new(),
            environment: Environment(environment),
            default_file: PathBuf::from(DEFAULT_FILE),
        }
    }

    /// Whether stderr is systemd's journal. `JOURNAL_STREAM` alone does not say so: it is handed on to every child of a service, whose
    /// stderr may be a terminal or a file; so it is compared with what stderr is.
    #[must_use]
    pub fn stderr_is_journal(&self) -> bool {
        let named = self.environment.0.get(OsStr::new("JOURNAL_STREAM")).and_then(|named| named.to_str());
        let stderr = std::fs::metadata("/proc/self/fd/2").ok();
        stderr.is_some_and(|stderr| named == Some(&format!("{}:{}", stderr.dev(), stderr.ino())))
    }
}

/// The name of this machine, for people to tell daemons apart by.
#[must_use]
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "host".to_owned() } else { name.trim().to_owned() }
}

/// Who runs this process, for the history of what was done: the user of the system, and whoever became that user by sudo.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is config")]
pub fn user_name() -> String {
    let name = whoami::username();
    match std::env::var("SUDO_USER") {
        Ok(before) if !before.is_empty() && before != name => format!("{before} as {name}"),
        _ => name,
    }
}

/// The process's variables that may hold our password, for whoever starts a program that has no business with it.
#[must_use]
pub fn secret_variables() -> Vec<OsString> {
    let ours = |name: &OsString| {
        let name = name.to_string_lossy().to_uppercase();
        name.starts_with("TENANTD_MAIN__") || name == "DATABASE_URL" || name == "PGPASSWORD"
    };
    std::env::vars_os().map(|(name, _)| name).filter(ours).collect()
}

/// Variables by name. `Debug` prints the names alone, since values may be passwords.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A variable's text and where it stands.
pub(super) struct Variable {
    pub(super) text: String,
    pub(super) place: String,
}

/// The variables that concern us, from the environment and the env file.
#[derive(Default)]
pub(super) struct Variables(BTreeMap<String, Variable>);

impl Variables {
    /// Reads both; the process's variables win.
    pub(super) fn read(sources: &Sources) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut variables = Variables::default();
        if let Some(path) = &sources.env_file {
            match env_file(path) {
                Ok(found) => variables = found,
                Err(problem) => problems.push(problem),
            }
        }
        for (name, value) in &sources.environment.0 {
            // A name that is not text is none of ours.
            let Some(name) = name.to_str().filter(|name| concerns_us(name)) else { continue };
            let place = format!("variable {name}");
            match value.to_str() {
                Some(text) => {
                    variables.0.insert(name.to_owned(), Variable { text: text.to_owned(), place });
                }
                None => problems.push(Problem::new(name, place, "its value is not UTF-8")),
            }
        }
        if problems.is_empty() { Ok(variables) } else { Err(problems) }
    }

    /// The text of one variable.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|variable| variable.text.as_str())
    }

    /// The variable, unless it is unset or empty.
    pub(super) fn filled(&self, name: &str) -> Option<&Variable> {
        self.0.get(name).filter(|variable| !variable.text.is_empty())
    }

    /// All of them, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Variable)> {
        self.0.iter().map(|(name, variable)| (name.as_str(), variable))
    }
}

/// Other programs' variables are not even looked at. HOME is where libpq's files are found.
fn concerns_us(name: &str) -> bool {
    name.starts_with("TENANTD_")
        || name.starts_with("PG")
        || ["DATABASE_URL", "CREDENTIALS_DIRECTORY", "HOME", "USER"].contains(&name)
}

/// Reads `path` as teams write their `.env`. The process's environment is left as it is.
fn env_file(path: &Path) -> Result<Variables, Problem> {
    let refuse = |place: String, reason: &str| Problem::new("--env-file", place, reason);
    let text = read(path).map_err(|reason| refuse(path.display().to_string(), &reason))?;
    let mut variables = Variables::default();
    for item in dotenvy::from_read_iter(text.trim_start_matches('\u{feff}').as_bytes()) {
        let (name, text) = item.map_err(|error| match error {
            // The error's own text shows the line, and the line may hold a password.
            dotenvy::Error::LineParse(bad, _) => {
                let number = text.lines().position(|line| bad.trim_end().ends_with(line) && !line.is_empty());
                let place = number.map_or_else(|| path.display().to_string(), |n| at_line(path, n + 1));
                refuse(place, "not of the form NAME=value; put a value with blanks or quotes in single quotes")
            }
            other => refuse(path.display().to_string(), &other.to_string()),
        })?;
        if concerns_us(&name) {
            let place = format!("variable {name} in {}", path.display());
            // The last one counts, as in a shell.
            variables.0.insert(name, Variable { text, place });
        }
    }
    Ok(variables)
}

/// The settings file: its path and text, `None` when the default one is missing.
pub(super) fn settings_file(sources: &Sources, variables: &Variables) -> Result<Option<(PathBuf, String)>, Problem> {
    let (path, named_by) = match (&sources.file, variables.filled("TENANTD_CONFIG")) {
        (Some(path), _) => (path.clone(), "--config"),
        (None, Some(variable)) => (PathBuf::from(&variable.text), "TENANTD_CONFIG"),
        (None, None) => match sources.default_file.try_exists() {
            Ok(false) => return Ok(None),
            _ => (sources.default_file.clone(), "settings file"),
        },
    };
    match read(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(reason) => Err(Problem::new(named_by, path.display().to_string(), reason)),
    }
}

/// The file `name` of `$CREDENTIALS_DIRECTORY`, when systemd handed one over.
pub(super) fn credential(variables: &Variables, name: &str) -> Option<PathBuf> {
    let directory = variables.filled("CREDENTIALS_DIRECTORY")?;
    Some(Path::new(&directory.text).join(name)).filter(|path| path.is_file())
}

/// Reads a file as text; the error says why it could not be.
pub(super) fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::InvalidData => "the file is not UTF-8".to_owned(),
        _ => format!("cannot be read: {error}"),
    })
}

/// How a line of a file is named.
pub(super) fn at_line(path: &Path, line: usize) -> String {
    format!("{}, line {line}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_what_stderr_is() {
        let stderr = std::fs::metadata("/proc/self/fd/2").unwrap();
        let of = |named: String| Sources::of([("JOURNAL_STREAM", named)]).stderr_is_journal();
        assert!(of(format!("{}:{}", stderr.dev(), stderr.ino())));
        assert!(!of(format!("{}:{}", stderr.dev(), stderr.ino() + 1)), "inherited, and stderr is another");
        assert!(!of(String::new()));
        assert!(!Sources::of([("HOME", "/")]).stderr_is_journal());
    }
}
