//! The words of a tenant: how it stands, the names that are no tenant's, and the mark of ownership.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

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
        #[test]
        fn markers_of_two_keys_differ(one in ".{0,20}", other in ".{0,20}") {
            prop_assert_eq!(Marker::of(Uuid::nil(), &one) == Marker::of(Uuid::nil(), &other), one == other);
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
