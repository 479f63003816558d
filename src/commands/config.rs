//! `tenantd config check` and `tenantd config show`: are the settings well, and which value comes from where.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::{Map, Value, json};

use super::output;
use crate::config::{Loaded, Setting};
use crate::error::Result;

/// The places stand below each other, unless a value is longer than this.
const WIDEST: usize = 56;

/// Says that the settings are well, which [`load`](crate::config::load) has found already, and which file they are from.
///
/// # Errors
/// `out` cannot be written to; that nobody reads it any more is no error.
pub fn check(loaded: &Loaded, json: bool, out: &mut impl Write) -> Result<()> {
    let file = loaded.file().map(|path| path.display().to_string());
    if json {
        return output::object(out, &json!({ "ok": true, "file": file }));
    }
    match file {
        Some(file) => output::text(out, &format!("settings are well (file {file})\n")),
        None => output::text(out, "settings are well (no file)\n"),
    }
}

/// Every key with its value and where it was written, then libpq's variables that fill the connection; as TOML or, with
/// `json`, as one object. Secrets are `***`.
///
/// # Errors
/// `out` cannot be written to; that nobody reads it any more is no error.
pub fn show(loaded: &Loaded, json: bool, out: &mut impl Write) -> Result<()> {
    if json { output::object(out, &object(loaded)) } else { output::text(out, &lines(loaded)) }
}

fn object(loaded: &Loaded) -> Value {
    let by_key = |settings: &[Setting]| -> Map<String, Value> {
        let entry = |setting: &Setting| (setting.key.clone(), json!({ "value": setting.value, "from": setting.place }));
        settings.iter().map(entry).collect()
    };
    json!({
        "file": loaded.file().map(|path| path.display().to_string()),
        "settings": by_key(loaded.settings()),
        "variables": by_key(loaded.variables()),
    })
}

fn lines(loaded: &Loaded) -> String {
    let assigned = |setting: &Setting| match &setting.value {
        Value::Null => format!("# {}", setting.key),
        // JSON's text, numbers and lists are TOML's too.
        value => format!("{} = {value}", setting.key),
    };
    let width = |settings: &[Setting]| settings.iter().map(|setting| assigned(setting).chars().count()).max();
    let width = width(loaded.settings()).unwrap_or_default().min(WIDEST);
    let mut text = String::new();
    for setting in loaded.settings() {
        let _ = writeln!(text, "{:width$}  # {}", assigned(setting), setting.place);
    }
    for variable in loaded.variables() {
        let _ = writeln!(text, "# {} = {}  ({})", variable.key, variable.value, variable.place);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn loaded() -> Loaded {
        let mut sources = Sources::of([
            ("TENANTD_MAIN__URL", "postgresql://app:swordfish@h/d"),
            ("TENANTD_TENANT__USE", "app"),
            ("PGPASSWORD", "swordfish"),
        ]);
        sources.default_file = "/nowhere/tenantd.toml".into();
        load(&sources).unwrap()
    }

    fn text(command: impl Fn(&Loaded, bool, &mut Vec<u8>) -> Result<()>, json: bool) -> String {
        let mut out = Vec::new();
        command(&loaded(), json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn show_names_value_and_place_and_is_toml() {
        let shown = text(show, false);
        let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        assert!(line("tenant.use = [\"app\"] ").ends_with("# variable TENANTD_TENANT__USE"), "{shown}");
        assert!(line("work.lease = \"30s\" ").ends_with("# built-in"), "{shown}");
        assert!(line("# tenant.owner ").ends_with("# unset"), "{shown}");
        assert!(!shown.contains("swordfish"), "{shown}");
        let read_back: toml::Table = shown.parse().unwrap();
        assert_eq!(read_back["work"]["parallel"].as_integer(), Some(4));
    }

    #[test]
    fn json_is_one_object_with_a_format() {
        let shown: Value = serde_json::from_str(&text(show, true)).unwrap();
        assert_eq!(shown["format"], 1);
        assert_eq!(shown["settings"]["main.url"]["value"], "postgresql://app:***@h/d");
        assert_eq!(shown["settings"]["main.url"]["from"], "variable TENANTD_MAIN__URL");
        assert_eq!(shown["settings"]["tenant.owner"]["value"], Value::Null);
        assert_eq!(serde_json::from_str::<Value>(&text(check, true)).unwrap()["ok"], true);
        assert_eq!(text(check, false), "settings are well (no file)\n");
    }
}
