//! Reads a connection string as libpq does: a URL, or `keyword = value` pairs.
//!
//! No message of this file repeats a piece of the string that could belong to a password: one that holds `/` or `@` unencoded
//! moves the borders of everything behind it.

use percent_encoding::percent_decode_str;

use super::known::is_known;
use crate::error::{Error, Result};

/// Names and values in the order they were written; of two values for one name the later one counts.
pub(super) type Pairs = Vec<(String, String)>;

const SCHEMES: [&str; 2] = ["postgresql", "postgres"];
const SHAPE: &str = "write it as postgresql://user@host:5432/database?sslmode=verify-full";
const ENCODE: &str =
    "in the user and the password, write each of / ? # @ : % in its percent-encoded form, %40 for @ say";

/// The pairs of `text`, decoded but not yet understood.
///
/// # Errors
/// Usage, with the place and without any value.
pub(super) fn read(text: &str) -> Result<Pairs> {
    let text = text.trim();
    if let Some((scheme, rest)) = text.split_once("://")
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.:_".contains(c))
    {
        return if SCHEMES.contains(&scheme) { url(rest) } else { Err(unknown_scheme(scheme)) };
    }
    if SCHEMES.iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| rest.starts_with(':'))) {
        return Err(Error::usage("the connection URL lacks // after its scheme").hint(SHAPE));
    }
    keywords(text)
}

fn unknown_scheme(scheme: &str) -> Error {
    let error = Error::usage(format!("the connection URL begins with {scheme:?}, not with \"postgresql\""));
    if scheme.contains("postgres") && scheme.contains([':', '+']) {
        return error.hint("leave out what a driver added to the scheme: postgresql://… and nothing else");
    }
    error.hint(SHAPE)
}

fn url(rest: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let (login, rest) = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => (Some(&rest[..at]), &rest[at + 1..]),
        _ => (None, rest),
    };
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        push(&mut pairs, "user", decode(user, "the user")?);
        push(&mut pairs, "password", decode(password, "the password")?);
    }
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    if place.contains('@') {
        return Err(Error::usage("the connection URL has a second @, or one behind its first /").hint(ENCODE));
    }
    hosts_and_ports(hosts, &mut pairs)?;
    push(&mut pairs, "dbname", decode(database, "the database")?);
    if let Some(query) = query {
        let before = pairs.len();
        let read = parameters(query, &mut pairs);
        let parameters = &pairs[before..];
        // Without a login in front, or beside what is no parameter, an @ back here says that this is no query at all, but the rest of a password.
        let is_query = read.is_ok() && parameters.iter().all(|(name, _)| is_known(name));
        if query.contains('@') && (login.is_none() || !is_query) {
            return Err(Error::usage("the connection URL has an @ behind its first ?").hint(ENCODE));
        }
        if !is_query && parameters.iter().any(|(name, _)| name == "password") {
            return Err(
                Error::usage("the connection URL has a password, and a parameter that is not known").hint(ENCODE)
            );
        }
        read?;
    }
    Ok(pairs)
}

/// `h1:p1,h2,[::1]:p3` as the lists `host` and `port`.
fn hosts_and_ports(text: &str, pairs: &mut Pairs) -> Result<()> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for one in text.split(',') {
        let (host, port) = if let Some(bracketed) = one.strip_prefix('[') {
            let (host, behind) = bracketed
                .split_once(']')
                .filter(|(host, behind)| !host.is_empty() && (behind.is_empty() || behind.starts_with(':')))
                .ok_or_else(|| Error::usage("the connection URL has a broken IPv6 address").hint("write [::1]:5432"))?;
            (host, behind.strip_prefix(':').unwrap_or(""))
        } else {
            one.split_once(':').unwrap_or((one, ""))
        };
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return Err(Error::usage("the port in the connection URL is no number").hint(format!("{SHAPE}; {ENCODE}")));
        }
        hosts.push(decode(host, "the host")?);
        ports.push(port);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        push(pairs, "host", hosts.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        push(pairs, "port", ports.join(","));
    }
    Ok(())
}

fn parameters(query: &str, pairs: &mut Pairs) -> Result<()> {
    for (index, one) in query.split('&').enumerate().filter(|(_, one)| !one.is_empty()) {
        let place = format!("parameter {} of the connection URL", index + 1);
        let (name, value) = one
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("{place} has no value")).hint("write ?name=value&name=value"))?;
        let (name, value) = (decode(name, &place)?, decode(value, &place)?);
        // libpq takes this one from JDBC.
        if name == "ssl" && value == "true" {
            push(pairs, "sslmode", "require".to_owned());
        } else {
            pairs.push((name, value));
        }
    }
    Ok(())
}

fn push(pairs: &mut Pairs, name: &str, value: String) {
    if !value.is_empty() {
        pairs.push((name.to_owned(), value));
    }
}

fn decode(part: &str, what: &str) -> Result<String> {
    let refused = |why: &str| Error::usage(format!("{what} {why}")).hint("a percent sign itself is written %25");
    for (at, _) in part.match_indices('%') {
        match part.as_bytes().get(at + 1..at + 3) {
            Some(b"00") => return Err(refused("holds %00, which Postgres cannot take")),
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => {}
            _ => return Err(refused("has a % without two hexadecimal digits behind it")),
        }
    }
    percent_decode_str(part).decode_utf8().map(Into::into).map_err(|_| refused("is not UTF-8 once decoded"))
}

fn keywords(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let place = || format!("at character {} of the connection string", text.len() - rest.len() + 1);
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let behind = behind.trim_start().strip_prefix('=').filter(|_| !name.is_empty()).ok_or_else(|| {
            Error::usage(format!("no keyword = value {}", place()))
                .hint(format!("{SHAPE}, or host=… dbname=…, with a value that holds spaces in single quotes"))
        })?;
        let (value, behind) = keyword_value(behind.trim_start())
            .ok_or_else(|| Error::usage(format!("a quote is not closed in the value {}", place())))?;
        // A password with spaces that nobody put in quotes: what looks like a name may be its rest.
        if !is_known(name) && pairs.iter().any(|(before, _)| before == "password") {
            let unknown = format!("no keyword that is known, behind the password, {}", place());
            return Err(Error::usage(unknown).hint("a value that holds spaces stands in single quotes"));
        }
        pairs.push((name.to_owned(), value));
        rest = behind.trim_start();
    }
    Ok(pairs)
}

/// The value at the start of `text`, quoted or bare, and what follows it; `None` when its quote is not closed.
fn keyword_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Some((value, &text[at..])),
            other => value.push(other),
        }
    }
    (!quoted).then_some((value, ""))
}
