//! Finding tenants by what a person types: a key, the name of a database, the beginning of either, or a filter over all.

use tokio_postgres::types::{ToSql, Type};

use super::{Registry, field};
use crate::error::{Error, Result};
use crate::tenant::{State, Work};

/// So many tenants are looked through for the nearest ones to a word that none has.
const LOOKED_THROUGH: i64 = 20_000;

/// So many keys are read at a time.
const PAGE: i64 = 500;

/// A beginning of a key or name must be so long to stand for it.
const SHORTEST: usize = 4;

/// Which tenants a command is about; the default is all of them. Deleted ones are never among them unless their state is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these keys; empty: any.
    pub keys: Vec<String>,
    /// Only in one of these states; empty: any but deleted.
    pub states: Vec<State>,
    /// Only with one of these kinds of work; empty: any.
    pub works: Vec<Work>,
    /// Only at this version.
    pub version: Option<i64>,
    /// Only those whose key or name fits a pattern with `*` and `?`.
    pub pattern: Option<String>,
    /// Only those that have another migration set than this.
    pub not_at: Option<String>,
}

impl Filter {
    /// The conditions in SQL on `tenantd.tenant t`, with the parameters `$1` to `$6` of [`Values::parameters`].
    pub(super) const SQL: &str = "
        (cardinality($1::text[]) = 0 or t.key = any ($1))
        and case when cardinality($2::text[]) = 0 then t.state <> 'deleted' else t.state = any ($2) end
        and (cardinality($3::text[]) = 0 or t.work = any ($3))
        and ($4::int8 is null or t.version = $4)
        and ($5::text is null or t.key like $5 or t.name like $5)
        and ($6::text is null or t.migration_set is distinct from $6)";

    /// The same conditions with parameters from `$first` on.
    pub(super) fn sql_from(first: usize) -> String {
        let mut pieces = Self::SQL.split('$');
        let begin = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(begin, |sql, piece| {
            let (digit, rest) = piece.split_at(1);
            let number: usize = digit.parse().expect("each parameter's number has one digit");
            format!("{sql}${}{rest}", first + number - 1)
        })
    }

    /// Its values as the server takes them.
    pub(super) fn values(&self) -> Values<'_> {
        Values {
            filter: self,
            states: self.states.iter().map(|state| state.word()).collect(),
            works: self.works.iter().map(|work| work.word()).collect(),
            like: self.pattern.as_deref().map(like),
        }
    }
}

/// A filter's values as the server takes them.
pub(super) struct Values<'a> {
    filter: &'a Filter,
    states: Vec<&'static str>,
    works: Vec<&'static str>,
    like: Option<String>,
}

impl Values<'_> {
    /// The parameters `$1` to `$6` of [`Filter::SQL`].
    pub(super) fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        vec![
            (&self.filter.keys, Type::TEXT_ARRAY),
            (&self.states, Type::TEXT_ARRAY),
            (&self.works, Type::TEXT_ARRAY),
            (&self.filter.version, Type::INT8),
            (&self.like, Type::TEXT),
            (&self.filter.not_at, Type::TEXT),
        ]
    }
}

/// A pattern with `*` and `?` as LIKE takes it.
fn like(pattern: &str) -> String {
    pattern.chars().fold(String::new(), |mut like, letter| {
        match letter {
            '*' => like.push('%'),
            '?' => like.push('_'),
            _ => like.push_str(&literally(letter)),
        }
        like
    })
}

/// A letter that stands for itself, as LIKE takes it.
fn literally(letter: char) -> String {
    if matches!(letter, '%' | '_' | '\\') { format!("\\{letter}") } else { letter.to_string() }
}

/// Whatever begins with `word`, as LIKE takes it.
fn beginning(word: &str) -> String {
    word.chars().map(literally).collect::<String>() + "%"
}

/// Every tenant, as `t`. A deleted one that signed up again is what it is about to be.
pub(super) const TENANTS: &str = "(
    select key, name, state::text, work::text, attempt, failures, due_at, leased_until, leased_by, error_kind, error_text, error_sqlstate,
           error_step, version, migrated_at, migration_set, database_oid, verified_at, cluster, created_at, ready_at
    from tenantd.tenant o where state <> 'deleted' or not exists (select from tenantd.signup s where s.key = o.key)
    union all
    select key, null, 'requested', 'due', 0, 0, min(signed_up_at), null, null, null, null, null,
           null, null, null, null, null, null, 'main', min(signed_up_at), null
    from tenantd.signup s where not exists (select from tenantd.tenant o where o.key = s.key and o.state <> 'deleted') group by key
) t";

impl Registry {
    /// The keys of the tenants that `words` mean, in their order: each a key, a database's name, or the beginning of exactly one of them.
    /// Signups are taken in first, so that one of a moment ago is found.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) for a word that means none, with the nearest ones, or several. The main database cannot be
    /// reached.
    pub async fn resolve(&self, words: &[String]) -> Result<Vec<String>> {
        self.take_all_in().await?;
        let mut keys = Vec::with_capacity(words.len());
        for word in words {
            let key = self.find(word).await?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// The key of the one tenant that `word` means, as for [`Registry::resolve`], without taking signups in: nothing is changed, and a signup
    /// that is still to be taken in is found all the same.
    ///
    /// # Errors
    /// As for [`Registry::resolve`].
    pub async fn find(&self, word: &str) -> Result<String> {
        match self.find_any(word).await? {
            Some(key) => Ok(key),
            None => Err(self.nobody(word).await?),
        }
    }

    /// The same; `None` where `word` means nobody, yet.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) for a word that means several. The main database cannot be reached.
    pub async fn find_any(&self, word: &str) -> Result<Option<String>> {
        let begins = if word.chars().count() < SHORTEST { None } else { Some(beginning(word)) };
        let sql = format!(
            "select t.key, case when t.key = $1 then 2 when t.name = $1 then 1 else 0 end as whole from {TENANTS}
             where t.key = $1 or t.name = $1 or t.key like $2 or t.name like $2 order by 2 desc, 1 limit 4"
        );
        let rows = self
            .query(&sql, &[(&word, Type::TEXT), (&begins, Type::TEXT)], || format!("look for the tenant {word:?}"))
            .await?;
        let found: Vec<(String, i32)> =
            rows.iter().map(|row| Ok((field(row, "key")?, field(row, "whole")?))).collect::<Result<_>>()?;
        match found.as_slice() {
            // One tenant's key may be another's name: a whole key always means its tenant, which could not be named otherwise.
            [(key, 2), ..] | [(key, 1), (_, 0), ..] | [(key, _)] => Ok(Some(key.clone())),
            [] => Ok(None),
            several => {
                let keys: Vec<&str> = several.iter().take(3).map(|(key, _)| key.as_str()).collect();
                let more = if several.len() > keys.len() { " and more" } else { "" };
                Err(Error::usage(format!("{word:?} means several tenants: {}{more}", keys.join(", ")))
                    .hint("write the whole key"))
            }
        }
    }

    /// That no tenant is called so, with those that are called nearly so.
    async fn nobody(&self, word: &str) -> Result<Error> {
        let rows = self
            .query(
                &format!("select key, name from {TENANTS} where state <> 'deleted' limit $1"),
                &[(&LOOKED_THROUGH, Type::INT8)],
                || "look for tenants of nearly that name".to_owned(),
            )
            .await?;
        let mut near = Vec::new();
        for row in &rows {
            let (key, name): (String, Option<String>) = (field(row, "key")?, field(row, "name")?);
            let of_name = name.as_deref().map_or(0.0, |name| strsim::jaro_winkler(word, name));
            let likeness = strsim::jaro_winkler(word, &key).max(of_name);
            near.push((likeness, key));
        }
        near.sort_by(|(one, a), (other, b)| other.total_cmp(one).then_with(|| a.cmp(b)));
        let near: Vec<String> = near.into_iter().filter(|(like, _)| *like > 0.7).take(3).map(|(_, key)| key).collect();
        let error = Error::usage(format!("there is no tenant {word:?}"));
        Ok(match near.as_slice() {
            [] if word.chars().count() < SHORTEST => error.hint(format!(
                "a beginning means a tenant from {SHORTEST} letters on; `tenantd list` shows all of them"
            )),
            [] => error.hint("`tenantd list` shows all of them"),
            near => error.hint(format!("the nearest: {}", near.join(", "))),
        })
    }

    /// The keys of all tenants that fit `filter`, in their order, read page by page.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn all_keys(&self, filter: &Filter) -> Result<Vec<String>> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let page = self.keys(filter, keys.last().map_or("", String::as_str), PAGE).await?;
            if page.is_empty() {
                return Ok(keys);
            }
            keys.extend(page);
        }
    }

    /// The keys of the tenants that fit `filter` and come after `after`, in their order, not more than `most`.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn keys(&self, filter: &Filter, after: &str, most: i64) -> Result<Vec<String>> {
        let sql =
            format!("select t.key from tenantd.tenant t where {} and t.key > $7 order by t.key limit $8", Filter::SQL);
        let values = filter.values();
        let mut parameters = values.parameters();
        parameters.extend([(&after as &(dyn ToSql + Sync), Type::TEXT), (&most, Type::INT8)]);
        let rows = self.query(&sql, &parameters, || "look for tenants".to_owned()).await?;
        rows.iter().map(|row| field(row, "key")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_itself_but_for_its_two_signs() {
        assert_eq!(like("tenant_*"), "tenant\\_%");
        assert_eq!(like("a?c%\\"), "a_c\\%\\\\");
        assert_eq!(beginning("a*?_"), "a*?\\_%");
    }
    #[test]
    fn conditions_can_stand_behind_other_parameters() {
        assert_eq!(Filter::sql_from(1), Filter::SQL);
        let moved = Filter::sql_from(15);
        assert!((15..=20).all(|number| moved.contains(&format!("${number}"))), "{moved}");
        assert_eq!(moved.matches('$').count(), Filter::SQL.matches('$').count());
    }
}
