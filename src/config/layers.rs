//! The layers of settings, one above the other: figment merges them and remembers which one gave each value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::problem::Problem;
use super::raw::Raw;
use super::sources::{Sources, Variables, at_line, credential, read, settings_file};

const PREFIX: &str = "TENANTD_";

/// Values from one place.
struct Layer {
    /// What to call the place: `built-in`, `variable TENANTD_MAIN__URL`, the path of a file.
    place: String,
    /// In a file, the line of each key and table.
    lines: BTreeMap<String, usize>,
    values: Dict,
}

impl Layer {
    fn new(place: impl Into<String>, values: Dict) -> Self {
        Layer { place: place.into(), lines: BTreeMap::new(), values }
    }

    /// A layer of one key, `work.lease`.
    fn one(place: impl Into<String>, key: &str, value: Value) -> Self {
        Layer::new(place, figment::util::nest(key, value).into_dict().unwrap_or_default())
    }

    fn place_of(&self, path: &[&str]) -> String {
        let line = (1..=path.len()).rev().find_map(|depth| self.lines.get(&path[..depth].join(".")));
        line.map_or_else(|| self.place.clone(), |line| at_line(Path::new(&self.place), *line))
    }

    /// Takes out every value that [`Raw`] refuses, one after the other, and says why.
    fn sift(&mut self, problems: &mut Vec<Problem>) {
        while let Err(error) = Value::from(self.values.clone()).deserialize::<Raw>() {
            // An error deeper than a key, say an element of a list, condemns the key.
            let path: Vec<String> = error.path.iter().take(2).cloned().collect();
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            problems.push(Problem::of(&path, self.place_of(&names), &error.kind));
            if !take_out(&mut self.values, &names) {
                break;
            }
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let layer = Layer { place: self.place.clone(), lines: self.lines.clone(), values: Dict::new() };
        let layer = std::sync::Arc::new(layer);
        Metadata::named(self.place.clone()).interpolater(move |_, path| layer.place_of(path))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All layers in one.
pub(super) struct Merged {
    figment: Figment,
    /// The settings file that was read.
    pub(super) file: Option<PathBuf>,
}

impl Merged {
    /// Reads every source and merges them; `problems` gets what was refused, which is left out of the result.
    ///
    /// # Errors
    /// The file or a credential could not be read at all, so that what it holds cannot be judged.
    pub(super) fn read(sources: &Sources, variables: &Variables, problems: &mut Vec<Problem>) -> Result<Self, Problem> {
        let file = settings_file(sources, variables)?;
        let mut layers = vec![Layer::new("built-in", Raw::built_in())];
        layers.extend(
            variables.filled("DATABASE_URL").map(|url| Layer::one(&url.place, "main.url", url.text.as_str().into())),
        );
        if let Some(path) = credential(variables, "url") {
            let place = format!("credential {}", path.display());
            let text = read(&path).map_err(|reason| Problem::new("main.url", &place, reason))?;
            layers.push(Layer::one(place, "main.url", text.trim().into()));
        }
        let from_credentials = layers.len();
        if let Some((path, text)) = &file {
            layers.push(file_layer(path, text)?);
        }
        layers.extend(variable_layers(variables, problems));
        layers.extend(sources.flags.iter().map(|(key, text)| Layer::one("command line", key, typed(key, text))));

        let password = ["password_file", "password_command"];
        if let Some(path) = credential(variables, "password")
            && !layers.iter().any(|layer| password.iter().any(|key| holds(&layer.values, key)))
        {
            let place = format!("credential {}", path.display());
            layers.insert(from_credentials, Layer::one(place, "main.password_file", path.display().to_string().into()));
        }
        for layer in &mut layers {
            layer.sift(problems);
        }
        let figment = layers.iter().fold(Figment::new(), |below, layer| below.merge(layer));
        Ok(Merged { figment, file: file.map(|(path, _)| path) })
    }

    /// The values, typed.
    pub(super) fn raw(&self) -> Result<Raw, Problem> {
        self.figment.extract().map_err(|error| Problem::of(&error.path, String::from("all layers"), &error.kind))
    }

    /// Where the value of `key` comes from.
    pub(super) fn place(&self, key: &str) -> String {
        let path: Vec<&str> = key.split('.').collect();
        self.figment
            .find_metadata(key)
            .map_or_else(|| "built-in".to_owned(), |place| place.interpolate(&Profile::Default, &path))
    }

    /// The value of `key` as it was written; null when unset.
    pub(super) fn value(&self, key: &str) -> serde_json::Value {
        let value = self.figment.find_value(key).ok();
        value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or(serde_json::Value::Null)
    }
}

/// The file's values and lines. A relative path is read from where the process stands, and from nowhere above it.
fn file_layer(path: &Path, text: &str) -> Result<Layer, Problem> {
    let place = path.display().to_string();
    let mut data = Toml::string(text).data().map_err(|error| {
        let (line, reason) = syntax_error(&error.kind.to_string());
        let place = line.map_or_else(|| place.clone(), |line| at_line(path, line));
        Problem::new("settings file", place, reason)
    })?;
    let values = data.remove(&Profile::Default).unwrap_or_default();
    Ok(Layer { place, lines: lines_of(text), values })
}

/// Line and reason of the TOML reader's error. The excerpt between them is left out, since it may show a password.
fn syntax_error(text: &str) -> (Option<usize>, String) {
    let place = text.lines().next().and_then(|line| line.strip_prefix("TOML parse error at line "));
    let line = place.and_then(|place| place.split(',').next()).and_then(|number| number.parse().ok());
    let reason: Vec<&str> = text.lines().skip(4).filter(|line| !line.trim().is_empty()).collect();
    match line {
        Some(_) if !reason.is_empty() => (line, format!("not TOML: {}", reason.join("; "))),
        _ => (line, "not TOML".to_owned()),
    }
}

/// The line of each table and each `table.key`, as far as they stand at the beginning of a line.
fn lines_of(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    let mut table = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let name = if let Some(header) = line.strip_prefix('[') {
            header.trim_start_matches('[').split(']').next().unwrap_or_default().trim().clone_into(&mut table);
            table.clone()
        } else {
            let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
            let key = key.trim().trim_matches('"');
            if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
        };
        lines.entry(name).or_insert(number + 1);
    }
    lines
}

/// A layer for each variable that is a setting.
fn variable_layers(variables: &Variables, problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (name, variable) in variables.iter() {
        let Some(rest) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
        if rest.contains("__") {
            let key = rest.replace("__", ".");
            if key.split('.').any(str::is_empty) {
                problems.push(Problem::new(
                    name,
                    &variable.place,
                    "no such variable; it is TENANTD_, a table, __ and a key",
                ));
                continue;
            }
            layers.push(Layer::one(&variable.place, &key, typed(&key, &variable.text)));
        } else if let Some(meant) = Raw::keys().iter().find(|key| key.replace('.', "_") == rest) {
            // Others without `__` are left alone: Kubernetes makes TENANTD_PORT and its like for a service of our name.
            let reason = format!("no such variable; did you mean {}?", variable_of(meant));
            problems.push(Problem::new(name, &variable.place, reason));
        }
    }
    layers
}

/// The variable that sets `key`.
fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// A variable's text as the type its key asks for. Text keys take it as it stands, so `0123` and `true` stay text.
fn typed(key: &str, text: &str) -> Value {
    let fits = |value: &Value| figment::util::nest(key, value.clone()).deserialize::<Raw>().is_ok();
    let elements: Vec<&str> = text.split(',').map(str::trim).filter(|element| !element.is_empty()).collect();
    let trimmed = text.trim();
    let candidates = [
        Some(Value::from(text)),
        trimmed.parse::<bool>().ok().map(Value::from),
        trimmed.parse::<i64>().ok().map(Value::from),
        Some(Value::from(elements)),
    ];
    // What fits nothing stays text and is refused with the rest.
    candidates.into_iter().flatten().find(fits).unwrap_or_else(|| Value::from(text))
}

fn holds(values: &Dict, key_of_main: &str) -> bool {
    values
        .get("main")
        .and_then(Value::as_dict)
        .and_then(|main| main.get(key_of_main))
        .is_some_and(|value| value.to_empty().is_none())
}

fn take_out(values: &mut Dict, path: &[&str]) -> bool {
    match path {
        [] => false,
        [name] => values.remove(*name).is_some(),
        [name, rest @ ..] => match values.get_mut(*name) {
            Some(Value::Dict(_, inner)) => take_out(inner, rest),
            _ => false,
        },
    }
}
