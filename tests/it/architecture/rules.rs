//! What one source file may not do, given the table of floors.

use super::floors::Floors;
use super::tokens::{Token, tokens};

/// Past this a file hides its second idea.
const MOST_LINES: usize = 600;
/// Words that say nothing of what a type is; as the last part of a name they hide that it has no idea of its own.
const EMPTY_WORDS: [&str; 7] = ["Manager", "Helper", "Helpers", "Util", "Utils", "Data", "Info"];
/// The modules that speak to a person and may carry `anyhow`; a port's errors have kinds.
const MAY_ANYHOW: [&str; 3] = ["cli", "daemon", "main"];

/// Everything wrong with `source`, which stands at `path` (below `src`, with `/`); each as `path:line: what`.
pub(super) fn violations(floors: &Floors, path: &str, source: &str) -> Vec<String> {
    let module = module_path(path);
    let mut wrong = Vec::new();
    let mut say = |line: usize, what: &str| wrong.push(format!("src/{path}:{line}: {what}"));
    let lines = source.lines().count();
    if lines > MOST_LINES {
        say(lines, &format!("{lines} lines; past {MOST_LINES} a file has a second idea in it"));
    }
    // The map declares modules and does nothing else.
    let Some(top) = module.first() else { return wrong };
    if floors.get(top).is_none() {
        say(1, &format!("`{top}` is not in the table of floors in src/lib.rs"));
        return wrong;
    }
    let tokens = tokens(source);
    for (line, target) in edges(&module, &tokens) {
        if let Some(refusal) = floors.refusal(top, &target) {
            say(line, &refusal);
        }
    }
    for window in tokens.windows(4) {
        let line = window[0].line;
        match [window[0].text, window[1].text, window[2].text, window[3].text] {
            ["Other", "(", "String", ")"] => {
                say(line, "`Other(String)` hides the kind of a failure; give it a variant");
            }
            ["struct" | "enum" | "trait", name, ..] => {
                if let Some(word) = EMPTY_WORDS.iter().find(|word| name.ends_with(**word)) {
                    say(line, &format!("`{name}`: `{word}` is no name; use the field's term"));
                }
            }
            _ => {}
        }
    }
    for token in &tokens {
        match token.text {
            "unsafe" if top != "sys" => say(token.line, "`unsafe` stands only in `sys`"),
            "anyhow" if !MAY_ANYHOW.contains(&top.as_str()) => {
                say(token.line, "`anyhow` stands only in `cli` and `daemon`; a port's error has a kind");
            }
            _ => {}
        }
    }
    wrong
}

/// `store/blob.rs` is `[store, blob]`; `store/mod.rs` is `[store]`; `lib.rs` is the root.
fn module_path(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] {
        parts.pop();
    }
    parts
}

/// Every top-level module that the file names, with the line: in `use` trees and in paths written out, from `crate`, from
/// `super` climbing to the root, and from `preheat` in the binary.
fn edges(file: &[String], tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // The modules opened inside the file, each with the depth of braces outside it.
    let mut module = file.to_vec();
    let mut opened: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let text = tokens[at].text;
        let after_path = at > 0 && tokens[at - 1].text == "::";
        if text == "mod" && tokens.get(at + 2).is_some_and(|token| token.text == "{") {
            opened.push(depth);
            module.push(tokens[at + 1].text.to_owned());
        }
        match text {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if opened.last() == Some(&depth) {
                    opened.pop();
                    module.pop();
                }
            }
            "use" if tokens.get(at + 1).is_some_and(|next| next.text != "<") => {
                let mut paths = Vec::new();
                let end = use_tree(tokens, at + 1, &mut Vec::new(), &mut paths);
                found.extend(
                    paths.iter().flat_map(|(line, path)| targets(file, &module, path).map(|target| (*line, target))),
                );
                at = end;
                continue;
            }
            "crate" | "super" | "self" | "preheat" if !after_path => {
                let mut path = vec![text];
                while at + 2 < tokens.len() && tokens[at + 1].text == "::" && tokens[at + 2].is_name() {
                    at += 2;
                    path.push(tokens[at].text);
                }
                if path.len() > 1 {
                    found.extend(targets(file, &module, &path).map(|target| (tokens[at].line, target)));
                }
            }
            _ => {}
        }
        at += 1;
    }
    // `use crate::store::{blob, self}` names one module twice.
    found.sort();
    found.dedup();
    found
}

/// Flattens the tree that begins at `at` into whole paths, and returns where it ends.
fn use_tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &mut Vec<&'a str>,
    paths: &mut Vec<(usize, Vec<&'a str>)>,
) -> usize {
    let own = prefix.len();
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, prefix, paths);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                prefix.truncate(own);
                return at + 1;
            }
            "*" => {
                prefix.push("*");
                at += 1;
            }
            "as" => at += 2,
            _ if token.is_name() => {
                prefix.push(token.text);
                at += 1;
            }
            _ => break,
        }
    }
    let line = tokens.get(at.saturating_sub(1)).map_or(0, |token| token.line);
    paths.push((line, prefix.clone()));
    prefix.truncate(own);
    at
}

/// The top-level modules that `path` passes through when it is read inside `module`.
fn targets(file: &[String], module: &[String], path: &[&str]) -> impl Iterator<Item = String> {
    let mut cursor: Option<Vec<&str>> = None;
    let mut named = Vec::new();
    for (at, segment) in path.iter().enumerate() {
        match (*segment, &mut cursor) {
            ("crate", None) if at == 0 => cursor = Some(Vec::new()),
            ("preheat", None) if at == 0 && file == ["main"] => cursor = Some(Vec::new()),
            ("self", None) if at == 0 => cursor = Some(module.iter().map(String::as_str).collect()),
            ("super", None) if at == 0 => {
                cursor = Some(module[..module.len().saturating_sub(1)].iter().map(String::as_str).collect());
            }
            ("super", Some(cursor)) => {
                cursor.pop();
            }
            // `use crate::{self as house}` would let the root in under another name.
            ("self", Some(cursor)) if !cursor.is_empty() => {}
            (name, Some(cursor)) => {
                if cursor.is_empty() {
                    named.push(name.to_owned());
                }
                cursor.push(name);
            }
            // Another crate, or a name in scope.
            (_, None) => break,
        }
    }
    if cursor.is_some_and(|cursor| cursor.is_empty()) {
        named.push("crate".to_owned());
    }
    named.into_iter()
}

#[cfg(test)]
mod tests {
    use super::super::floors::Floors;
    use super::violations;

    const LIB: &str = "\
//! <!-- floors: ground first -->
//! | floor | module | beside | what |
//! |--|--|--|--|
//! | ground | `base` | | x |
//! | ground | `sys` | `base` | x |
//! | 1 | `model` | | x |
//! | 2 | `origin` | | x |
//! | 2 | `store` | | x |
//! | 3 | `transfer` | not `origin` | x |
//! | roof | `cli` | | x |
//! | roof | `main` | `cli` | x |
//! <!-- floors end -->
";

    fn wrong(path: &str, source: &str) -> Vec<String> {
        violations(&Floors::read(LIB).unwrap(), path, source)
    }

    #[test]
    fn what_goes_down_is_let_pass() {
        for (path, source) in [
            ("sys/ring.rs", "use crate::base::ErrorKind;\n// SAFETY: a reason\nunsafe {}"),
            (
                "store/mod.rs",
                "//! [`crate::transfer`]\nmod blob; use crate::{base::{self, units}, model::*}; let x = \"crate::cli unsafe\";",
            ),
            (
                "store/mod.rs",
                "pub(crate) fn f() -> impl Sized + use<'_> {} pub(in crate::store) struct A; use crate::store::B;",
            ),
            (
                "store/blob.rs",
                "use super::seal; use super::super::model; mod tests { use super::*; use super::super::super::base; }",
            ),
            (
                "store/blob.rs",
                "use std::{io, fs}; use object_store::path as origin; fn f() { crate::model::select(); serde::de::Error; }",
            ),
            ("transfer/mod.rs", "use crate::{store, model};"),
            ("main.rs", "use preheat::store::Store; fn main() { preheat::cli::main() }"),
            ("cli/mod.rs", "use anyhow::Context; use crate::{model, transfer};"),
            ("lib.rs", "pub mod base; pub mod whatever;"),
        ] {
            assert_eq!(wrong(path, source), Vec::<String>::new(), "{path}: {source}");
        }
    }

    #[test]
    fn every_seeded_violation_is_found() {
        for (path, source, complaint) in [
            ("base/mod.rs", "use crate::model::X;", "src/base/mod.rs:1: `base` uses `model`, which is above it"),
            ("base/mod.rs", "\n\npub use crate::sys;", "src/base/mod.rs:3: `base` uses `sys`, which is beside it"),
            ("model/mod.rs", "use crate::{\n    base,\n    store::{blob, self},\n};", "`model` uses `store`"),
            ("model/mod.rs", "use crate::{base::{units, ErrorKind}, transfer};", "`model` uses `transfer`"),
            ("model/key.rs", "fn f() { let x = crate::store::open(); }", "`model` uses `store`"),
            ("model/key.rs", "fn f<'a>(x: &'a crate\n::\nstore::Blob) {}", "src/model/key.rs:3: `model` uses `store`"),
            ("model/key.rs", "use super::super::store;", "`model` uses `store`"),
            ("model/mod.rs", "use super::{base, store};", "`model` uses `store`"),
            ("model/key.rs", "use super::{super::store, path};", "`model` uses `store`"),
            ("model/key.rs", "mod tests { use super::super::super::store; }", "`model` uses `store`"),
            ("model/key.rs", "mod tests { mod deep {} } use super::super::store;", "`model` uses `store`"),
            ("model/key.rs", "macro_rules! m { () => { $crate::store::open() } }", "`model` uses `store`"),
            ("model/key.rs", "#[cfg(test)] mod tests { use crate::store; }", "`model` uses `store`"),
            ("store/mod.rs", "use crate::origin::Origin;", "beside it"),
            ("transfer/mod.rs", "use crate::origin::Origin;", "`transfer` must not know `origin`"),
            ("main.rs", "fn main() { preheat::elsewhere::main() }", "`crate::elsewhere` is no module"),
            ("store/mod.rs", "use crate::*;", "`crate::*` is no module"),
            ("store/mod.rs", "use crate::{self as house};", "`crate::self` is no module"),
            ("store/mod.rs", "use crate as house;", "`crate::crate` is no module"),
            ("store/mod.rs", "use crate::elsewhere::X;", "`crate::elsewhere` is no module"),
            ("store/mod.rs", "fn f() { unsafe { g() } }", "`unsafe` stands only in `sys`"),
            ("store/mod.rs", "#[unsafe(no_mangle)] fn f() {}", "`unsafe` stands only in `sys`"),
            ("store/mod.rs", "fn f() -> anyhow::Result<()> {}", "`anyhow` stands only in"),
            ("store/error.rs", "enum E { Other(String), A }", "`Other(String)`"),
            ("store/mod.rs", "pub struct SpaceManager { a: u8 }", "`Manager` is no name"),
            ("extra/mod.rs", "fn f() {}", "`extra` is not in the table"),
            ("extra.rs", "fn f() {}", "`extra` is not in the table"),
        ] {
            let found = wrong(path, source);
            assert_eq!(found.len(), 1, "{path}: {source}: {found:?}");
            assert!(found[0].contains(complaint), "{path}: {source}: {found:?}");
        }
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(wrong("store/mod.rs", &"// a line\n".repeat(600)), Vec::<String>::new());
        assert_eq!(wrong("store/mod.rs", &"// a line\n".repeat(601)).len(), 1);
    }
}
