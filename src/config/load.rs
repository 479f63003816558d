//! Loading the settings: from the sources to the checked [`Config`], and what came from where.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Config;
use super::check::check;
use super::layers::Merged;
use super::problem::refused;
use super::raw::Raw;
use super::sources::{Sources, Variables};
use crate::error::Result;

/// What stands in the place of a secret.
const HIDDEN: &str = "***";
/// Shown as [`HIDDEN`]: a command line often carries what it should not.
const SECRET: &str = "main.password_command";

/// The settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the daemon and the commands work with.
    pub config: Config,
    file: Option<PathBuf>,
    settings: Vec<Setting>,
    variables: Vec<Setting>,
}

/// One key or variable, safe to show: secrets are hidden already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `work.lease`, or the name of a variable.
    pub key: String,
    /// The value as it was written; null when unset.
    pub value: Value,
    /// Where it was written: `built-in`, a file and line, a variable.
    pub place: String,
}

impl Loaded {
    /// The settings file that was read; `None` when there is none at the default path.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Every key, by name.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// libpq's variables that say something about the connection.
    #[must_use]
    pub fn variables(&self) -> &[Setting] {
        &self.variables
    }
}

/// Reads all sources and checks everything. Reads the files anew at each call, and keeps nothing between calls.
///
/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage), naming every setting that was refused, with its place and the reason.
pub fn load(sources: &Sources) -> Result<Loaded> {
    let variables = Variables::read(sources).map_err(|problems| refused(&problems))?;
    let mut problems = Vec::new();
    let merged = Merged::read(sources, &variables, &mut problems).map_err(|unreadable| {
        problems.push(unreadable);
        refused(&problems)
    })?;
    let raw = merged.raw().map_err(|problem| refused(&[problem]))?;
    let (config, used) = check(&raw, &merged, &variables, problems).map_err(|problems| refused(&problems))?;

    let settings = Raw::keys().into_iter().map(|key| {
        let value = merged.value(&key);
        let place = if value.is_null() { "unset".to_owned() } else { merged.place(&key) };
        Setting { value: shown(&key, value), key, place }
    });
    let settings = settings.collect();
    let libpq = used.iter().filter(|name| name.starts_with("PG"));
    let libpq = libpq.filter_map(|name| Some((name, variables.filled(name)?)));
    let variables = libpq
        .map(|(name, variable)| {
            let secret = name.contains("PASSWORD");
            let value = if secret { HIDDEN } else { variable.text.as_str() };
            Setting { key: name.clone(), value: value.into(), place: variable.place.clone() }
        })
        .collect();
    Ok(Loaded { config, file: merged.file, settings, variables })
}

fn shown(key: &str, value: Value) -> Value {
    match (key, value) {
        (SECRET, Value::String(_)) => HIDDEN.into(),
        ("main.url", Value::String(url)) => hide_password(&url).into(),
        (_, value) => value,
    }
}

/// The URL without any password. Where it is not clear what is a password, too much is hidden and never too little.
fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.into() };
    // The last `@`, since people paste passwords that hold one, or a `/` or `?`, without encoding it.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((login, rest)) => match login.split_once([':', '/', '?']) {
            Some((user, _)) => (format!("{user}:{HIDDEN}@"), rest),
            None => (format!("{login}@"), rest),
        },
        None => (String::new(), rest),
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let query: Vec<String> = query.split('&').map(hide_parameter).collect();
    let mark = if rest.contains('?') { "?" } else { "" };
    format!("{scheme}://{user}{place}{mark}{}", query.join("&"))
}

fn hide_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        // Encoded names too: `pass%77ord` means the same.
        Some((name, _)) if name.to_lowercase().contains("pass") || name.contains('%') => format!("{name}={HIDDEN}"),
        _ => parameter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::Duration;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::error::Kind;

    /// Sources of its own folder, where the default file is missing.
    struct Place {
        folder: TempDir,
        variables: BTreeMap<String, String>,
        flags: BTreeMap<String, String>,
        env_file: Option<PathBuf>,
        file: Option<PathBuf>,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let connection = [("PGHOST", "localhost"), ("PGUSER", "tenantd"), ("PGDATABASE", "app")];
            let variables = connection.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            Place { folder, variables, flags: BTreeMap::new(), env_file: None, file: None }
        }

        fn variable(mut self, name: &str, text: &str) -> Self {
            self.variables.insert(name.into(), text.into());
            self
        }

        fn flag(mut self, key: &str, text: &str) -> Self {
            self.flags.insert(key.into(), text.into());
            self
        }

        fn file(mut self, text: &str) -> Self {
            self.file = Some(self.write("named.toml", text));
            self
        }

        fn env_file(mut self, text: &str) -> Self {
            self.env_file = Some(self.write(".env", text));
            self
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn load(&self) -> Result<Loaded> {
            let mut sources = Sources::of(self.variables.clone());
            sources.flags.clone_from(&self.flags);
            sources.env_file.clone_from(&self.env_file);
            sources.file.clone_from(&self.file);
            sources.default_file = self.folder.path().join("default.toml");
            load(&sources)
        }

        /// The value and the place of one key.
        fn setting(&self, key: &str) -> (Value, String) {
            let loaded = self.load().unwrap();
            let setting = loaded.settings().iter().find(|setting| setting.key == key).unwrap();
            (setting.value.clone(), setting.place.replace(&self.folder.path().display().to_string(), "DIR"))
        }

        fn refusal(&self) -> String {
            let error = self.load().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            error.chain().replace(&self.folder.path().display().to_string(), "DIR")
        }
    }

    fn place(value: &str, place: &str) -> (Value, String) {
        (value.into(), place.into())
    }

    const URL: &str = "postgresql://h/d";

    #[test]
    fn without_any_source_everything_is_built_in() {
        let loaded = Place::new().load().unwrap();
        let config = &loaded.config;
        assert_eq!(loaded.file(), None);
        assert_eq!((config.signup.schema.as_str(), config.signup.table.as_str()), ("public", "users"));
        assert_eq!(config.signup.notify, None);
        assert_eq!(config.work.lease, Duration::from_secs(30));
        assert_eq!(config.sweep.verify_every, Duration::from_hours(24));
        assert_eq!(config.http, Some("127.0.0.1:9466".parse().unwrap()));
        assert_eq!(config.tenant.use_roles, Vec::<String>::new());
        let built_in = |setting: &&Setting| !setting.value.is_null();
        assert!(loaded.settings().iter().filter(built_in).all(|setting| setting.place == "built-in"));
    }

    #[test]
    fn each_layer_is_stronger_than_the_next() {
        let mut from = Place::new()
            .flag("main.url", "postgresql://flag/d")
            .variable("TENANTD_MAIN__URL", "postgresql://variable/d")
            .env_file("TENANTD_MAIN__URL=postgresql://envfile/d\nDATABASE_URL=postgresql://envfile-database/d\n")
            .file("[main]\nurl = \"postgresql://file/d\"\n")
            .variable("DATABASE_URL", "postgresql://database/d");
        let credentials = from.folder.path().join("credentials");
        fs::create_dir(&credentials).unwrap();
        fs::write(credentials.join("url"), "postgresql://credential/d\n").unwrap();
        let credentials = credentials.display().to_string();
        from = from.variable("CREDENTIALS_DIRECTORY", &credentials);

        assert_eq!(from.setting("main.url"), place("postgresql://flag/d", "command line"));
        from.flags.clear();
        assert_eq!(from.setting("main.url"), place("postgresql://variable/d", "variable TENANTD_MAIN__URL"));
        from.variables.remove("TENANTD_MAIN__URL");
        assert_eq!(from.setting("main.url"), place("postgresql://envfile/d", "variable TENANTD_MAIN__URL in DIR/.env"));
        from = from.env_file("DATABASE_URL=postgresql://envfile-database/d");
        assert_eq!(from.setting("main.url"), place("postgresql://file/d", "DIR/named.toml, line 2"));
        from.file = None;
        assert_eq!(from.setting("main.url"), place("postgresql://credential/d", "credential DIR/credentials/url"));
        from.variables.remove("CREDENTIALS_DIRECTORY");
        assert_eq!(from.setting("main.url"), place("postgresql://database/d", "variable DATABASE_URL"));
        from.variables.remove("DATABASE_URL");
        assert_eq!(
            from.setting("main.url"),
            place("postgresql://envfile-database/d", "variable DATABASE_URL in DIR/.env")
        );
        from.env_file = None;
        assert_eq!(from.setting("main.url"), (Value::Null, "unset".into()));
    }

    #[test]
    fn the_file_is_named_by_flag_or_variable_or_is_the_default() {
        let mut from = Place::new().file("[work]\nparallel = 1\n");
        let other = from.write("other.toml", "[work]\nparallel = 2\n");
        from.write("default.toml", "[work]\nparallel = 3\n");
        from = from.variable("TENANTD_CONFIG", &other.display().to_string());
        assert_eq!(from.load().unwrap().config.work.parallel, 1);
        from.file = None;
        assert_eq!(from.load().unwrap().config.work.parallel, 2);
        from.variables.remove("TENANTD_CONFIG");
        let loaded = from.load().unwrap();
        assert_eq!(loaded.config.work.parallel, 3);
        assert_eq!(loaded.file(), Some(from.folder.path().join("default.toml").as_path()));
    }

    #[test]
    fn a_named_file_that_is_missing_is_refused_and_not_sought_elsewhere() {
        let mut from = Place::new();
        from.file = Some(from.folder.path().join("none.toml"));
        assert_eq!(from.refusal(), "setting refused: --config (DIR/none.toml): no such file");
        from.file = None;
        from.env_file = Some(from.folder.path().join(".env"));
        assert_eq!(from.refusal(), "setting refused: --env-file (DIR/.env): no such file");
        // A file that stands in a folder above must not be found for a relative name: this crate's own Cargo.toml.
        from = Place::new().variable("TENANTD_CONFIG", "src/Cargo.toml");
        assert!(from.refusal().contains("TENANTD_CONFIG (src/Cargo.toml): no such file"));
    }

    #[test]
    fn variables_have_the_type_of_their_key() {
        let loaded = Place::new()
            .variable("TENANTD_SIGNUP__ID_COLUMN", "0123")
            .variable("TENANTD_SIGNUP__TABLE", "true")
            .variable("TENANTD_TENANT__OWNER", "a,b")
            .variable("TENANTD_SIGNUP__NOTIFY", "true")
            .variable("TENANTD_TENANT__MAX", "0050")
            .variable("TENANTD_TENANT__USE", "app, report ,")
            .variable("TENANTD_TENANT__CONNECT", "007")
            .variable("TENANTD_SIGNUP__POLL", "1m 30s")
            .variable("TENANTD_HTTP__LISTEN", "")
            .load()
            .unwrap();
        let config = loaded.config;
        assert_eq!(config.signup.id_column, "0123");
        assert_eq!(config.signup.table, "true");
        assert_eq!(config.tenant.owner.as_deref(), Some("a,b"));
        assert_eq!(config.signup.notify, Some(true));
        assert_eq!(config.tenant.max, 50);
        assert_eq!(config.tenant.use_roles, ["app", "report"]);
        assert_eq!(config.tenant.connect_roles, ["007"]);
        assert_eq!(config.signup.poll, Duration::from_secs(90));
        assert_eq!(config.http, None);
    }

    #[test]
    fn a_condition_is_taken_as_it_is_written_or_refused() {
        let load = |when: &str| Place::new().variable("TENANTD_SIGNUP__WHEN", when);
        for (written, meant) in [
            ("email_confirmed", "email_confirmed"),
            (
                " status = 'paid'\n  and deleted_at is null -- gone\n",
                "status = 'paid'\n  and deleted_at is null -- gone",
            ),
            ("true", "true"),
        ] {
            assert_eq!(load(written).load().unwrap().config.signup.when.as_deref(), Some(meant));
        }
        assert_eq!(Place::new().load().unwrap().config.signup.when, None);
        let long = "a".repeat(4001);
        for (written, reason) in
            [(" ", "empty"), ("a = '\u{7}'", "control characters"), (long.as_str(), "too long: at most 4000 bytes")]
        {
            let refusal = load(written).refusal();
            assert!(
                refusal.contains("signup.when (variable TENANTD_SIGNUP__WHEN)") && refusal.contains(reason),
                "{refusal}"
            );
        }
    }

    #[test]
    fn what_goes_with_schemas_alone_is_refused_without_them() {
        let of = |isolation: &str| {
            Place::new().flag("main.url", URL).flag("tenant.isolation", isolation).flag("tenant.owner", "owner")
        };
        let schemas = of("schema").flag("tenant.shared_schemas", "shared");
        let elsewhere = |database: &str| of("schema").flag("tenant.database", database).load().unwrap().config;
        assert_eq!(schemas.load().unwrap().config.tenant.shared_schemas, ["shared"]);
        assert_eq!(elsewhere("tenants").tenant.database.as_deref(), Some("tenants"));
        assert_eq!(elsewhere("d").tenant.database, None, "the main one");
        for (wrong, key, reason) in [
            (of("database").flag("tenant.shared_schemas", "shared"), "tenant.shared_schemas", "goes with"),
            (of("database").flag("tenant.database", "tenants"), "tenant.database", "goes with"),
            (of("schema").flag("tenant.database", ""), "tenant.database", "empty"),
            (of("schema").flag("tenant.database", "tenants").flag("work.connections", "11"), "work.connections", "12"),
            (of("schema").flag("tenant.extensions", "citext"), "tenant.extensions", "tenant.shared_schemas"),
            (of("schema").flag("signup.handover", "commit"), "signup.handover", "makes the schema"),
            (Place::new().flag("main.url", URL).flag("tenant.isolation", "schema"), "tenant.owner", "an owner"),
        ] {
            let refusal = wrong.refusal();
            assert!(refusal.contains(key) && refusal.contains(reason), "{key}: {refusal}");
        }
    }

    #[test]
    fn an_env_file_is_read_as_teams_write_it() {
        let from = Place::new().env_file(
            "\u{feff}# the app's\nexport TENANTD_WORK__PARALLEL=7 # seven\nTENANTD_TENANT__OWNER='we $HOME'\nOTHER=x\n",
        );
        let config = from.load().unwrap().config;
        assert_eq!((config.work.parallel, config.tenant.owner.as_deref()), (7, Some("we $HOME")));
        let refusal = Place::new().env_file("A=1\nDATABASE_URL=postgres://u:swordfish'x\n").refusal();
        assert!(refusal.contains("--env-file (DIR/.env, line 2)"), "{refusal}");
        assert!(!refusal.contains("swordfish"), "{refusal}");
    }

    #[test]
    fn all_problems_of_a_load_are_told_each_with_key_place_and_reason() {
        let refusal = Place::new()
            .file(concat!(
                "[signup]\ntabel = \"users\"\npoll = 2\n",
                "[work]\nlease = \"1s\"\nparallel = 0\n",
                "[tenant]\nmax = -1\nuse = [\"app\", 5]\nprefix = \"Tenant\"\n",
                "[sparse]\nmin = 2\n",
                "[log]\nlevel = \"inof\"\n",
            ))
            .variable("TENANTD_SWEEP__EVRY", "5m")
            .variable("TENANTD_RETRY__ATTEMPTS", "many")
            .variable("TENANTD_LOG_LEVEL", "debug")
            .variable("TENANTD_HTTP__LISTEN", "localhost:80")
            .variable("TENANTD_PORT", "tcp://10.0.0.1:9466")
            .refusal();
        for line in [
            "signup.tabel (DIR/named.toml, line 2): no such key; did you mean signup.table?",
            "signup.poll (DIR/named.toml, line 3): found 2, expected a duration in quotes, such as \"30s\"",
            "work.lease (DIR/named.toml, line 5): too short: at least 3s",
            "work.parallel (DIR/named.toml, line 6): 0 is not between 1 and 1000",
            "tenant.max (DIR/named.toml, line 8): found -1, expected a whole number of 0 or more",
            "tenant.use (DIR/named.toml, line 9): found 5, expected text in quotes",
            "tenant.prefix (DIR/named.toml, line 10): \"Tenant\" must begin with a letter and have only a-z, 0-9 and _",
            "sparse (DIR/named.toml, line 11): no such table or key; did you mean [spares]?",
            "log.level (DIR/named.toml, line 14): \"inof\" is none of off, error, warn, info, debug, trace; did you mean \"info\"?",
            "sweep.evry (variable TENANTD_SWEEP__EVRY): no such key; did you mean sweep.every?",
            "retry.attempts (variable TENANTD_RETRY__ATTEMPTS): found \"many\", expected a whole number of 0 or more",
            "TENANTD_LOG_LEVEL (variable TENANTD_LOG_LEVEL): no such variable; did you mean TENANTD_LOG__LEVEL?",
            "http.listen (variable TENANTD_HTTP__LISTEN): \"localhost:80\" is no address and port, such as \"127.0.0.1:9466\"; \"\" listens nowhere",
        ] {
            assert!(refusal.lines().any(|found| found.trim() == line), "{line}\n-- not in --\n{refusal}");
        }
        assert_eq!(refusal.lines().count(), 14, "{refusal}");
    }

    #[test]
    fn single_rules_are_kept() {
        for (file, reason) in [
            ("[work]\nlease = \"soon\"", "\"soon\" is no duration"),
            ("[signup]\npoll = \"0s\"", "signup.poll (DIR/named.toml, line 2): too short: at least 10ms"),
            ("[sweep]\nevery = \"-5m\"", "\"-5m\" is negative"),
            ("[sweep]\nverify_every = \"400 days\"", "at most 365 days"),
            ("[retry]\nfirst = \"20m\"", "retry.max (built-in): shorter than retry.first (DIR/named.toml, line 2)"),
            ("[retry]\nattempts = 0", "at least 1"),
            ("[tenant]\nnaming = \"name\"", "\"name\" is none of uuid, hash, key"),
            ("[tenant]\nhash = \"md4\"", "\"md4\" is none of md5, sha256"),
            ("[tenant]\nhash_digits = 7", "7 is not between 8 and 32"),
            ("[tenant]\nhash = \"sha256\"\nhash_digits = 63", "63 is not between 8 and 62"),
            (
                "[tenant]\nnaming = \"hash\"\nhash = \"sha256\"\nhash_digits = 60",
                "tenant.prefix (built-in): \"tid_\" is too long",
            ),
            ("[tenant]\nprefix = \"\"", "must begin with a letter"),
            ("[tenant]\nnaming = \"key\"\nprefix = \"pg_\"", "must not begin with \"pg_\""),
            ("[tenant]\nmax = 0", "at least 1"),
            ("[tenant]\nowner = \"\"", "tenant.owner (DIR/named.toml, line 2): \"\" is no name"),
            ("[tenant]\nuse = [\"public\"]", "\"public\" cannot be a role's name"),
            ("[tenant]\nmigrations = \"\"", "tenant.migrations (DIR/named.toml, line 2): empty"),
            ("[log]\nformat = \"jsn\"", "did you mean \"json\"?"),
            ("[log]\nlevel = \"tenantd=loud\"", "no list of directives"),
            ("[main]\npassword_file = \"a\"\npassword_command = \"b\"", "keep the one that is meant"),
            ("main = 5", "main (DIR/named.toml, line 1): found 5, expected a table"),
            ("url = \"x\"", "did you mean main.url?"),
            ("[work\nlease = 1", "settings file (DIR/named.toml, line 1): not TOML"),
            (
                "[work]\nlease = \"3s\"\nlease = \"4s\"",
                "settings file (DIR/named.toml, line 3): not TOML: duplicate key",
            ),
        ] {
            let refusal = Place::new().file(file).refusal();
            assert!(refusal.contains(reason), "{reason}\n-- not in --\n{refusal}");
        }
    }

    #[test]
    fn directives_and_any_case_of_a_level_are_taken() {
        for level in ["info", "DEBUG", "info,tenantd=debug", "tenantd::pg=trace,off"] {
            assert_eq!(Place::new().flag("log.level", level).load().unwrap().config.log.level, level);
        }
    }

    #[test]
    fn a_credential_password_is_used_unless_another_is_set() {
        let mut from = Place::new();
        let credential = from.write("password", "secret").display().to_string();
        let folder = from.folder.path().display().to_string();
        from = from.variable("CREDENTIALS_DIRECTORY", &folder);
        assert_eq!(from.setting("main.password_file"), place(&credential, "credential DIR/password"));
        from = from.file("[main]\npassword_file = \"/own\"");
        assert_eq!(from.setting("main.password_file"), place("/own", "DIR/named.toml, line 2"));
        from = from.file("").variable("TENANTD_MAIN__PASSWORD_COMMAND", "print it");
        assert_eq!(from.setting("main.password_file"), (Value::Null, "unset".into()));
    }

    #[test]
    fn names_begin_as_the_naming_has_it_unless_a_prefix_is_set() {
        for (settings, names) in [
            ("", "uuid tenant_"),
            ("naming = \"hash\"", "hash tid_ md5 10"),
            ("naming = \"hash\"\nhash = \"sha256\"\nhash_digits = 12\nprefix = \"t_\"", "hash t_ sha256 12"),
            ("naming = \"key\"", "key "),
            ("naming = \"key\"\nprefix = \"customer_\"", "key customer_"),
        ] {
            let config = Place::new().file(&format!("[tenant]\n{settings}\n")).load().unwrap().config;
            assert_eq!(config.tenant.names.to_string(), names);
        }
    }

    #[test]
    fn no_tenant_is_named_as_the_main_database() {
        let config = Place::new().file("[tenant]\nnaming = \"key\"\n").load().unwrap().config;
        assert!(config.tenant.names.of(config.main.database()).is_err());
        assert!(config.tenant.names.of("acme").is_ok());
    }

    #[test]
    fn a_reload_sees_what_changed() {
        let from = Place::new().file("[work]\nparallel = 1\n");
        assert_eq!(from.load().unwrap().config.work.parallel, 1);
        from.write("named.toml", "[work]\nparallel = 2\n");
        assert_eq!(from.load().unwrap().config.work.parallel, 2);
    }

    #[test]
    fn no_secret_is_shown_anywhere() {
        let url = "postgresql://app:swordfish@h/d?password=swordfish&sslmode=verify-full";
        let in_url = Place::new().variable("TENANTD_MAIN__URL", url);
        assert_eq!(in_url.setting("main.url").0, "postgresql://app:***@h/d?password=***&sslmode=verify-full");
        let in_command = Place::new().variable("TENANTD_MAIN__PASSWORD_COMMAND", "echo swordfish");
        assert_eq!(in_command.setting("main.password_command").0, "***");
        let in_variable = Place::new().variable("PGPASSWORD", "swordfish");
        for from in [in_url, in_command, in_variable] {
            let loaded = from.load().unwrap();
            assert!(!format!("{loaded:?}").contains("swordfish"), "{loaded:?}");
            assert!(!format!("{:?}", Sources::of(from.variables.clone())).contains("swordfish"));
        }
    }

    #[test]
    fn the_variables_that_fill_the_connection_are_named() {
        let loaded = Place::new().load().unwrap();
        let host = Setting { key: "PGHOST".into(), value: "localhost".into(), place: "variable PGHOST".into() };
        assert!(loaded.variables().contains(&host), "{:?}", loaded.variables());
    }

    #[test]
    fn no_secret_is_told_by_a_refusal() {
        for file in [
            "main = \"postgresql://u:swordfish@h/d\"",
            "[main]\nurl = \"postgresql://u:swordfish@h/d",
            "[main]\nurl = [\"postgresql://u:swordfish@h/d\"]",
            "[main]\nconnect_timeout = [\"swordfish\"]",
            "[main]\npasswort = \"swordfish\"",
            "[main]\nurl = \"nothing://u:swordfish@h/d\"",
        ] {
            let refusal = Place::new().file(file).refusal();
            assert!(!refusal.contains("swordfish"), "{refusal}");
        }
    }

    #[test]
    fn passwords_are_hidden_in_every_shape_of_url() {
        for (url, shown) in [
            (URL, URL),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("postgresql://u:p@h:5432/d?sslmode=require", "postgresql://u:***@h:5432/d?sslmode=require"),
            ("postgresql://u:p@ss/w?rd@h/d", "postgresql://u:***@h/d"),
            ("postgresql://h/d?password=p&user=u", "postgresql://h/d?password=***&user=u"),
            ("postgresql://h/d?pass%77ord=p", "postgresql://h/d?pass%77ord=***"),
            ("postgresql://h/d?password=p@q", "postgresql://h:***@q"),
            ("host=h password=p", "***"),
        ] {
            assert_eq!(hide_password(url), shown);
        }
    }

    fn any_value() -> impl Strategy<Value = String> {
        let words =
            ["", "true", "auto", "commit", "public", "\"a\"", "1h", "10%", "0", "a,b", "[]", "127.0.0.1:1", "off"];
        prop_oneof![
            ".{0,30}",
            "-?[0-9]{1,25}",
            "[0-9]{1,20}(\\.[0-9]{1,3})?(ms|s|m|h|d|y|%)( [0-9]{1,3}s)?",
            proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Written as a variable, a flag or in the file: a value is taken, or refused with its key.
        #[test]
        fn any_text_is_a_value_or_an_error_that_names_the_key(
            key in proptest::sample::select(Raw::keys()), text in any_value(), form in 0..4_usize,
        ) {
            let (table, name) = key.split_once('.').unwrap();
            let place = match form {
                0 => Place::new().variable(&format!("TENANTD_{}", key.to_uppercase().replace('.', "__")), &text),
                1 => Place::new().flag(&key, &text),
                2 => Place::new().file(&format!("[{table}]\n{name} = {}\n", toml::Value::from(text.as_str()))),
                _ => Place::new().file(&format!("[{table}]\n{name} = [{}]\n", toml::Value::from(text.as_str()))),
            };
            match place.load() {
                Ok(loaded) => {
                    let setting = loaded.settings().iter().find(|setting| setting.key == key).unwrap();
                    prop_assert!(setting.place != "built-in", "{:?}", setting);
                }
                Err(error) => {
                    prop_assert_eq!(error.kind(), Kind::Usage);
                    let told = error.chain();
                    // The connection's own words for its parameters are those of libpq.
                    let named = told.contains(&key) || table == "main" && told.contains(name);
                    prop_assert!(named || told.contains("settings file"), "{}: {}", key, told);
                }
            }
        }

        #[test]
        fn any_file_and_any_variable_is_taken_or_refused(
            file in "(\\[(main|work|tenant|\\[?x)\\]?\\]?\n|[a-z.\"']{1,8} ?= ?[0-9a-z\"'\\[\\]{},.-]{0,8}\n|.{0,10}\n){0,6}",
            name in "[A-Za-z0-9_.]{0,14}", text in any_value(),
        ) {
            let place = Place::new().file(&file).env_file(&file).variable(&format!("TENANTD_{name}"), &text);
            if let Err(error) = place.load() {
                prop_assert_eq!(error.kind(), Kind::Usage);
            }
            let alone = Place::new().variable(&format!("TENANTD_{name}"), &text);
            if let Err(error) = alone.load() {
                let key = name.to_lowercase().replace("__", ".");
                prop_assert!(error.chain().contains(&key) || error.chain().contains(&name), "{}: {}", name, error.chain());
            } else if name.contains("__") {
                let key = name.to_lowercase().replace("__", ".");
                prop_assert!(Raw::keys().contains(&key), "{} was taken for nothing", name);
            }
        }

        /// In a line of any shape, in a file of any shape.
        #[test]
        fn no_password_is_told_whatever_the_file_holds(
            line in "(main\\.)?(url[ =\"'\\[]{1,4}postgresql://u:|password_command[ =\"'\\[]{1,4}|passwort ?= ?[\"']?)",
            end in "[\"'@/?#=&%,\\]\n a-z]{0,12}",
        ) {
            let place = Place::new().file(&format!("[main]\n{line}swordfish{end}\n"));
            let told = match place.load() {
                Ok(loaded) => format!("{loaded:?}"),
                Err(error) => format!("{} {error:?}", error.chain()),
            };
            prop_assert!(!line.contains('=') || !told.contains("swordfish"), "{}", told);
        }
    }
}
