//! Names of tables, columns and roles as people write them in settings.

use crate::tenant::MAX_IDENTIFIER_BYTES;

/// A name as the catalogue has it, capitals included. Quotes around it are taken off as SQL does.
pub(super) fn name(written: &str) -> Result<String, String> {
    let (name, rest) = name_and_rest(written, &[])?;
    if rest.is_empty() { Ok(name) } else { Err(format!("{written:?} is not one name")) }
}

/// `table` or `schema.table`; a name that holds a dot needs quotes.
pub(super) fn table(written: &str) -> Result<(String, String), String> {
    let (first, rest) = name_and_rest(written, &['.'])?;
    match rest.strip_prefix('.') {
        None if rest.is_empty() => Ok(("public".into(), first)),
        Some(rest) => match name_and_rest(rest, &['.'])? {
            (second, "") => Ok((first, second)),
            _ => Err(format!("{written:?} has more parts than schema.table; a name that holds a dot needs quotes")),
        },
        None => Err(format!("{written:?} is neither \"table\" nor \"schema.table\"")),
    }
}

/// The first name of `text`, and what follows it.
fn name_and_rest<'a>(text: &'a str, ends: &[char]) -> Result<(String, &'a str), String> {
    let (name, rest) = if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = quoted;
        loop {
            let Some((before, after)) = rest.split_once('"') else {
                return Err(format!("{text:?} has a quote that is not closed"));
            };
            name.push_str(before);
            match after.strip_prefix('"') {
                Some(after) => {
                    name.push('"');
                    rest = after;
                }
                None => break (name, after),
            }
        }
    } else {
        let end = text.find(ends).unwrap_or(text.len());
        (text[..end].to_owned(), &text[end..])
    };
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(format!("{text:?} is no name: it is empty or holds control characters"));
    }
    if name.len() > MAX_IDENTIFIER_BYTES {
        return Err(format!("{name:?} is too long: Postgres cuts names off at {MAX_IDENTIFIER_BYTES} bytes"));
    }
    Ok((name, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quoted(name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    proptest! {
        #[test]
        fn a_quoted_name_comes_back_equal_or_is_refused(one in ".{1,40}|[\"'.;$\\\\ -]{1,70}", other in "[^\0]{1,40}") {
            let fits = |name: &str| name.len() <= MAX_IDENTIFIER_BYTES && !name.chars().any(char::is_control);
            prop_assert_eq!(name(&quoted(&one)).ok(), fits(&one).then(|| one.clone()));
            let both = table(&format!("{}.{}", quoted(&one), quoted(&other))).ok();
            prop_assert_eq!(both, (fits(&one) && fits(&other)).then(|| (one.clone(), other.clone())));
        }

        #[test]
        fn whatever_is_taken_is_no_longer_than_postgres_takes(written in ".{0,80}|[\"a.]{0,12}") {
            let names = [name(&written).ok(), table(&written).ok().map(|(schema, _)| schema), table(&written).ok().map(|(_, name)| name)];
            for name in names.into_iter().flatten() {
                prop_assert!(!name.is_empty() && name.len() <= MAX_IDENTIFIER_BYTES, "{:?}", name);
            }
        }
    }

    #[test]
    fn tables_are_read_with_and_without_schema_and_quotes() {
        for (written, schema, name) in [
            ("users", "public", "users"),
            ("app.accounts", "app", "accounts"),
            ("public.User", "public", "User"),
            ("\"My Schema\".\"Users\"", "My Schema", "Users"),
            ("\"a.b\"", "public", "a.b"),
            ("app.\"say \"\"hi\"\"\"", "app", "say \"hi\""),
        ] {
            assert_eq!(table(written), Ok((schema.to_owned(), name.to_owned())), "{written}");
        }
        for written in ["", ".", "a.", ".b", "a.b.c", "\"a", "\"a\"b", "\"\"", "a.\nb", &"x".repeat(64)] {
            assert!(table(written).is_err(), "{written}");
        }
    }

    #[test]
    fn names_are_exact() {
        assert_eq!(name("my-app"), Ok("my-app".into()));
        assert_eq!(name("\"userId\""), Ok("userId".into()));
        assert_eq!(name("a.b"), Ok("a.b".into()));
        assert!(name("\"a\"b").is_err());
        assert!(name("").is_err());
    }
}
