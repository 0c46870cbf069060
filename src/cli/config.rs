//! `preheat config`: what a daemon would go by, and who said so. What `show` prints can be given to `serve` as its file.

use std::process::ExitCode;

use clap::ArgMatches;
use clap::parser::ValueSource;
use toml_edit::{Array, InlineTable, Value};

use super::args::{ConfigArgs, ConfigVerb, ServeArgs};
use super::error::CliError;
use super::screen::{Screen, print, print_json};
use super::serve::flags;
use crate::config::{Effective, Settings, Source};

/// Flags that a variable stands in for, outside the settings' own.
const VARIABLES: [(&str, &str, &str); 3] = [
    ("root", "--root", "PREHEAT_ROOT"),
    ("socket", "--socket", "PREHEAT_SOCKET"),
    ("token_file", "--token-file", "PREHEAT_TOKEN_FILE"),
];

/// Columns of `key = value` before its source, at most; what is longer has its source on the line above.
const VALUE_MOST: usize = 48;

pub(super) fn run(args: ConfigArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match args.what {
        ConfigVerb::Check(serve) => {
            explain(serve)?;
        }
        ConfigVerb::Show(show) => {
            let mut all = explain(show.serve)?;
            name_variables(&mut all, matches);
            if show.json {
                let all: serde_json::Map<_, _> = all
                    .into_iter()
                    .map(|one| Ok((one.key.clone(), serde_json::to_value(one)?)))
                    .collect::<Result<_, serde_json::Error>>()?;
                print_json(&all)?;
            } else {
                print(toml(&all))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(serve: ServeArgs) -> Result<Vec<Effective>, CliError> {
    let (file, flags) = flags(serve);
    Settings::explain(file.as_deref(), &flags).map_err(|problems| CliError::invalid(problems.to_string()))
}

/// A flag that was found in the environment has not been written.
fn name_variables(all: &mut [Effective], matches: &ArgMatches) {
    let show = matches.subcommand().and_then(|(_, config)| config.subcommand()).map(|(_, show)| show);
    for (id, flag, variable) in VARIABLES {
        if show.and_then(|show| show.value_source(id)) != Some(ValueSource::EnvVariable) {
            continue;
        }
        for source in all.iter_mut().flat_map(|one| &mut one.sources) {
            if *source == (Source::Flag { flag }) {
                *source = Source::Environment { variable: variable.to_owned() };
            }
        }
    }
}

/// A configuration file, with the sources as comments.
fn toml(all: &[Effective]) -> String {
    // Comments are for people and end with their line.
    let screen = Screen { unicode: true, ..Screen::of_stdout() };
    let mut text = String::new();
    for section in all.chunk_by(|one, other| section(one) == section(other)) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("[{}]\n", section_of(section)));
        let lines: Vec<String> = section.iter().map(line).collect();
        let longest = lines.iter().map(String::len).filter(|len| *len <= VALUE_MOST).max().unwrap_or_default();
        for (one, line) in section.iter().zip(lines) {
            let sources: Vec<String> = one.sources.iter().map(ToString::to_string).collect();
            let sources = sources.join(" and ");
            let sources = screen.plain(&sources);
            if line.len() > VALUE_MOST {
                text.push_str(&format!("# {sources}:\n{line}\n"));
            } else {
                text.push_str(&format!("{line:longest$}  # {sources}\n"));
            }
        }
    }
    text
}

fn section(one: &Effective) -> &str {
    one.key.split_once('.').map_or("", |(section, _)| section)
}

fn section_of(all: &[Effective]) -> &str {
    all.first().map(section).unwrap_or_default()
}

fn line(one: &Effective) -> String {
    let name = one.key.split_once('.').map_or(one.key.as_str(), |(_, name)| name);
    match value(&one.value) {
        Some(value) => format!("{name} = {value}"),
        // TOML has no word for nothing.
        None => format!("# {name} is not set"),
    }
}

/// A value as TOML; `None` for what is absent.
fn value(json: &serde_json::Value) -> Option<Value> {
    Some(match json {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(yes) => Value::from(*yes),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(all) => Value::from(all.iter().filter_map(value).collect::<Array>()),
        serde_json::Value::Object(all) => {
            let entries = all.iter().filter_map(|(key, json)| Some((key.as_str(), value(json)?)));
            Value::from(entries.collect::<InlineTable>())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "[store]\ncapacity = \"10GiB\"\nroot = \"/a \\\"b\\\"\\n#c\"\n[transfer]\nbandwidth = \"25Gbps\"\n\
             [origins]\nallow = [\"s3://aaa,credentials,scope=team-a\", \"https://b\"]\n[access]\nrequests_per_second = 2.0\n\
             [[access.scopes]]\nname = \"team-a\"\nuids = [7, 8]\nbytes_max = \"1.5GiB\"\n",
        )
        .unwrap();
        let load = |path: &std::path::Path| Settings::load(Some(path), &Flags::default()).unwrap();
        let shown = toml(&Settings::explain(Some(file.path()), &Flags::default()).unwrap());
        let again = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(again.path(), &shown).unwrap();
        assert_eq!(load(again.path()), load(file.path()), "{shown}");
        assert!(shown.contains("# ca_bundle is not set") && !shown.contains("# bandwidth is not set"), "{shown}");
    }
}
