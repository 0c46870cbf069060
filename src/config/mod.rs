//! The configuration of a daemon: defaults, then a TOML file, then the environment, then flags, each overriding the last.
//! Every module owns its section; this one only puts them together, and reports everything that is wrong at once, before a
//! port is bound.

mod source;
mod store;

use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use serde::{Deserialize, Serialize};

pub use source::{Effective, Source};
pub use store::StoreConfig;

use crate::{access, doors, engines, origin, prewarm, transfer};

/// Variables that start like settings and are none: those of arguments, and others.
pub(crate) const NOT_SETTINGS: [&str; 11] =
    ["ADDR", "ROOT", "SOCKET", "CONFIG", "TOKEN_FILE", "LOG", "BOOT_ID", "MUTANT", "CACHE", "CACHE_SALT", "VIEW_DIR"];

/// All settings of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The API.
    pub server: doors::Config,
    /// The store.
    pub store: StoreConfig,
    /// Where bytes may come from.
    pub origins: origin::Config,
    /// How they come.
    pub transfer: transfer::Config,
    /// Jobs.
    pub prewarm: prewarm::Config,
    /// Who may read what.
    pub access: access::Config,
    /// Compiled engines.
    pub engines: engines::Config,
}

/// What flags say; each overrides the other sources.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--root`
    pub root: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--allow-origin`, added to the list
    pub allow_origin: Vec<origin::Listing>,
    /// `--token-file`
    pub token_file: Option<PathBuf>,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem{}:\n{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n"))]
pub struct Problems(pub Vec<String>);

// === impl Settings ===

impl Settings {
    /// Reads all sources and checks everything.
    ///
    /// # Errors
    /// [`Problems`], all at once.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, Problems> {
        let figment = Self::figment(file)?;
        let (mut problems, known) = unknown_keys(&figment);
        // Without the keys that are told of already, the rest can be checked too.
        let figment = if problems.is_empty() { figment } else { Figment::from(Serialized::defaults(known)) };
        let settings = figment.extract::<Self>().map_err(|errors| {
            problems.extend(errors.into_iter().map(|error| format!("  {error}")));
        });
        let Ok(mut settings) = settings else {
            problems.sort();
            problems.dedup();
            return Err(Problems(problems));
        };
        settings.apply(flags);
        problems.extend(settings.check().into_iter().map(|problem| format!("  {problem}")));
        if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
    }

    /// What defaults, file and environment say.
    fn figment(file: Option<&Path>) -> Result<Figment, Problems> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            // A file that is named must be there: figment takes a missing one for an empty one.
            if let Err(error) = std::fs::read_to_string(path) {
                return Err(Problems(vec![format!("  {}: {error}", path.display())]));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        let environment = Env::prefixed("PREHEAT_").ignore(&NOT_SETTINGS).split("__");
        Ok(figment.merge(environment))
    }

    fn apply(&mut self, flags: &Flags) {
        let Flags { root, listen, socket, allow_origin, token_file } = flags.clone();
        if let Some(root) = root {
            self.store.root = root;
        }
        if let Some(listen) = listen {
            self.server.listen = listen;
        }
        if let Some(socket) = socket {
            self.server.socket = socket;
        }
        self.origins.allow.extend(allow_origin);
        if token_file.is_some() {
            self.server.token_file = token_file;
        }
    }

    fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.server.address() {
            problems.push(error.to_string());
        }
        problems.extend(self.store.check());
        problems.extend(self.origins.check());
        problems.extend(self.transfer.check().into_iter().map(|error| format!("transfer.{error}")));
        problems.extend(self.access.check());
        problems.extend(self.prewarm.check());
        problems.extend(self.engines.check());
        problems
    }
}

/// Keys that no section has, each by its full name: deserialising would stop at the first. And everything else.
fn unknown_keys(figment: &Figment) -> (Vec<String>, Dict) {
    let (mut problems, mut rest) = (Vec::new(), Dict::new());
    // Of a file that is not TOML the extraction tells.
    let (Ok(known), Ok(given)) = (Serialized::defaults(Settings::default()).data(), figment.data()) else {
        return (problems, rest);
    };
    let (Some(known), Some(given)) = (known.get(&Profile::Default), given.get(&Profile::Default)) else {
        return (problems, rest);
    };
    for (section, value) in given {
        let Some(known) = known.get(section).and_then(Value::as_dict) else {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            problems.push(format!("  unknown section `{section}`: there are {}", names.join(", ")));
            continue;
        };
        let Some(values) = value.as_dict() else {
            rest.insert(section.clone(), value.clone());
            continue;
        };
        let mut kept = Dict::new();
        for (key, value) in values {
            // Settings whose default is absent are not among the defaults' keys.
            if !known.contains_key(key) && !OPTIONAL.contains(&format!("{section}.{key}").as_str()) {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                problems.push(format!("  unknown key `{section}.{key}`: the section has {}", names.join(", ")));
                continue;
            }
            kept.insert(key.clone(), value.clone());
        }
        rest.insert(section.clone(), Value::from(kept));
    }
    (problems, rest)
}

/// Keys without a default.
const OPTIONAL: [&str; 15] = [
    "access.bytes_max",
    "access.requests_per_second",
    "engines.origin",
    "engines.revocations_file",
    "engines.signing_key_file",
    "origins.ca_bundle",
    "prewarm.memory_free",
    "prewarm.memory_max",
    "prewarm.read_threads",
    "server.token_file",
    "store.capacity",
    "store.keep_free",
    "transfer.bandwidth",
    "transfer.digest_threads",
    "transfer.write_threads",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::load(Some(file.path()), &Flags::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_file_overrides_defaults_and_flags_the_file() {
        let settings = load("[store]\ncapacity = \"10GiB\"\n[server]\nlisten = \"127.0.0.1:1\"\n").unwrap();
        assert_eq!(settings.store.capacity.map(|bytes| bytes.0), Some(10 << 30));
        assert_eq!(settings.server.listen, "127.0.0.1:1");
        let flags = Flags { listen: Some("127.0.0.1:2".to_owned()), ..Flags::default() };
        assert_eq!(Settings::load(None, &flags).unwrap().server.listen, "127.0.0.1:2");
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let error = load(
            "[store]\ncapcity = 1\nhigh_watermark = 0.5\nlow_watermark = 0.9\n[servr]\nx = 1\n[server]\nlisten = \"0.0.0.0:1\"\n",
        )
        .unwrap_err();
        for part in ["capcity", "servr", "low_watermark", "server.listen"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(load("[store]\ncapacity = \"ten\"\n").unwrap_err().contains("capacity"));
        assert!(load("not toml").is_err());
        let directory = tempfile::tempdir().unwrap();
        let told = Settings::load(Some(directory.path()), &Flags::default()).unwrap_err().to_string();
        assert!(told.contains(directory.path().to_str().unwrap()), "{told}");
        let missing = Settings::load(Some(Path::new("/does/not/exist.toml")), &Flags::default()).unwrap_err();
        assert!(missing.to_string().contains("/does/not/exist.toml"));
    }

    #[test]
    fn every_optional_key_is_one() {
        let known = serde_json::to_value(Settings::default()).unwrap();
        for key in OPTIONAL {
            let (section, key) = key.split_once('.').unwrap();
            assert!(
                known[section].as_object().unwrap().get(key).is_some_and(serde_json::Value::is_null),
                "{section}.{key}"
            );
        }
    }
}
