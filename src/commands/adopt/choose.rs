//! Which databases are asked for, and whose each is to be.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Adopt;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::registry::Registry;
use crate::registry::check::Orphan;
use crate::registry::lookup::Filter;
use crate::tenant::database_name;

/// A database that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Whose it is to be; `None`: that cannot be told.
    pub(super) key: Option<String>,
    /// Its name.
    pub(super) name: String,
}

pub(super) async fn candidates(registry: &Registry, config: &Config, arguments: &Adopt) -> Result<Vec<Candidate>> {
    if let Some(word) = &arguments.key {
        return one(registry, word, arguments.database.as_deref()).await.map(|candidate| vec![candidate]);
    }
    if let (Some(table), Some(name), Some(key)) = (&arguments.from_table, &arguments.name_column, &arguments.key_column)
    {
        registry.take_all_in().await?;
        let rows = registry.tracked(table, name, key).await?;
        return Ok(rows.into_iter().map(|(key, name)| Candidate { key: Some(key), name }).collect());
    }
    orphans(registry, &config.tenant.prefix).await
}

/// With a name the key may be a new one; without, it is a tenant's whose database stands under its name.
async fn one(registry: &Registry, word: &str, name: Option<&str>) -> Result<Candidate> {
    let words = [word.to_owned()];
    let known = match registry.resolve(&words).await {
        Ok(keys) => keys.into_iter().next(),
        Err(error) if error.kind() == Kind::Usage && name.is_some() => None,
        Err(error) => return Err(error),
    };
    // The beginning of another's key is not that key, where a new one may be meant.
    let key = known.filter(|key| name.is_none() || key == word).unwrap_or_else(|| word.to_owned());
    if let Some(name) = name {
        return Ok(Candidate { key: Some(key), name: name.to_owned() });
    }
    let filter = Filter { keys: vec![key.clone()], ..Filter::default() };
    let row = registry.outside(&filter, "", 1, &[]).await?.pop();
    let name = row.and_then(|row| row.name).ok_or_else(|| {
        Error::usage(format!("tenant {key} has no database of its name yet"))
            .hint("name the one that is to be its own with --database")
    })?;
    Ok(Candidate { key: Some(key), name })
}

/// Whose an orphan is says its name, or its marker and a row.
async fn orphans(registry: &Registry, prefix: &str) -> Result<Vec<Candidate>> {
    let orphans = registry.orphans(prefix).await?;
    let hashes: Vec<String> = orphans.iter().filter_map(hash).map(str::to_owned).collect();
    let marked: BTreeMap<String, String> = registry.keys_of_hashes(&hashes).await?.into_iter().collect();
    let candidate = |orphan: &Orphan| {
        let by_marker = hash(orphan).and_then(|hash| marked.get(hash)).cloned();
        Candidate { key: by_marker.or_else(|| key_of(prefix, &orphan.name)), name: orphan.name.clone() }
    };
    Ok(orphans.iter().map(candidate).collect())
}

/// The hash of the key, where the database bears our marker.
fn hash(orphan: &Orphan) -> Option<&str> {
    orphan.comment.as_deref().filter(|_| orphan.ours)?.rsplit(' ').next()
}

/// The key that a tenant's database is named after.
fn key_of(prefix: &str, name: &str) -> Option<String> {
    let key = Uuid::try_parse(&name.strip_prefix(prefix)?.replace('_', "-")).ok()?.hyphenated().to_string();
    (database_name(prefix, &key).ok()? == name).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_key_that_it_was_made_of() {
        let key = "123e4567-e89b-12d3-a456-426614174000";
        let name = database_name("tenant_", key).unwrap();
        assert_eq!(key_of("tenant_", &name), Some(key.to_owned()));
        for other in ["tenant_123e4567e89b12d3a456426614174000", "123e4567_e89b_12d3_a456_426614174000", "tenant_copy"]
        {
            assert_eq!(key_of("tenant_", other), None, "{other}");
        }
    }
}
