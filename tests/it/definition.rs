//! One definition of verbs and flags: what parses them also writes the manual and the completions, and the README tells of all.

use std::collections::BTreeSet;

use clap::CommandFactory;
use preheat::base::ErrorKind;
use preheat::cli::Cli;

use super::support::command::{code, fails, json, preheat, run, stderr, stdout};

fn verbs() -> BTreeSet<String> {
    // What is hidden is for preheat itself.
    let command = Cli::command();
    command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(|verb| verb.get_name().to_owned()).collect()
}

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

#[test]
fn every_verb_has_a_page_of_the_manual() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("share/man/man1");
    let output = run(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for verb in verbs() {
        let page = std::fs::read_to_string(out.join(format!("preheat-{verb}.1"))).unwrap();
        assert!(page.contains(&format!(".TH preheat-{verb} 1 ")), "{page}");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\""] {
            assert!(page.contains(&format!(".SH {section}")), "{verb} has no {section}");
        }
    }
    let main = std::fs::read_to_string(out.join("preheat.1")).unwrap();
    for verb in verbs() {
        assert!(main.contains(&format!("preheat\\-{verb}(1)")), "{verb} is not in {main}");
    }
    assert_eq!(stdout(&output).lines().count(), std::fs::read_dir(&out).unwrap().count(), "each page is named");
    let all = stdout(&run(&["man"]));
    let count = all.lines().filter(|line| line.starts_with(".TH ")).count();
    assert_eq!(count, std::fs::read_dir(&out).unwrap().count(), "without --out all are printed");
}

#[test]
fn the_readme_has_every_verb_and_every_exit_code() {
    let readme = readme();
    let table = readme.split("### Verbs").nth(1).unwrap().split("\n#").next().unwrap();
    // The first cell of a row: each code span in it begins with a verb.
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(cell, _)| cell));
    let named: BTreeSet<&str> =
        cells.flat_map(|cell| cell.split("`, `")).filter_map(|one| one.split(' ').next()).collect();
    for verb in verbs() {
        assert!(named.contains(verb.as_str()), "`{verb}` is not in the README's table of verbs");
    }
    for name in named {
        // `demo` is left out of small builds.
        assert!(verbs().contains(name) || name == "demo", "the README tells of a verb `{name}` that is none");
    }
    for kind in ErrorKind::ALL {
        let row = format!("| {} | `{}` | {} |", kind.exit_code(), kind.as_str(), kind.http_status());
        assert!(table.contains(&row), "{row}");
    }
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let script = stdout(&output);
        for word in ["prewarm", "estimate", "timeline", "deadline"] {
            assert!(script.contains(word), "{word} is not completed in {shell}");
        }
    }
    fails(&run(&["completions", "tcsh"]), 64, &["bash", "fish"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = preheat().arg("man").stdout(writer).output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn every_setting_says_who_set_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("preheat.toml");
    std::fs::write(&file, "[store]\ncapacity = \"500GB\"\n\n[transfer]\nbandwidth = \"1GB/s\"\n").unwrap();
    let config = |what: &str, more: &[&str]| {
        let mut command = preheat();
        command.args(["config", what, "--config", file.to_str().unwrap()]).args(more);
        command.env("PREHEAT_ROOT", "/srv/a").env("PREHEAT_TRANSFER__BANDWIDTH", "25Gbps").output().unwrap()
    };
    let shown = json(&config("show", &["--listen", "127.0.0.1:9", "--allow-origin", "s3://models", "--json"]));
    for (key, value, source) in [
        ("store.capacity", "500GB".into(), serde_json::json!({"from": "file", "path": file, "line": 2})),
        (
            "transfer.bandwidth",
            "3125MB/s".into(),
            serde_json::json!({"from": "environment", "variable": "PREHEAT_TRANSFER__BANDWIDTH"}),
        ),
        ("store.root", "/srv/a".into(), serde_json::json!({"from": "environment", "variable": "PREHEAT_ROOT"})),
        ("server.listen", "127.0.0.1:9".into(), serde_json::json!({"from": "flag", "flag": "--listen"})),
        ("server.token_file", serde_json::Value::Null, serde_json::json!({"from": "default"})),
    ] {
        assert_eq!((&shown[key]["value"], &shown[key]["sources"]), (&value, &serde_json::json!([source])), "{key}");
    }
    assert_eq!(shown["origins.allow"]["value"][0]["prefix"], "s3://models");
    // A flag that is written wins over the variable that stands in for it.
    let written = json(&config("show", &["--root", "/srv/b", "--json"]));
    assert_eq!(written["store.root"]["sources"], serde_json::json!([{"from": "flag", "flag": "--root"}]));
    let text = stdout(&config("show", &[]));
    assert!(text.contains(&format!("# {}:2\n", file.display())) && text.contains("# PREHEAT_ROOT\n"), "{text}");
    assert!(text.contains("# token_file is not set"), "{text}");
    let again = directory.path().join("again.toml");
    std::fs::write(&again, &text).unwrap();
    let read = json(&run(&["config", "show", "--config", again.to_str().unwrap(), "--json"]));
    for (key, one) in read.as_object().unwrap() {
        let before = json(&config("show", &["--json"]))[key]["value"].clone();
        assert_eq!(one["value"], before, "{key}: what is shown reads as the same");
    }
    let right = config("check", &[]);
    assert_eq!((code(&right), stdout(&right), stderr(&right)), (0, String::new(), String::new()));
}

#[test]
fn everything_wrong_with_a_configuration_is_told_and_nothing_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let (file, root) = (directory.path().join("preheat.toml"), directory.path().join("root"));
    std::fs::write(&file, "[store]\ncapcity = 1\nlow_watermark = 0.99\n[origins]\nallow = [\"models\"]\n[servr]\n")
        .unwrap();
    for what in ["show", "check"] {
        let output = preheat()
            .args(["config", what, "--config", file.to_str().unwrap(), "--listen", "0.0.0.0:0", "--root"])
            .arg(&root)
            .output()
            .unwrap();
        fails(&output, 64, &["capcity", "servr", "low_watermark", "origins.allow", "server.listen", "5 problems"]);
        assert_eq!(stdout(&output), "");
    }
    assert!(!root.exists());
    fails(&run(&["config", "check", "--config", "/nonexistent.toml"]), 64, &["/nonexistent.toml"]);
}
