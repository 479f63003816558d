//! Rules on the source tree that no compiler keeps: the rows, what is named where, sizes, the top level, licences.

mod source;

use std::fs;
use std::path::Path;
use std::process::Command;

use source::{Source, files};

/// The rows of the design: a file imports from its own row or one with a smaller number. A name is a file of src or a folder in it.
const ROWS: [(&str, &[&str]); 7] = [
    ("words", &["tenant", "naming", "error", "fail_points"]),
    ("rules", &["config", "retry", "plan", "migrations"]),
    ("postgres", &["tasks", "pg"]),
    ("records", &["registry"]),
    ("work", &["isolation", "provision", "sweep", "spares", "backup", "life"]),
    (
        "service",
        &[
            "controller",
            "intake",
            "keeper",
            "bell",
            "brakes",
            "lanes",
            "notices",
            "sweeper",
            "shutdown",
            "systemd",
            "conditions",
            "heartbeat",
            "telemetry",
            "http",
        ],
    ),
    ("surface", &["cli", "commands", "lib", "main"]),
];

const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 400;

const TOP_LEVEL: [&str; 21] = [
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "tenant-migrations",
    "main-migrations",
    "config",
    "tests",
    "systemd",
    "README.md",
    "BENCH.md",
    "benches",
    "examples",
    "fuzz",
    "docs",
    "Makefile",
    "CHANGELOG.md",
    "build.rs",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "clippy.toml",
    "deny.toml",
];

/// The row of the module `name`.
fn row(name: &str) -> Option<usize> {
    ROWS.iter().position(|(_, names)| names.contains(&name))
}

/// The module of src that a file is, or is part of.
fn module(source: &Source) -> &str {
    let inside = source.path.strip_prefix("src/").unwrap_or(&source.path);
    inside.split(['/', '.']).next().unwrap_or(inside)
}

fn below(source: &Source, places: &[&str]) -> bool {
    places.iter().any(|place| source.path.starts_with(&format!("src/{place}")))
}

/// Fails with one line for each breach, and how to mend them.
fn none(breaches: &[String], mend: &str) {
    assert!(breaches.is_empty(), "\n  {}\n{mend}\n", breaches.join("\n  "));
}

fn breaches_of_rows(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources {
        let Some(own) = row(module(source)) else {
            breaches.push(format!("{} stands in no row", source.path));
            continue;
        };
        for import in source.imports() {
            match row(&import) {
                Some(other) if other <= own => {}
                Some(other) => breaches.push(format!(
                    "{} (row {own}, {}) imports crate::{import} (row {other}, {})",
                    source.path, ROWS[own].0, ROWS[other].0
                )),
                None if own + 1 == ROWS.len() => {}
                None => breaches.push(format!("{} imports crate::{import}, which stands in no row", source.path)),
            }
        }
    }
    breaches
}

fn named_outside(word: &str, allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let sources = files("src");
    let guilty = sources.iter().filter(|source| source.without_tests().contains(word) && !allowed(source));
    guilty.map(|source| format!("{} names {word}", source.path)).collect()
}

#[test]
fn files_import_from_their_own_row_or_a_smaller_one() {
    let mend = "Move what is needed to a smaller row, or hand it in from above (DESIGN, Layers). A new file goes into ROWS in tests/it/tidy.rs.";
    none(&breaches_of_rows(&files("src")), mend);
}

#[test]
fn the_driver_is_named_in_rows_two_and_three_only() {
    let breaches = named_outside("tokio_postgres", |source| matches!(row(module(source)), Some(2 | 3)));
    none(&breaches, "Put the SQL into registry/ (main database) or pg/ (any server), and call it from here.");
}

#[test]
fn files_are_read_in_few_places() {
    let places = ["config/", "migrations/source", "migrations/draft", "pg/tls", "pg/password", "pg/libpq", "backup/"];
    let mut breaches = named_outside("std::fs", |source| below(source, &places));
    breaches.extend(named_outside("tokio::fs", |source| below(source, &places)));
    none(
        &breaches,
        "Read files in config, migrations/source, pg/tls, pg/password, pg/libpq or backup, and hand on what was read.",
    );
}

#[test]
fn the_environment_is_read_in_config_only() {
    let breaches = named_outside("env::var", |source| below(source, &["config/"]));
    none(&breaches, "Make it a setting: config reads the environment, and everything else gets a Config.");
}

#[test]
fn backoff_is_named_in_retry_only() {
    let breaches = named_outside("backoff::", |source| source.path == "src/retry.rs");
    none(&breaches, "Ask crate::retry for the delay: the package is unmaintained and must be replaceable in one file.");
}

#[test]
fn functions_are_short() {
    let sources = ["src", "tests", "examples", "benches"].into_iter().flat_map(files);
    let mut breaches = Vec::new();
    for source in sources {
        let long = source.functions().into_iter().filter(|function| function.lines > FUNCTION_LINES);
        breaches.extend(long.map(|long| format!("{}: fn {} has {} lines", source.path, long.name, long.lines)));
    }
    none(&breaches, &format!("A function has at most {FUNCTION_LINES} lines: give its parts names."));
}

#[test]
fn files_are_short() {
    let sources = files("src");
    let long = sources.iter().filter(|source| source.lines > FILE_LINES);
    let breaches: Vec<_> = long.map(|source| format!("{} has {} lines", source.path, source.lines)).collect();
    none(
        &breaches,
        &format!("A file has at most {FILE_LINES} lines without its tests: make it a folder, one concept a file."),
    );
}

#[test]
fn the_top_level_holds_what_the_design_names() {
    let mut breaches = Vec::new();
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("read the top level").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // `target` is cargo's, and never committed.
        let known = name.starts_with('.') || name.starts_with("LICENSE") || name == "target";
        if !known && !TOP_LEVEL.contains(&name.as_str()) {
            breaches.push(name);
        }
    }
    none(
        &breaches,
        "Put it into one of the folders that are there; what a tool demands at the top goes into TOP_LEVEL in tests/it/tidy.rs.",
    );
}

#[test]
fn every_package_has_a_licence_that_deny_toml_allows() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let deny = fs::read_to_string(top.join("deny.toml")).expect("read deny.toml");
    let deny: toml::Table = deny.parse().expect("deny.toml is TOML");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();

    let packages = packages(top);
    assert!(packages.len() > 50, "cargo named only {} packages", packages.len());
    let mut breaches = Vec::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        if !permitted(licence, &allowed) {
            breaches.push(format!("{}: {licence}", package["name"]));
        }
    }
    none(
        &breaches,
        "Do without the package, or add the licence to deny.toml if it may be shipped in a closed product.",
    );
}

/// The packages that are built on this machine's platform; others may not even have been downloaded.
fn packages(top: &Path) -> Vec<serde_json::Value> {
    let version = Command::new("rustc").arg("-vV").current_dir(top).output().expect("run rustc");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    let output = command.current_dir(top).output().expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("a list").clone()
}

/// Whether a licence expression can be met with `allowed`: one of each OR, all of each AND.
fn permitted(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = either(&words, allowed);
    met && rest.is_empty()
}

fn either<'a>(words: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = both(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (other, left) = both(more, allowed);
        (met, rest) = (met || other, left);
    }
    (met, rest)
}

fn both<'a>(words: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    let (mut met, mut rest) = single(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (other, left) = single(more, allowed);
        (met, rest) = (met && other, left);
    }
    (met, rest)
}

fn single<'a>(words: &'a [&'a str], allowed: &[&str]) -> (bool, &'a [&'a str]) {
    match words {
        ["(", inside @ ..] => {
            let (met, rest) = either(inside, allowed);
            (met, rest.strip_prefix(&[")"]).unwrap_or(rest))
        }
        [licence, "WITH", exception, rest @ ..] => {
            (allowed.contains(&format!("{licence} WITH {exception}").as_str()), rest)
        }
        [licence, rest @ ..] => (allowed.contains(licence), rest),
        [] => (false, words),
    }
}

#[test]
fn the_rules_see_breaches() {
    let wrong = [
        ("src/error.rs", "use crate::{tenant::State, pg::Session};"),
        ("src/pg/tls.rs", "fn a() { crate::registry::claim() }"),
        ("src/plan.rs", "use super::provision;"),
        ("src/pg/tls.rs", "use super::super::commands;"),
        ("src/strange.rs", ""),
        ("src/plan.rs", "use crate::Odd;"),
    ];
    for (path, text) in wrong {
        assert_eq!(breaches_of_rows(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
    let right = [
        (
            "src/plan.rs",
            "// use crate::pg;\nuse crate::error::{Error, pg};\nconst A: &str = \"crate::pg\"; /* crate::pg */",
        ),
        ("src/plan.rs", "#[cfg(test)]\nmod tests {\n    use super::provision;\n}"),
        ("src/registry/claim.rs", "use crate::{pg, error::Kind};\nuse super::commands;"),
        ("src/pg/mod.rs", "const RAW: &str = r#\"\" crate::commands\"#; fn a<'a>(b: &'a str) -> char { '\"' }"),
    ];
    for (path, text) in right {
        assert_eq!(breaches_of_rows(&[Source::new(path, text)]), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn lines_are_counted_without_comments_and_tests() {
    let text = "fn a(b: [u8; 2]) {\n    // why\n\n    b;\n    \"x\n    y\";\n}\ntrait C {\n    fn d();\n}\n#[cfg(test)]\nmod tests {\n    fn e() {\n        f();\n    }\n}\n";
    let source = Source::new("src/plan.rs", text);
    let counted: Vec<_> = source.functions().into_iter().map(|function| (function.name, function.lines)).collect();
    assert_eq!(counted, [("a".to_owned(), 3), ("e".to_owned(), 1)]);
    assert_eq!(source.lines, 10);
    assert!(!source.without_tests().contains("f()"));
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Unicode-3.0"];
    for good in
        ["MIT", "GPL-3.0 OR MIT", "Apache-2.0/MIT", "(MIT OR Apache-2.0) AND Unicode-3.0", "Apache-2.0 WITH X OR MIT"]
    {
        assert!(permitted(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH X", "none", "", "(MIT OR X) AND GPL-3.0"] {
        assert!(!permitted(bad, &allowed), "{bad}");
    }
}
