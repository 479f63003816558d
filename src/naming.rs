//! How tenants are named: from a key to the name of its database. Under one setting a key has one name; that no two tenants have one name is
//! seen to by the registry.
//!
//! A name is given once: a tenant keeps it, whatever the settings become. `tenantd.name_of` in the registry comes to the same names.

use std::fmt;

use md5::Md5;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::tenant::{MAX_IDENTIFIER_BYTES, RANDOM_PREFIX, hex, words};

/// The fewest hex digits of a hash: with eight, of a hundred thousand keys about one pair meets.
pub const FEWEST_DIGITS: u32 = 8;

/// A uuid as Postgres prints it.
const UUID_BYTES: usize = 36;

/// No tenant is named so: the server's own, and ours.
const OWN: [&str; 6] = ["postgres", "template0", "template1", "public", "information_schema", "tenantd"];

/// The server's and ours begin so.
const OWN_PREFIXES: [&str; 2] = ["pg_", RANDOM_PREFIX];

/// What no server from Postgres 13 to 18 takes as the name of a table without quotes: the words of `pg_get_keywords()` in categories R and T.
const RESERVED: &str = "\
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column concurrently \
    constraint create cross current_catalog current_date current_role current_schema current_time current_timestamp current_user default \
    deferrable desc distinct do else end except false fetch for foreign freeze from full grant group having ilike in initially inner \
    intersect into is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on only or order \
    outer overlaps placing primary references returning right select session_user similar some symmetric system_user table tablesample then \
    to trailing true union unique user using variadic verbose when where window with";

/// What the hex digits are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// As existing fleets have it.
    Md5,
    /// For those who may not use MD5, or want more digits.
    Sha256,
}

words!(Algorithm { Md5 => "md5", Sha256 => "sha256" });

impl Algorithm {
    /// The most hex digits that a name can have of it: of the 64 of SHA-256 those that leave room for a prefix of one letter.
    #[must_use]
    pub fn most_digits(self) -> u32 {
        match self {
            Algorithm::Md5 => 32,
            Algorithm::Sha256 => 62,
        }
    }

    fn digits_of(self, key: &str) -> String {
        match self {
            Algorithm::Md5 => hex(&Md5::digest(key.as_bytes())),
            Algorithm::Sha256 => hex(&Sha256::digest(key.as_bytes())),
        }
    }
}

/// How a name is made of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The key is a uuid; its hyphens become underscores.
    Uuid,
    /// So many of the first hex digits of the key's hash. Any key has a name, and two may have the same.
    Hash(Algorithm, usize),
    /// The key as it stands.
    Key,
}

impl Rule {
    /// What names begin with unless a prefix is set.
    #[must_use]
    pub fn built_in_prefix(self) -> &'static str {
        match self {
            Rule::Uuid => "tenant_",
            Rule::Hash(..) => "tid_",
            Rule::Key => "",
        }
    }

    /// Whether `prefix` may begin names that are made so; if not, why. It needs no quotes anywhere, leaves room for what follows, and begins no
    /// name of the server's or of ours.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check_prefix(self, prefix: &str) -> Result<(), String> {
        let (what, room) = match self {
            Rule::Uuid => ("the uuid".to_owned(), UUID_BYTES),
            Rule::Hash(_, digits) => (format!("{digits} digits"), digits),
            Rule::Key => ("the key".to_owned(), 1),
        };
        let most = MAX_IDENTIFIER_BYTES - room;
        let empty = self == Rule::Key && prefix.is_empty();
        if !empty && (!prefix.starts_with(|c: char| c.is_ascii_lowercase()) || !prefix.chars().all(is_plain)) {
            Err(format!("{prefix:?} must begin with a letter and have only a-z, 0-9 and _"))
        } else if let Some(own) = OWN_PREFIXES.iter().find(|own| prefix.starts_with(**own)) {
            let whose = if *own == RANDOM_PREFIX { "databases in the making" } else { "the server's own" };
            Err(format!("{prefix:?} must not begin with {own:?}: so do the names of {whose}"))
        } else if prefix.len() > most {
            Err(format!(
                "{prefix:?} is too long: with {what} it must fit into {MAX_IDENTIFIER_BYTES} bytes, so at most {most}"
            ))
        } else {
            Ok(())
        }
    }
}

/// What the signup table's column holds, as far as a name depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// uuid
    Uuid,
    /// smallint, integer or bigint
    Integer,
    /// text and its like, which may hold anything
    Text,
}

/// How this fleet's new tenants are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    rule: Rule,
    prefix: String,
    main_database: String,
}

impl Names {
    /// `prefix` is one that the rule [takes](Rule::check_prefix). No tenant is named as `main_database`.
    #[must_use]
    pub fn new(rule: Rule, prefix: &str, main_database: &str) -> Self {
        Names { rule, prefix: prefix.to_owned(), main_database: main_database.to_owned() }
    }

    /// What the names begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name for `key`: never longer than Postgres takes, and of characters that need no quotes.
    ///
    /// # Errors
    /// [`Kind::BadKey`] when the key can have none, with what is wrong and what to do.
    pub fn of(&self, key: &str) -> Result<String> {
        match self.rule {
            Rule::Uuid => self.of_uuid(key),
            Rule::Hash(..) if key.is_empty() => {
                Err(Error::new(Kind::BadKey, "the key is empty").hint("give the user an id"))
            }
            Rule::Hash(algorithm, digits) => Ok(format!("{}{:.digits$}", self.prefix, algorithm.digits_of(key))),
            Rule::Key => self.of_key(key),
        }
    }

    /// Only the hyphenated lower-case form is taken: any other spelling could make two keys one name.
    fn of_uuid(&self, key: &str) -> Result<String> {
        let canonical = Uuid::try_parse(key).ok().map(|uuid| uuid.hyphenated().to_string());
        if canonical.as_deref() != Some(key) {
            return Err(Error::new(Kind::BadKey, format!("key {key:?} is no uuid in the form Postgres prints it"))
                .hint("lower case, with hyphens; tenant.naming = \"hash\" names new tenants after keys of any kind"));
        }
        Ok(format!("{}{}", self.prefix, key.replace('-', "_")))
    }

    /// Capitals are refused: names that differ by case alone are one name to everybody who writes SQL without quotes.
    fn of_key(&self, key: &str) -> Result<String> {
        let name = format!("{}{key}", self.prefix);
        let other = key.chars().find(|c| !is_plain(*c));
        let wrong = if key.is_empty() {
            "it is empty".to_owned()
        } else if let Some(other) = other {
            format!("a name has only a-z, 0-9 and _, and it holds {other:?}")
        } else if name.starts_with(|c: char| c.is_ascii_digit()) {
            "a name begins with a letter or _; tenant.prefix may bring one".to_owned()
        } else if name.len() > MAX_IDENTIFIER_BYTES {
            format!("with the prefix it has {} bytes, and a name at most {MAX_IDENTIFIER_BYTES}", name.len())
        } else if let Some(own) = OWN_PREFIXES.iter().find(|own| name.starts_with(**own)) {
            format!("names that begin with {own:?} are the server's, or tenantd's own")
        } else if OWN.contains(&name.as_str()) || name == self.main_database {
            format!("the name {name:?} is the server's, or tenantd's own")
        } else if RESERVED.split_whitespace().any(|word| word == name) {
            format!("{name:?} is a reserved word of the server")
        } else {
            return Ok(name);
        };
        Err(Error::new(Kind::BadKey, format!("key {key:?} cannot be a name: {wrong}"))
            .hint("give the user another id, or name new tenants by tenant.naming = \"hash\", which takes any key"))
    }

    /// The key that `name` was made of, where the name tells: not of a hash, and of no name that this rule does not make.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(self.prefix.as_str())?;
        let key = match self.rule {
            Rule::Uuid => rest.replace('_', "-"),
            Rule::Key => rest.to_owned(),
            Rule::Hash(..) => return None,
        };
        (self.of(&key).ok()? == name).then_some(key)
    }

    /// Whether a database of this name looks like a tenant's. By its name alone none does where any name may be a key.
    #[must_use]
    pub fn look_like(&self, name: &str) -> bool {
        match self.rule {
            Rule::Hash(_, digits) => name
                .strip_prefix(self.prefix.as_str())
                .is_some_and(|rest| rest.len() == digits && rest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))),
            Rule::Key if self.prefix.is_empty() => false,
            Rule::Uuid | Rule::Key => self.key_of(name).is_some(),
        }
    }

    /// Whether keys of a column of this type can have names at all.
    ///
    /// # Errors
    /// What to set instead.
    pub fn fit(&self, keys: KeyType) -> Result<(), &'static str> {
        match (self.rule, keys) {
            (Rule::Uuid, KeyType::Integer) => Err(
                "tenant.naming = \"uuid\" names tenants after a uuid: \"hash\" takes integers, or signup.id_column names another column",
            ),
            (Rule::Key, KeyType::Uuid) => Err(
                "tenant.naming = \"key\" takes no hyphens, which a uuid has: \"uuid\" is for them, or signup.id_column names another column",
            ),
            (Rule::Key, KeyType::Integer) if self.prefix.is_empty() => {
                Err("with tenant.naming = \"key\" a number needs a tenant.prefix before it: set one, or take \"hash\"")
            }
            _ => Ok(()),
        }
    }

    /// Whether two keys may come to one name.
    #[must_use]
    pub fn may_meet(&self) -> bool {
        matches!(self.rule, Rule::Hash(..))
    }

    /// What to do when another key has the name.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.rule {
            Rule::Hash(..) => {
                "more tenant.hash_digits make names that differ, for new tenants only: set that, then `tenantd retry` this key"
            }
            Rule::Uuid | Rule::Key => {
                "that tenant's database was adopted under this name, so that a database for this key could not have it"
            }
        }
    }
}

/// As `tenantd.name_of` takes it: the rule and the prefix, and for a hash the algorithm and how many digits.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::Uuid => write!(f, "uuid {}", self.prefix),
            Rule::Hash(algorithm, digits) => write!(f, "hash {} {algorithm} {digits}", self.prefix),
            Rule::Key => write!(f, "key {}", self.prefix),
        }
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

    fn uuids(prefix: &str) -> Names {
        Names::new(Rule::Uuid, prefix, "app")
    }

    fn hashes(algorithm: Algorithm, digits: usize) -> Names {
        Names::new(Rule::Hash(algorithm, digits), "tid_", "app")
    }

    fn keys(prefix: &str) -> Names {
        Names::new(Rule::Key, prefix, "app")
    }

    fn rules() -> impl Strategy<Value = Rule> {
        let hash = |algorithm: Algorithm| {
            (FEWEST_DIGITS..=algorithm.most_digits()).prop_map(move |digits| Rule::Hash(algorithm, digits as usize))
        };
        prop_oneof![Just(Rule::Uuid), hash(Algorithm::Md5), hash(Algorithm::Sha256), Just(Rule::Key)]
    }

    proptest! {
        /// No two keys come to one name, since each name gives its key back: for a uuid only one spelling is taken.
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
            match uuids("tenant_").of(&key) {
                Ok(name) => prop_assert_eq!(uuids("tenant_").key_of(&name), Some(key)),
                Err(error) => prop_assert!(error.kind() == Kind::BadKey && key != uuid.to_string()),
            }
        }

        #[test]
        fn a_key_that_is_a_name_comes_back(key in "[a-zA-Z0-9_-]{0,70}|[a-z_][a-z0-9_]{0,62}|.{0,9}", prefix in "|[a-z][a-z0-9_]{0,20}") {
            if Rule::Key.check_prefix(&prefix).is_err() {
                return Ok(());
            }
            match keys(&prefix).of(&key) {
                Ok(name) => {
                    prop_assert_eq!(&name, &format!("{prefix}{key}"));
                    prop_assert_eq!(keys(&prefix).key_of(&name), Some(key));
                }
                Err(error) => prop_assert!(error.kind() == Kind::BadKey && error.advice().is_some()),
            }
        }

        /// Whatever the rule, the prefix that it takes and the key: a name is one that Postgres takes whole and without quotes, and nobody's own.
        #[test]
        fn a_name_is_one_to_postgres(rule in rules(), prefix in "[a-z][a-z0-9_]{0,62}|", key in ".{0,70}|[a-z_][a-z0-9_]{0,62}", number: u128) {
            if rule.check_prefix(&prefix).is_err() {
                return Ok(());
            }
            let names = Names::new(rule, &prefix, "app");
            for name in [key, Uuid::from_u128(number).to_string()].iter().filter_map(|key| names.of(key).ok()) {
                prop_assert!(!name.is_empty() && name.len() <= MAX_IDENTIFIER_BYTES && name.chars().all(is_plain), "{}", name);
                prop_assert!(!name.starts_with(|c: char| c.is_ascii_digit()), "{}", name);
                prop_assert!(!OWN_PREFIXES.iter().any(|own| name.starts_with(own)) && !OWN.contains(&name.as_str()), "{}", name);
                prop_assert!(names.look_like(&name) || rule == Rule::Key && prefix.is_empty(), "{}", name);
            }
        }
    }

    #[test]
    fn a_uuid_becomes_a_name() {
        assert_eq!(uuids("tenant_").of(UUID).unwrap(), "tenant_123e4567_e89b_12d3_a456_426614174000");
    }

    #[test]
    fn other_spellings_of_a_uuid_are_refused() {
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
            assert_eq!(uuids("tenant_").of(key).unwrap_err().kind(), Kind::BadKey, "{key:?}");
        }
    }

    #[test]
    fn a_hash_names_keys_of_every_kind() {
        assert_eq!(hashes(Algorithm::Md5, 10).of("default_tenant").unwrap(), "tid_cf4116b064");
        assert_eq!(hashes(Algorithm::Md5, 32).of("abc").unwrap(), "tid_900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hashes(Algorithm::Sha256, 12).of("abc").unwrap(), "tid_ba7816bf8f01");
        for key in [UUID, "42", "-1", "Größe", "a b", "x\"; --", "\n"] {
            assert!(hashes(Algorithm::Md5, 10).of(key).is_ok(), "{key:?}");
        }
        assert_eq!(hashes(Algorithm::Md5, 10).of("").unwrap_err().kind(), Kind::BadKey);
        assert_eq!(hashes(Algorithm::Md5, 10).key_of("tid_cf4116b064"), None);
        for algorithm in Algorithm::ALL {
            let (all, most) = (algorithm.digits_of("").len(), algorithm.most_digits() as usize);
            assert_eq!(most, all.min(MAX_IDENTIFIER_BYTES - 1), "{algorithm}");
        }
    }

    #[test]
    fn a_key_that_can_be_no_name_is_refused_with_the_reason() {
        for (prefix, key, reason) in [
            ("", "", "it is empty"),
            ("tenant_", "", "it is empty"),
            ("", "Acme", "it holds 'A'"),
            ("", "acme-inc", "it holds '-'"),
            ("", "acme inc", "it holds ' '"),
            ("", "größe", "it holds 'ö'"),
            ("", "a\"; drop database app; --", "it holds '\"'"),
            ("", "a\n", "it holds '\\n'"),
            ("", UUID, "it holds '-'"),
            ("", "42", "begins with a letter"),
            ("tenant_", "-1", "it holds '-'"),
            ("", &"a".repeat(64), "it has 64 bytes"),
            ("tenant_", &"a".repeat(57), "it has 64 bytes"),
            ("", "pg_acme", "begin with \"pg_\""),
            ("p", "g_acme", "begin with \"pg_\""),
            ("", "tenantd_spare_x", "begin with \"tenantd_\""),
            ("tenantd", "_spare_x", "begin with \"tenantd_\""),
            ("", "postgres", "\"postgres\" is the server's"),
            ("", "template0", "\"template0\" is the server's"),
            ("template", "1", "\"template1\" is the server's"),
            ("", "public", "\"public\" is the server's"),
            ("", "information_schema", "\"information_schema\" is the server's"),
            ("", "tenantd", "tenantd's own"),
            ("", "app", "\"app\" is the server's, or tenantd's own"),
            ("", "user", "reserved word"),
            ("", "select", "reserved word"),
            ("", "left", "reserved word"),
            ("us", "er", "\"user\" is a reserved word"),
        ] {
            let error = keys(prefix).of(key).unwrap_err();
            assert!(error.kind() == Kind::BadKey && error.chain().contains(reason), "{key:?}: {}", error.chain());
            assert!(error.advice().is_some(), "{key:?}");
        }
    }

    #[test]
    fn a_key_that_can_be_a_name_is_it() {
        for (prefix, key) in [
            ("", "acme"),
            ("", "_a"),
            ("", "a_1"),
            ("customer_", "42"),
            ("tenant_", "user"),
            ("", "name"),
            ("t", "acme"),
        ] {
            assert_eq!(keys(prefix).of(key).unwrap(), format!("{prefix}{key}"));
        }
        assert_eq!(keys("").of(&"a".repeat(63)).unwrap().len(), MAX_IDENTIFIER_BYTES);
    }

    #[test]
    fn a_name_tells_the_key_only_where_it_was_made_so() {
        let name = uuids("tenant_").of(UUID).unwrap();
        assert_eq!(uuids("tenant_").key_of(&name), Some(UUID.to_owned()));
        for other in ["tenant_123e4567e89b12d3a456426614174000", "123e4567_e89b_12d3_a456_426614174000", "tenant_copy"]
        {
            assert_eq!(uuids("tenant_").key_of(other), None, "{other}");
        }
        assert_eq!(keys("").key_of("acme"), Some("acme".to_owned()));
        assert_eq!(keys("customer_").key_of("acme"), None);
        assert_eq!(
            (keys("").key_of("postgres"), keys("post").key_of("postgres"), keys("").key_of("app")),
            (None, None, None)
        );
    }

    #[test]
    fn what_looks_like_a_tenant() {
        assert!(hashes(Algorithm::Md5, 10).look_like("tid_cf4116b064"));
        for other in ["tid_cf4116b0641", "tid_cf4116b06", "tid_cf4116b06g", "cf4116b064", "tid_CF4116B064"] {
            assert!(!hashes(Algorithm::Md5, 10).look_like(other), "{other}");
        }
        assert!(keys("customer_").look_like("customer_7") && !keys("customer_").look_like("other"));
        assert!(!keys("").look_like("acme"), "any database could be one");
        assert!(uuids("t").look_like(&uuids("t").of(UUID).unwrap()) && !uuids("t").look_like("tenant_copy"));
    }

    #[test]
    fn a_prefix_leaves_room_for_what_follows() {
        for (rule, good) in [
            (Rule::Uuid, "tenant_"),
            (Rule::Uuid, "t"),
            (Rule::Uuid, "a2_"),
            (Rule::Uuid, &"a".repeat(27)),
            (Rule::Hash(Algorithm::Md5, 10), &"a".repeat(53)),
            (Rule::Hash(Algorithm::Sha256, 62), "t"),
            (Rule::Key, ""),
            (Rule::Key, &"a".repeat(62)),
        ] {
            assert_eq!(rule.check_prefix(good), Ok(()), "{good}");
        }
        for bad in ["_a", "2a", "Tenant_", "tenant-", "tenantd_x", "pg_x", "täglich", "a\"b"] {
            for rule in [Rule::Uuid, Rule::Hash(Algorithm::Md5, 10), Rule::Key] {
                assert!(rule.check_prefix(bad).is_err(), "{bad}");
            }
        }
        let too_long = [
            (Rule::Uuid, 28),
            (Rule::Hash(Algorithm::Md5, 10), 54),
            (Rule::Hash(Algorithm::Sha256, 62), 2),
            (Rule::Key, 63),
        ];
        for (rule, length) in too_long {
            assert!(rule.check_prefix(&"a".repeat(length)).unwrap_err().contains("too long"), "{rule:?}");
        }
        assert!(Rule::Uuid.check_prefix("").is_err() && Rule::Hash(Algorithm::Md5, 10).check_prefix("").is_err());
        for rule in [Rule::Uuid, Rule::Hash(Algorithm::Md5, 10), Rule::Key] {
            assert_eq!(rule.check_prefix(rule.built_in_prefix()), Ok(()), "{rule:?}");
        }
    }

    #[test]
    fn some_types_of_keys_can_have_no_names() {
        let md5 = hashes(Algorithm::Md5, 10);
        for (names, fits) in [
            (uuids("tenant_"), [true, false, true]),
            (md5, [true, true, true]),
            (keys(""), [false, false, true]),
            (keys("customer_"), [false, true, true]),
        ] {
            let found = [KeyType::Uuid, KeyType::Integer, KeyType::Text].map(|keys| names.fit(keys).is_ok());
            assert_eq!(found, fits, "{names}");
        }
    }

    #[test]
    fn the_registry_is_told_in_words() {
        assert_eq!(uuids("tenant_").to_string(), "uuid tenant_");
        assert_eq!(hashes(Algorithm::Sha256, 12).to_string(), "hash tid_ sha256 12");
        assert_eq!(keys("").to_string(), "key ");
    }
}
