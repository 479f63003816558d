//! What people made in a database: every object with its definition, the fingerprint of all of it, and what differs between two databases.
//!
//! Read are schemas, extensions, tables, columns, constraints, indexes, statistics, sequences, views, rules, triggers, policies, functions,
//! types, grants and default privileges. What an extension made stands for itself by its version; operators, casts and text search are not
//! read, nor are comments, nor in which order columns stand. tenantd's own history is left out.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::{Doing, quote};
use crate::error::{Error, Kind, Result};
use crate::tenant::hex;

const READ: &str = include_str!("sql/catalogue.sql");

/// What a tenant's own schema is called in the place of its name.
const OWN: &str = "its schema";

/// The objects of a database, or of one of its schemas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue(BTreeMap<Object, Defined>);

/// What an object is called. Names are quoted and written in full, as in SQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    kind: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Defined {
    /// The object that it goes with: a column's table, a table's schema.
    part_of: Option<String>,
    definition: String,
}

/// An object in which two catalogues differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `table`, `column`, `index` and so on.
    pub kind: String,
    /// Its name, quoted and in full: `public.users.email`.
    pub name: String,
    /// How.
    pub change: Change,
}

/// How an object differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only ours has it.
    Missing,
    /// Only theirs has it.
    Extra,
    /// Both have it, with these definitions.
    Changed {
        /// Ours.
        ours: String,
        /// Theirs.
        theirs: String,
    },
}

/// Reads what people made in the database that `client` is connected to, or in one `schema` of it. One query; changes nothing. The client
/// stands outside a transaction.
///
/// # Errors
/// By SQLSTATE.
pub async fn read(client: &Client, schema: Option<&str>) -> Result<Catalogue> {
    let schema = schema.map_or_else(|| "null::text".to_owned(), quote::literal);
    // In the same message, and for it alone: what a tenant's owner made is not called in the place of the catalogue's own, and names are
    // written in full. A young database has no statistics, so that the server thinks the query worth compiling: that takes ten times as long
    // as the query does.
    let sql = format!(
        "set local search_path = pg_catalog, pg_temp; set local jit = off; {}",
        READ.replace("{schema}", &schema)
    );
    let answers = client.simple_query(&sql).await.doing(|| "read the catalogue".to_owned())?;
    let rows = answers.iter().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(object).collect::<Result<_>>().map(Catalogue)
}

/// Reads what people made in the tenant's own `schema` where it is one of many in the database: named as if nothing stood around it, so that what two
/// tenants have can be compared.
///
/// # Errors
/// By SQLSTATE.
pub async fn read_own(client: &Client, schema: &str) -> Result<Catalogue> {
    let sql = format!("select pg_catalog.quote_ident({})", quote::literal(schema));
    let answers = client.simple_query(&sql).await.doing(|| "ask how a schema is named".to_owned())?;
    let shown = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let shown = shown.ok_or_else(|| Error::new(Kind::Other, "the server did not say how a schema is named"))?;
    let prefix = format!("{shown}.");
    let (within, on) = (format!(" in {shown}"), format!("on schema {shown} to "));
    let own = |text: &str| {
        let text = text.replace(&prefix, "").replace(&on, &format!("on {OWN} to "));
        let within = text.strip_suffix(&within).map(|before| format!("{before} in {OWN}"));
        if text == shown { OWN.to_owned() } else { within.unwrap_or(text) }
    };
    let read = read(client, Some(schema)).await?.0.into_iter().map(|(object, defined)| {
        let part_of = defined.part_of.as_deref().map(own);
        (Object { name: own(&object.name), ..object }, Defined { part_of, definition: own(&defined.definition) })
    });
    // Whose it is and who may enter is seen from outside, as of a database.
    let inside = read.filter(|(object, _)| !object.name.starts_with(&format!("on {OWN} to ")));
    let inside = inside.map(|(object, defined)| {
        let definition = if object.name == OWN { String::new() } else { defined.definition };
        (object, Defined { definition, ..defined })
    });
    Ok(Catalogue(inside.collect()))
}

fn object(row: &SimpleQueryRow) -> Result<(Object, Defined)> {
    let text = |column: usize| {
        let text = row.get(column).map(str::to_owned);
        text.ok_or_else(|| Error::new(Kind::Other, format!("the catalogue gave no value for column {column}")))
    };
    let part_of = row.get(2).map(str::to_owned);
    Ok((Object { kind: text(0)?, name: text(1)? }, Defined { part_of, definition: text(3)? }))
}

impl Catalogue {
    /// SHA-256 in lower-case hex over kind, name and definition of every object: the same for two databases in which people made the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (Object { kind, name }, Defined { definition, .. }) in &self.0 {
            // No text of the server holds a NUL, so no two catalogues give one text.
            hash.update(format!("{kind}\0{name}\0{definition}\0"));
        }
        hex(&hash.finalize())
    }

    /// What `other`, theirs, has otherwise than this one, ours, by kind and name. Of what is missing or extra as a whole its parts are not
    /// named again: a table stands for its columns, a schema for its tables.
    #[must_use]
    pub fn difference(&self, other: &Catalogue) -> Vec<Difference> {
        let (own_names, other_names) = (self.names(), other.names());
        let mut differences = Vec::new();
        for (object, ours) in &self.0 {
            let change = match other.0.get(object) {
                Some(theirs) if theirs.definition == ours.definition => continue,
                Some(theirs) => Change::Changed { ours: ours.definition.clone(), theirs: theirs.definition.clone() },
                None if ours.goes_with(&other_names) => Change::Missing,
                None => continue,
            };
            differences.push(object.differs(change));
        }
        let extra =
            other.0.iter().filter(|(object, theirs)| !self.0.contains_key(object) && theirs.goes_with(&own_names));
        differences.extend(extra.map(|(object, _)| object.differs(Change::Extra)));
        differences.sort_by(|one, other| (&one.kind, &one.name).cmp(&(&other.kind, &other.name)));
        differences
    }

    /// The names that something may be part of; an extension may be called like a schema.
    fn names(&self) -> BTreeSet<&str> {
        self.0.keys().filter(|object| object.kind != "extension").map(|object| object.name.as_str()).collect()
    }
}

impl Defined {
    /// Whether what it is part of is among the `names` of the catalogue that has it not.
    fn goes_with(&self, names: &BTreeSet<&str>) -> bool {
        self.part_of.as_ref().is_none_or(|whole| names.contains(whole.as_str()))
    }
}

impl Object {
    fn differs(&self, change: Change) -> Difference {
        Difference { kind: self.kind.clone(), name: self.name.clone(), change }
    }
}
