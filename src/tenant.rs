//! The words of a tenant: its key, the name of its database, how it stands, and the mark of ownership.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::{Error, Kind, Result};

/// Postgres cuts longer identifiers off without an error, so that two long names could become one.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// Begins every random name: of spares, templates and what else is no tenant's.
pub const RANDOM_PREFIX: &str = "tenantd_";

/// Begins the random name under which a database is made; see `provision`.
pub const SPARE_PREFIX: &str = "tenantd_spare_";

/// Begins the names of templates.
pub const TEMPLATE_PREFIX: &str = "tenantd_template_";

/// Begins the random names of databases that were set aside.
pub const DROPPED_PREFIX: &str = "tenantd_dropped_";

/// The name of the tenant's database for a signup's `key`: `prefix` and the uuid with hyphens as underscores.
///
/// Only the hyphenated lower-case form that Postgres prints is taken: any other spelling could make two keys one name.
///
/// # Errors
/// [`Kind::BadKey`] when the key is not such a uuid.
pub fn database_name(prefix: &str, key: &str) -> Result<String> {
    let canonical = Uuid::try_parse(key).ok().map(|uuid| uuid.hyphenated().to_string());
    if canonical.as_deref() != Some(key) {
        return Err(Error::new(Kind::BadKey, format!("key {key:?} is no uuid in the form Postgres prints it")).hint(
            "signup.id_column must name a column of type uuid, or of text holding lower-case uuids with hyphens",
        ));
    }
    Ok(format!("{prefix}{}", key.replace('-', "_")))
}

/// A fresh name under which to make a database.
#[must_use]
pub fn spare_name() -> String {
    format!("{SPARE_PREFIX}{}", Uuid::new_v4().simple())
}

/// A fresh name under which to set a database aside.
#[must_use]
pub fn dropped_name() -> String {
    format!("{DROPPED_PREFIX}{}", Uuid::new_v4().simple())
}

/// A fresh name for a template of the migration set `id`. Two builds of one set never meet under one name.
#[must_use]
pub fn template_name(id: &str) -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("{TEMPLATE_PREFIX}{id:.16}_{random:.8}")
}

/// What the application may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Signed up; no database yet.
    Requested,
    /// The database is there and usable at its version, also while a later migration fails.
    Ready,
    /// Being taken away.
    Deleting,
    /// Gone; a new signup of the key asks for it anew.
    Deleted,
}

/// What the daemon has still to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// Nothing.
    Idle,
    /// Something, from `due_at` on.
    Due,
    /// The last try failed; tried again from `due_at` on.
    Failing,
    /// Out of tries: a person should look.
    Parked,
    /// Not to be touched until released.
    Held,
}

macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order of its life.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The word for it in SQL, logs, metrics and output.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($type::$variant => $word),+ }
            }

            /// Reads the word back; `None` for a word this tenantd does not know.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some($type::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

pub(crate) use words;

words!(State { Requested => "requested", Ready => "ready", Deleting => "deleting", Deleted => "deleted" });
words!(Work { Idle => "idle", Due => "due", Failing => "failing", Parked => "parked", Held => "held" });

/// Who made a database, kept as its COMMENT: every role can read it, and it survives a dump.
///
/// A database without the right marker is never adopted, migrated, renamed or dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The registry that the database belongs to.
    pub registry: Uuid,
    /// SHA-256 of the tenant's key in lower-case hex, so that the comment gives no key away.
    pub key_hash: String,
}

impl Marker {
    /// The marker of `key`'s database in the registry `registry`.
    #[must_use]
    pub fn of(registry: Uuid, key: &str) -> Self {
        Marker { registry, key_hash: hex(&Sha256::digest(key.as_bytes())) }
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenantd {} {}", self.registry, self.key_hash)
    }
}

/// Bytes as lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No two keys may come to one name, so only one spelling of a uuid is taken.
        #[test]
        fn a_name_gives_its_key_back(number: u128, spelling in 0..7_usize, other in ".{0,60}") {
            let uuid = Uuid::from_u128(number);
            let key = match spelling {
                0 => uuid.to_string(),
                1 => uuid.to_string().to_uppercase(),
                2 => uuid.simple().to_string(),
                3 => uuid.braced().to_string(),
                4 => uuid.urn().to_string(),
                5 => format!("{uuid} "),
                _ => other,
            };
            match database_name("tenant_", &key) {
                Ok(name) => {
                    prop_assert_eq!(name.strip_prefix("tenant_").unwrap().replace('_', "-"), key);
                    prop_assert!(name.len() <= MAX_IDENTIFIER_BYTES);
                }
                Err(error) => prop_assert!(error.kind() == Kind::BadKey && key != uuid.to_string()),
            }
        }

        #[test]
        fn markers_of_two_keys_differ(one in ".{0,20}", other in ".{0,20}") {
            prop_assert_eq!(Marker::of(Uuid::nil(), &one) == Marker::of(Uuid::nil(), &other), one == other);
        }
    }

    #[test]
    fn a_uuid_becomes_a_name() {
        assert_eq!(
            database_name("tenant_", "123e4567-e89b-12d3-a456-426614174000").unwrap(),
            "tenant_123e4567_e89b_12d3_a456_426614174000"
        );
    }

    #[test]
    fn other_spellings_are_refused() {
        for key in [
            "",
            "42",
            "123E4567-E89B-12D3-A456-426614174000",
            "123e4567e89b12d3a456426614174000",
            "{123e4567-e89b-12d3-a456-426614174000}",
            "urn:uuid:123e4567-e89b-12d3-a456-426614174000",
            "123e4567-e89b-12d3-a456-426614174000\n",
            "x\"; drop database postgres; --",
        ] {
            assert_eq!(database_name("tenant_", key).unwrap_err().kind(), Kind::BadKey, "{key:?}");
        }
    }

    #[test]
    fn random_names_fit_and_differ() {
        assert!(spare_name().len() <= MAX_IDENTIFIER_BYTES);
        assert_ne!(spare_name(), spare_name());
        let id = hex(&[7; 32]);
        assert!(template_name(&id).len() <= MAX_IDENTIFIER_BYTES);
        assert!(template_name(&id).starts_with("tenantd_template_0707070707070707_"));
        assert_ne!(template_name(&id), template_name(&id));
    }

    #[test]
    fn words_read_back() {
        for state in State::ALL {
            assert_eq!(State::from_word(state.word()), Some(*state));
        }
        for work in Work::ALL {
            assert_eq!(Work::from_word(work.word()), Some(*work));
        }
        assert_eq!(State::from_word("cooking"), None);
    }

    #[test]
    fn a_marker_names_registry_and_key_but_not_the_key_itself() {
        let marker = Marker::of(Uuid::nil(), "k").to_string();
        assert_eq!(
            marker,
            "tenantd 00000000-0000-0000-0000-000000000000 8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
        );
    }
}
