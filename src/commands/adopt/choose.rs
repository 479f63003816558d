//! Which databases are asked for, and whose each is to be.

use std::collections::BTreeMap;

use super::Adopt;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::registry::Registry;
use crate::registry::check::Orphan;
use crate::registry::lookup::Filter;
use crate::registry::naming::Namesake;

/// A database that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Whose it is to be; `None`: that cannot be told.
    pub(super) key: Option<String>,
    /// Its name.
    pub(super) name: String,
}

pub(super) async fn candidates(registry: &Registry, config: &Config, arguments: &Adopt) -> Result<Vec<Candidate>> {
    registry.see_all(false).await?;
    if let Some(word) = &arguments.key {
        return one(registry, word, arguments.database.as_deref()).await.map(|candidate| vec![candidate]);
    }
    if let (Some(table), Some(name), Some(key)) = (&arguments.from_table, &arguments.name_column, &arguments.key_column)
    {
        registry.take_all_in().await?;
        let rows = registry.tracked(table, name, key).await?;
        return Ok(rows.into_iter().map(|(key, name)| Candidate { key: Some(key), name }).collect());
    }
    orphans(registry, config).await
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
        Error::usage(format!("tenant {key} has no {} of its name yet", registry.isolation))
            .hint("name the one that is to be its own with --database")
    })?;
    Ok(Candidate { key: Some(key), name })
}

/// Whose an orphan is says its marker and a row, or its name. Where neither does, it is the one user's or tenant's that it would be made for.
async fn orphans(registry: &Registry, config: &Config) -> Result<Vec<Candidate>> {
    let names = &config.tenant.names;
    let orphans = registry.orphans(names).await?;
    let hashes: Vec<String> = orphans.iter().filter_map(hash).map(str::to_owned).collect();
    let marked: BTreeMap<String, String> = registry.keys_of_hashes(&hashes).await?.into_iter().collect();
    let key = |orphan: &Orphan| {
        let by_marker = hash(orphan).and_then(|hash| marked.get(hash)).cloned();
        by_marker.or_else(|| names.key_of(&orphan.name))
    };
    let (told, mut untold): (Vec<_>, Vec<_>) =
        orphans.into_iter().map(|orphan| (key(&orphan), orphan)).partition(|(key, _)| key.is_some());
    if !untold.is_empty() {
        let namesakes = namesakes(registry, config, &untold).await?;
        for (key, orphan) in &mut untold {
            *key = the_one(&namesakes, orphan);
        }
    }
    let mut candidates: Vec<Candidate> =
        told.into_iter().chain(untold).map(|(key, orphan)| Candidate { key, name: orphan.name }).collect();
    candidates.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(candidates)
}

async fn namesakes(registry: &Registry, config: &Config, untold: &[(Option<String>, Orphan)]) -> Result<Vec<Namesake>> {
    let names: Vec<String> = untold.iter().map(|(_, orphan)| orphan.name.clone()).collect();
    let hashes: Vec<String> = untold.iter().filter_map(|(_, orphan)| hash(orphan)).map(str::to_owned).collect();
    registry.namesakes(&config.signup, &config.tenant.names, &names, &hashes).await
}

/// The key of the only one that the orphan could belong to: by its marker where it bears ours, else by its name.
fn the_one(namesakes: &[Namesake], orphan: &Orphan) -> Option<String> {
    let mut fitting = namesakes.iter().filter(|namesake| match hash(orphan) {
        Some(hash) => namesake.hash == hash,
        None => namesake.name.as_ref() == Some(&orphan.name),
    });
    let one = fitting.next()?;
    fitting.next().is_none().then(|| one.key.clone())
}

/// The hash of the key, where the database bears our marker.
fn hash(orphan: &Orphan) -> Option<&str> {
    orphan.comment.as_deref().filter(|_| orphan.ours)?.rsplit(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_belongs_to_the_only_one_that_it_could() {
        let namesake = |key: &str, name: &str, hash: &str| Namesake {
            key: key.into(),
            name: Some(name.into()),
            hash: hash.into(),
        };
        let namesakes = [namesake("a", "x", "1"), namesake("b", "x", "2"), namesake("c", "y", "3")];
        let orphan = |name: &str, comment: Option<&str>| Orphan {
            name: name.into(),
            oid: 1,
            ours: comment.is_some(),
            comment: comment.map(str::to_owned),
        };
        assert_eq!(the_one(&namesakes, &orphan("y", None)), Some("c".to_owned()));
        assert_eq!(the_one(&namesakes, &orphan("x", None)), None, "two keys come to this name");
        assert_eq!(the_one(&namesakes, &orphan("x", Some("tenantd id 2"))), Some("b".to_owned()));
        assert_eq!(the_one(&namesakes, &orphan("y", Some("tenantd id 9"))), None, "the marker knows better");
    }
}
