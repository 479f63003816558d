//! Reading Rust source well enough for the rules: what is code, what it imports, how long a function is.

use std::fs;
use std::path::{Path, PathBuf};

/// One file of the tree.
pub(super) struct Source {
    /// Path from the top of the repository.
    pub(super) path: String,
    /// Its text without comments; the insides of strings are underscores. Lines are kept.
    pub(super) code: String,
    /// How many lines of `code` come before the module of unit tests.
    pub(super) lines: usize,
}

/// A function and its length in lines that are neither empty nor comment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) lines: usize,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = code_only(text);
        let lines = tests_begin(&code);
        Self { path: path.into(), code, lines }
    }

    /// The code without the module of unit tests.
    pub(super) fn without_tests(&self) -> String {
        self.code.lines().take(self.lines).map(|line| format!("{line}\n")).collect::<Vec<_>>().concat()
    }

    /// The modules of the crate named in it, as the first name after `crate::`.
    pub(super) fn imports(&self) -> Vec<String> {
        // From the crate's top: `super` of a file in src, `super::super` of a file in a folder of it.
        let above = if self.path.matches('/').count() == 1 { "super::" } else { "super::super::" };
        let mut found = names_after(&self.code, "crate::");
        found.extend(names_after(&self.code, above).into_iter().filter(|name| name != "super" && name != "*"));
        found.sort();
        found.dedup();
        found
    }

    /// Every function with a body.
    pub(super) fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (start, _) in self.code.match_indices("fn ") {
            if self.code[..start].ends_with(is_word) {
                continue;
            }
            let rest = &self.code[start + 3..];
            let name: String = rest.chars().take_while(|&letter| is_word(letter)).collect();
            if let Some(body) = body(rest).filter(|_| !name.is_empty()) {
                // The line of the closing brace is no line of the body.
                let lines = body.lines().skip(1).filter(|line| !line.trim().is_empty()).count();
                found.push(Function { name, lines });
            }
        }
        found
    }
}

/// Every Rust file under `folder`, which is given from the top of the repository.
pub(super) fn files(folder: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&top.join(folder), &mut paths);
    paths.sort();
    let path = |path: &Path| path.strip_prefix(top).expect("under the top").to_string_lossy().into_owned();
    paths.iter().map(|file| Source::new(&path(file), &fs::read_to_string(file).expect("read a source file"))).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The number of lines before `#[cfg(test)] mod …`, or of all.
fn tests_begin(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let module = |line: usize| {
        let next = lines[line + 1..].iter().find(|line| !line.starts_with("#["));
        lines[line] == "#[cfg(test)]" && next.is_some_and(|next| next.starts_with("mod "))
    };
    (0..lines.len()).find(|&line| module(line)).unwrap_or(lines.len())
}

/// The first name of each path after `root`, also within braces: `crate::{a::b, c}` names a and c.
fn names_after(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices(root) {
        if code[..start].ends_with(|letter| is_word(letter) || letter == ':') {
            continue;
        }
        let rest = &code[start + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|&letter| is_word(letter) || letter == '*').collect());
            continue;
        };
        let mut depth = 0;
        let mut name = String::new();
        for letter in group.chars() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                _ if depth == 0 => name.push(letter),
                _ => {}
            }
        }
        found.push(name);
    }
    let first = |path: String| path.trim().chars().take_while(|&letter| is_word(letter) || letter == '*').collect();
    found.into_iter().map(first).filter(|name: &String| !name.is_empty()).collect()
}

/// From the opening brace of a function's body to its closing one; `None` for a declaration.
fn body(signature: &str) -> Option<&str> {
    let mut depth = 0;
    let mut start = None;
    for (at, letter) in signature.char_indices() {
        match (letter, start) {
            ('{', None) if depth == 0 => (start, depth) = (Some(at), 1),
            (';', None) if depth == 0 => return None,
            ('(' | '[', None) | ('{', Some(_)) => depth += 1,
            (')' | ']', None) => depth -= 1,
            ('}', Some(start)) => {
                depth -= 1;
                if depth == 0 {
                    return Some(&signature[start..at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// The text with comments as blanks and the insides of strings as underscores.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let before = code.chars().next_back().unwrap_or(' ');
        let (length, inside) = token(rest, before);
        let (piece, after) = rest.split_at(length.max(letter.len_utf8()));
        for letter in piece.chars() {
            code.push(match inside {
                Some(_) if letter.is_whitespace() => letter,
                Some(mark) => mark,
                None => letter,
            });
        }
        rest = after;
    }
    code
}

/// How many bytes the comment or literal at the start of `rest` has, and what stands for its letters.
fn token(rest: &str, before: char) -> (usize, Option<char>) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Some(' '));
    }
    if rest.starts_with("/*") {
        return (comment(rest), Some(' '));
    }
    if rest.starts_with('"') {
        return (quoted(rest, '"'), Some('_'));
    }
    let hashes = rest.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(hashes) =
        hashes.filter(|hashes| rest[1 + hashes..].starts_with('"') && (!is_word(before) || before == 'b'))
    {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = 2 + hashes;
        return (rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len()), Some('_'));
    }
    let mut letters = rest.chars().skip(1);
    // A lifetime has no second quote.
    if rest.starts_with('\'') && (letters.next() == Some('\\') || letters.next() == Some('\'')) {
        return (quoted(rest, '\''), Some('_'));
    }
    (0, None)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}
