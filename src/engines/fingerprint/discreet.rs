//! What of a command line may be shown. A key travels with its bundle to other nodes, so that no secret is in it in clear: neither
//! the value of an option whose name says so, nor one in JSON, behind an `=`, in an address or in a program's own text, nor a word
//! that nothing says what it is of. The digest stands in its place and keeps the key exact.

use serde_json::Value;

use super::arguments::{Arguments, TEXT};
use super::facts::hidden;
use crate::engines::secrets::{is_credential, is_secret};

/// The words of an option, each time that it is given.
pub(super) fn shown(name: &str, times: &[Vec<String>]) -> Vec<Vec<String>> {
    let word = |word: &String| {
        if is_text(name, word) || is_secret(name, word) { hidden(word) } else { discreet(word) }
    };
    times.iter().map(|words| words.iter().map(word).collect()).collect()
}

/// A word that belongs to no option.
pub(super) fn alone(word: &str, is_known: bool) -> String {
    if is_known || is_number(word) { discreet(word) } else { hidden(word) }
}

/// The credentials on a command line, with the options that give them.
pub(super) fn credentials(arguments: &Arguments) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, times) in &arguments.options {
        for word in times.iter().flatten() {
            if is_credential(name, word) {
                found.push((name.clone(), word.clone()));
            } else if let Some(json) = json(word) {
                in_json(name, &json, &mut found);
            } else if let Some((key, value)) = word.split_once('=')
                && is_credential(key, value)
            {
                found.push((format!("{name} {key}"), value.to_owned()));
            }
        }
    }
    found
}

fn in_json(option: &str, json: &Value, found: &mut Vec<(String, String)>) {
    match json {
        Value::Array(values) => values.iter().for_each(|value| in_json(option, value, found)),
        Value::Object(values) => {
            for (key, value) in values {
                match value {
                    Value::String(text) if is_credential(key, text) => {
                        found.push((format!("{option} {key}"), text.clone()));
                    }
                    _ => in_json(option, value, found),
                }
            }
        }
        _ => {}
    }
}

fn discreet(word: &str) -> String {
    if let Some(mut json) = json(word) {
        blacken(&mut json);
        return json.to_string();
    }
    // Somebody's name and password in an address.
    let authority = word.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    if authority.is_some_and(|authority| authority.contains('@')) {
        return hidden(word);
    }
    match word.split_once('=') {
        Some((key, value)) if is_secret(key, value) => format!("{key}={}", hidden(value)),
        _ => word.to_owned(),
    }
}

fn blacken(json: &mut Value) {
    match json {
        Value::Array(values) => values.iter_mut().for_each(blacken),
        Value::Object(values) => {
            for (key, value) in values.iter_mut() {
                match value {
                    Value::String(text) if is_secret(key, text) => *value = Value::String(hidden(text)),
                    Value::Number(number) if is_secret(key, &number.to_string()) => {
                        *value = Value::String(hidden(&number.to_string()));
                    }
                    _ => blacken(value),
                }
            }
        }
        Value::String(text) => {
            let plain = discreet(text);
            *text = plain;
        }
        _ => {}
    }
}

/// JSON, of which there is one way of writing it.
fn json(word: &str) -> Option<Value> {
    word.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str(word).ok()).flatten()
}

/// Whether a word is what an interpreter or a shell is to run: `-c TEXT`, `-lc TEXT`.
fn is_text(name: &str, word: &str) -> bool {
    let short = name.ends_with('c') && !name.starts_with("--");
    short && !is_number(word) && (name == TEXT || word.contains(char::is_whitespace))
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::arguments::joined;
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_a_digest_and_all_else_is_clear() {
        let show =
            |name: &str, words: &[&str]| joined(&shown(name, &[words.iter().map(|word| (*word).to_owned()).collect()]));
        for (name, word) in [
            ("--api-key", "hunter2"),
            ("--api-key", "12345678"),
            ("--auth-token", "hunter2"),
            ("-c", "login('hunter2')"),
            ("-lc", "login hunter2"),
            ("--x", r#"{"a": [{"password": "hunter2"}]}"#),
            ("--x", r#"{"password": 12345678}"#),
            ("--x", r#"["token=hunter2"]"#),
            ("--x", "authorization=hunter2"),
            ("--x", "https://me:hunter2@host/x"),
        ] {
            for words in [&[word][..], &["first", word]] {
                let text = show(name, words);
                assert!(
                    !text.contains("hunter2") && !text.contains("12345678") && text.contains("blake3:"),
                    "{name} {text}"
                );
                let other = word.replace("hunter2", "hunter3").replace("12345678", "12345679");
                assert_ne!(show(name, &[&other]), show(name, &[word]), "it is in the key: {word}");
            }
        }
        for (name, word) in [
            ("--max-num-batched-tokens", "8192"),
            ("--eos-token-ids", "1,2"),
            ("--x", r#"{"level":3}"#),
            ("--x", "a=b"),
            ("--x", "https://host/x?y=z"),
            ("-c", "4"),
        ] {
            assert_eq!(show(name, &[word]), word);
        }
        assert_eq!((alone("serve", true), alone("7", false)), ("serve".to_owned(), "7".to_owned()));
        assert!(!alone("hunter2", false).contains("hunter2"));
    }
}
