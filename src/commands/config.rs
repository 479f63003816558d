//! `tenantd config check` and `tenantd config show`: are the settings well, and which value comes from where.

use std::io::{self, ErrorKind, Write};

use serde_json::{Map, Value, json};

use crate::config::{Loaded, Setting};
use crate::error::{Error, Kind, Result};

/// The places stand below each other, unless a value is longer than this.
const WIDEST: usize = 56;

/// Says that the settings are well, which [`load`](crate::config::load) has found already, and which file they are from.
///
/// # Errors
/// `out` cannot be written to; that nobody reads it any more is no error.
pub fn check(loaded: &Loaded, json: bool, out: &mut impl Write) -> Result<()> {
    let file = loaded.file().map(|path| path.display().to_string());
    let written = if json {
        write_json(&json!({ "format": 1, "ok": true, "file": file }), out)
    } else {
        match file {
            Some(file) => writeln!(out, "settings are well (file {file})"),
            None => writeln!(out, "settings are well (no file)"),
        }
    };
    told(written)
}

/// Every key with its value and where it was written, then libpq's variables that fill the connection; as TOML or, with
/// `json`, as one object. Secrets are `***`.
///
/// # Errors
/// `out` cannot be written to; that nobody reads it any more is no error.
pub fn show(loaded: &Loaded, json: bool, out: &mut impl Write) -> Result<()> {
    told(if json { write_json(&object(loaded), out) } else { lines(loaded, out) })
}

fn object(loaded: &Loaded) -> Value {
    let by_key = |settings: &[Setting]| -> Map<String, Value> {
        let entry = |setting: &Setting| (setting.key.clone(), json!({ "value": setting.value, "from": setting.place }));
        settings.iter().map(entry).collect()
    };
    json!({
        "format": 1,
        "file": loaded.file().map(|path| path.display().to_string()),
        "settings": by_key(loaded.settings()),
        "variables": by_key(loaded.variables()),
    })
}

fn lines(loaded: &Loaded, out: &mut impl Write) -> io::Result<()> {
    let assigned = |setting: &Setting| match &setting.value {
        Value::Null => format!("# {}", setting.key),
        // JSON's text, numbers and lists are TOML's too.
        value => format!("{} = {value}", setting.key),
    };
    let width = |settings: &[Setting]| settings.iter().map(|setting| assigned(setting).chars().count()).max();
    let width = width(loaded.settings()).unwrap_or_default().min(WIDEST);
    for setting in loaded.settings() {
        writeln!(out, "{:width$}  # {}", assigned(setting), setting.place)?;
    }
    for variable in loaded.variables() {
        writeln!(out, "# {} = {}  ({})", variable.key, variable.value, variable.place)?;
    }
    Ok(())
}

fn write_json(value: &Value, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{value}")
}

fn told(written: io::Result<()>) -> Result<()> {
    match written {
        // `tenantd config show | head`
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::new(Kind::Other, "write the settings").because(error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn loaded() -> Loaded {
        let mut sources = Sources::of([
            ("TENANTD_MAIN__URL", "postgresql://app:canary@h/d"),
            ("TENANTD_TENANT__USE", "app"),
            ("PGPASSWORD", "canary"),
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
        assert!(!shown.contains("canary"), "{shown}");
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

    #[test]
    fn a_reader_that_left_is_no_error() {
        struct Closed(ErrorKind);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(show(&loaded(), false, &mut Closed(ErrorKind::BrokenPipe)).is_ok());
        assert!(show(&loaded(), false, &mut Closed(ErrorKind::StorageFull)).is_err());
    }
}
