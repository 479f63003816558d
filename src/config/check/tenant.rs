//! `[tenant]` and `[spares]`: what tenants are, and what they are made of.

use super::Check;
use crate::config::raw;
use crate::config::{Handover, Isolation, Spares, Strategy, Tenant};
use crate::naming::{Algorithm, FEWEST_DIGITS, Names, Rule};

const STRATEGIES: [(&str, Strategy); 3] =
    [("auto", Strategy::Auto), ("wal_log", Strategy::WalLog), ("file_copy", Strategy::FileCopy)];
const ISOLATIONS: [(&str, Isolation); 2] = [("database", Isolation::Database), ("schema", Isolation::Schema)];
/// Each is a database of some megabytes.
const MOST_SPARES: u32 = 1000;

impl Check<'_> {
    pub(super) fn names(&mut self, raw: &raw::Tenant, main_database: &str) -> Names {
        let algorithms: Vec<_> = Algorithm::ALL.iter().map(|algorithm| (algorithm.word(), *algorithm)).collect();
        let algorithm = self.word("tenant.hash", &raw.hash, &algorithms);
        let digits = self.between("tenant.hash_digits", raw.hash_digits, FEWEST_DIGITS, algorithm.most_digits());
        let rules = [("uuid", Rule::Uuid), ("hash", Rule::Hash(algorithm, digits)), ("key", Rule::Key)];
        let rule = self.word("tenant.naming", &raw.naming, &rules);
        let prefix = raw.prefix.as_deref().unwrap_or(rule.built_in_prefix());
        if let Err(reason) = rule.check_prefix(prefix) {
            self.refuse("tenant.prefix", reason);
        }
        Names::new(rule, prefix, main_database)
    }

    pub(super) fn tenant(&mut self, raw: &raw::Tenant, names: Names, main_database: &str) -> Tenant {
        self.path("tenant.migrations", raw.migrations.as_ref());
        self.at_least_one("tenant.max", raw.max);
        let isolation = self.word("tenant.isolation", &raw.isolation, &ISOLATIONS);
        if isolation == Isolation::Schema && raw.owner.is_none() {
            self.refuse("tenant.owner", "tenants that have a schema each need an owner of their own, who owns nothing else: what their migrations may reach depends on it");
        }
        if isolation == Isolation::Schema && raw.shared_schemas.is_empty() && !raw.extensions.is_empty() {
            self.refuse(
                "tenant.extensions",
                "tenants share them, so tenant.shared_schemas must name a schema to put them into",
            );
        }
        Tenant {
            isolation,
            database: self.tenants_in(raw, isolation).filter(|database| database != main_database),
            shared_schemas: self.shared_schemas(raw, isolation),
            names,
            migrations: raw.migrations.clone(),
            owner: raw.owner.as_ref().map(|owner| self.role("tenant.owner", owner)),
            use_roles: raw.use_roles.iter().map(|role| self.role("tenant.use", role)).collect(),
            connect_roles: raw.connect_roles.iter().map(|role| self.role("tenant.connect", role)).collect(),
            extensions: raw.extensions.iter().map(|name| self.name("tenant.extensions", name)).collect(),
            strategy: self.word("tenant.strategy", &raw.strategy, &STRATEGIES),
            out_of_order: raw.out_of_order,
            max: raw.max,
            max_per_hour: raw.max_per_hour,
        }
    }

    fn tenants_in(&mut self, raw: &raw::Tenant, isolation: Isolation) -> Option<String> {
        let database = raw.database.as_ref()?;
        let key = "tenant.database";
        if isolation == Isolation::Database {
            self.refuse(
                key,
                "tenants that have a database each are in none together; it goes with tenant.isolation = \"schema\"",
            );
        }
        Some(self.name(key, database))
    }

    fn shared_schemas(&mut self, raw: &raw::Tenant, isolation: Isolation) -> Vec<String> {
        let key = "tenant.shared_schemas";
        if isolation == Isolation::Database && !raw.shared_schemas.is_empty() {
            self.refuse(key, "tenants that have a database each see no schema of another; it goes with tenant.isolation = \"schema\"");
        }
        raw.shared_schemas.iter().map(|schema| self.name(key, schema)).collect()
    }

    pub(super) fn spares(&mut self, raw: &raw::Spares, handover: Handover, isolation: Isolation) -> Spares {
        if raw.max > MOST_SPARES {
            self.refuse("spares.max", format!("{} is more than {MOST_SPARES}", raw.max));
        }
        if raw.max > 0 && raw.min > raw.max {
            let place = self.merged.place("spares.max");
            self.refuse("spares.min", format!("{} is more than spares.max ({}, {place})", raw.min, raw.max));
        }
        if raw.max == 0 && handover == Handover::Commit {
            self.refuse("signup.handover", "\"commit\" hands spares over, and spares.max = 0 means none");
        }
        if isolation == Isolation::Schema {
            if handover == Handover::Commit {
                self.refuse(
                    "signup.handover",
                    "\"commit\" hands databases over; with tenant.isolation = \"schema\" the daemon makes the schema",
                );
            }
            return Spares { min: 0, max: 0 };
        }
        Spares { min: raw.min.min(raw.max), max: raw.max }
    }
}
