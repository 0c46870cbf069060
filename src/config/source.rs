//! Where each value of a configuration comes from: what `config show` tells.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::{Figment, Source as Origin};
use serde::Serialize;
use toml_edit::ImDocument;

use super::{Flags, Problems, Settings};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Source {
    /// Nobody has said anything.
    Default,
    /// The configuration file.
    File {
        /// Which.
        path: PathBuf,
        /// Where in it, counted from 1.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag.
    Flag {
        /// As it is written.
        flag: &'static str,
    },
}

/// A setting as it is in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effective {
    /// `section.key`
    #[serde(skip)]
    pub key: String,
    /// Its value; `null` where it is absent.
    pub value: serde_json::Value,
    /// Where that comes from. More than one where they add up.
    pub sources: Vec<Source>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment { variable } => f.write_str(variable),
            Self::Flag { flag } => f.write_str(flag),
        }
    }
}

// === impl Settings ===

impl Settings {
    /// Every setting with its sources, in the order of the sections.
    ///
    /// # Errors
    /// [`Problems`], as [`Self::load`].
    pub fn explain(file: Option<&Path>, flags: &Flags) -> Result<Vec<Effective>, Problems> {
        let settings = Self::load(file, flags)?;
        let figment = Self::figment(file)?;
        let lines = file.map(lines).unwrap_or_default();
        let of_flags = flags.keys();
        let mut all = Vec::new();
        // It has been read from text of the same shape.
        let Ok(serde_json::Value::Object(sections)) = serde_json::to_value(&settings) else { return Ok(all) };
        for (section, values) in sections {
            let serde_json::Value::Object(values) = values else { continue };
            for (name, value) in values {
                let key = format!("{section}.{name}");
                let mut sources = Vec::new();
                let flag = of_flags.iter().find(|(known, ..)| *known == key);
                if flag.is_none_or(|(.., adds)| *adds) {
                    sources.extend(source(&figment, &key, file, &lines).filter(|source| {
                        // To a default nothing is added: it is empty.
                        flag.is_none() || *source != Source::Default
                    }));
                }
                sources.extend(flag.map(|(_, flag, _)| Source::Flag { flag }));
                all.push(Effective { key, value, sources });
            }
        }
        Ok(all)
    }
}

// === impl Flags ===

impl Flags {
    /// The keys that are set by flags: key, flag, and whether it adds to what the others say.
    fn keys(&self) -> Vec<(&'static str, &'static str, bool)> {
        let Self { root, listen, socket, allow_origin, token_file } = self;
        let all = [
            (root.is_some(), "store.root", "--root", false),
            (listen.is_some(), "server.listen", "--listen", false),
            (socket.is_some(), "server.socket", "--socket", false),
            (!allow_origin.is_empty(), "origins.allow", "--allow-origin", true),
            (token_file.is_some(), "server.token_file", "--token-file", false),
        ];
        all.into_iter().filter(|(set, ..)| *set).map(|(_, key, flag, adds)| (key, flag, adds)).collect()
    }
}

fn source(figment: &Figment, key: &str, file: Option<&Path>, lines: &HashMap<String, usize>) -> Option<Source> {
    let Some(metadata) = figment.find_metadata(key) else { return Some(Source::Default) };
    Some(match (&metadata.source, file) {
        (Some(Origin::File(_)), Some(path)) => Source::File { path: path.to_owned(), line: lines.get(key).copied() },
        (None, _) => Source::Environment { variable: variable(key) },
        _ => Source::Default,
    })
}

/// The variable that sets a key, as it is in the environment: the case of its letters is free.
fn variable(key: &str) -> String {
    let name = format!("PREHEAT_{}", key.replace('.', "__").to_uppercase());
    let mut names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.find(|found| found.eq_ignore_ascii_case(&name)).unwrap_or(name)
}

/// On which line of a file each key stands. Of a file that cannot be read there are none: that has been told.
fn lines(file: &Path) -> HashMap<String, usize> {
    let Ok(text) = std::fs::read_to_string(file) else { return HashMap::new() };
    let Ok(document) = ImDocument::parse(text.as_str()) else { return HashMap::new() };
    let mut lines = HashMap::new();
    for (section, item) in document.iter() {
        let Some(table) = item.as_table_like() else { continue };
        for (name, _) in table.iter() {
            let Some((key, value)) = table.get_key_value(name) else { continue };
            if let Some(span) = key.span().or_else(|| value.span()) {
                let line = text[..span.start].matches('\n').count() + 1;
                lines.insert(format!("{section}.{name}"), line);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_says_who_set_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# first\n[store]\ncapacity = \"10GiB\"\n\n[server]\nlisten = \"127.0.0.1:1\"\nsocket = \"\"\n\n[origins]\n\
                    allow = [\n  \"s3://aaa\",\n]\n[[access.scopes]]\nname = \"team-a\"\nuids = [7]\n";
        std::fs::write(file.path(), text).unwrap();
        let flags = Flags {
            listen: Some("127.0.0.1:2".to_owned()),
            allow_origin: vec!["s3://bbb".parse().unwrap()],
            ..Flags::default()
        };
        let all = Settings::explain(Some(file.path()), &flags).unwrap();
        let of = |key: &str| all.iter().find(|one| one.key == key).unwrap_or_else(|| panic!("{key}"));
        let at = |line| Source::File { path: file.path().to_owned(), line: Some(line) };
        assert_eq!(of("store.capacity").sources, [at(3)]);
        assert_eq!(of("store.capacity").value, "10GiB");
        assert_eq!(of("server.socket").sources, [at(7)]);
        assert_eq!(of("server.listen").sources, [Source::Flag { flag: "--listen" }]);
        assert_eq!(of("server.listen").value, "127.0.0.1:2");
        assert_eq!(of("origins.allow").sources, [at(10), Source::Flag { flag: "--allow-origin" }]);
        assert_eq!(of("origins.allow").value.as_array().unwrap().len(), 2);
        assert_eq!(of("access.scopes").sources, [at(13)]);
        assert_eq!(of("transfer.memory").sources, [Source::Default]);
        assert_eq!(
            (&of("transfer.bandwidth").value, &of("transfer.bandwidth").sources[..]),
            (&serde_json::Value::Null, &[Source::Default][..])
        );
        assert_eq!(at(3).to_string(), format!("{}:3", file.path().display()));
        let only_flag = Settings::explain(None, &flags).unwrap();
        let allow = only_flag.iter().find(|one| one.key == "origins.allow").unwrap();
        assert_eq!(allow.sources, [Source::Flag { flag: "--allow-origin" }]);
    }
}
